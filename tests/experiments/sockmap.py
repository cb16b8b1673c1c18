#!/usr/bin/env python3
"""What a sockmap redirect does to apps that did not ask for it: see docs/performance.md.

Run as root: python3 tests/experiments/sockmap.py

Each case runs on plain TCP, on sockets that are merely in a sockmap whose sk_msg program lets everything pass, and with a
program that redirects what the client sends into the server's queue. Nothing is installed, pinned or left behind.
"""
import array
import ctypes
import errno
import fcntl
import os
import platform
import signal
import socket
import struct
import termios
import threading
import time

BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_ATTACH = 0, 2, 5, 8
SOCKMAP, SK_MSG, SK_MSG_VERDICT = 15, 16, 7
MSG_REDIRECT_MAP, F_INGRESS = 60, 1
CLIENT, SERVER = 0, 1

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    size = len(attributes)
    result = libc.syscall(BPF, command, ctypes.c_char_p(attributes), size)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command}): {os.strerror(number)}")
    return result


def instruction(code, dst=0, src=0, immediate=0):
    return struct.pack("=BBhi", code, src << 4 | dst, 0, immediate)


def program(sockmap, redirect):
    """SK_PASS, or bpf_msg_redirect_map(msg, sockmap, SERVER, BPF_F_INGRESS)."""
    if redirect:
        code = (
            instruction(0x18, 2, 1, sockmap) + instruction(0)  # r2 = the map
            + instruction(0xB7, 3, 0, SERVER) + instruction(0xB7, 4, 0, F_INGRESS)
            + instruction(0x85, 0, 0, MSG_REDIRECT_MAP)
        )
    else:
        code = instruction(0xB7, 0, 0, 1)
    code += instruction(0x95)
    text, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    return bpf(PROG_LOAD, struct.pack(
        "=IIQQIIQII16sII", SK_MSG, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence), 0, 0, 0, 0, 0,
        b"", 0, SK_MSG_VERDICT))


def pair(mode):
    """A client, a server, and what must stay open for as long as they are in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if mode == "plain":
        return client, server, ()
    sockmap = bpf(MAP_CREATE, struct.pack("=IIIII", SOCKMAP, 4, 8, 2, 0))
    verdict = program(sockmap, mode == "redirected")
    bpf(PROG_ATTACH, struct.pack("=IIII", sockmap, verdict, SK_MSG_VERDICT, 0))
    for place, end in ((CLIENT, client), (SERVER, server)):
        key = ctypes.create_string_buffer(struct.pack("=I", place))
        value = ctypes.create_string_buffer(struct.pack("=Q", end.fileno()))
        bpf(MAP_UPDATE, struct.pack("=IIQQQ", sockmap, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
    return client, server, (sockmap, verdict)


def outcome(call):
    """What a system call gave, or its errno. Python itself would call recv() again after a signal: libc does not."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]


def received(end):
    """recv(2) of a blocking socket, once."""
    buffer = ctypes.create_string_buffer(100)
    n = libc.recv(end.fileno(), buffer, 100, 0)
    return n if n >= 0 else errno.errorcode[ctypes.get_errno()]


def spliced_after_close(client, server):
    "splice(2) of 1000 bytes after the sender has closed"
    client.sendall(b"x" * 1000)
    client.close()
    time.sleep(0.1)
    read, write = os.pipe()
    n = outcome(lambda: os.splice(server.fileno(), write, 4096))
    os.close(read)
    os.close(write)
    return n


def all_of_it(client, server):
    "recv(20, MSG_WAITALL) of 10 bytes and 10 more"
    later = threading.Timer(0.2, lambda: client.sendall(b"b" * 10))
    client.sendall(b"a" * 10)
    later.start()
    server.settimeout(None)
    data = server.recv(20, socket.MSG_WAITALL)
    later.join()
    return len(data)


def reset_while_waiting(client, server):
    "a blocking recv() when the peer resets the connection"
    later = threading.Timer(0.2, lambda: (
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)), client.close()))
    later.start()
    result = received(server)
    later.join()
    return result


def signalled_while_waiting(client, server):
    "a blocking recv() at a signal with SA_RESTART, then 5 bytes"
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)
    main = threading.get_ident()
    for pause, what in ((0.2, lambda: signal.pthread_kill(main, signal.SIGUSR1)), (0.5, lambda: client.sendall(b"hello"))):
        threading.Timer(pause, what).start()
    result = received(server)
    time.sleep(0.5)
    return result


def bytes_waiting(client, server):
    "ioctl(FIONREAD) with 1000 bytes to read"
    client.sendall(b"x" * 1000)
    time.sleep(0.1)
    number = array.array("i", [0])
    fcntl.ioctl(server.fileno(), termios.FIONREAD, number)
    return number[0]


def stalled(client, server):
    "MiB that a sender gets rid of while nobody reads (256: stopped)"
    client.settimeout(0.5)
    sent, piece = 0, b"x" * (1 << 20)
    try:
        while sent < 256 << 20:
            sent += client.send(piece)
    except OSError:
        pass
    return sent >> 20


CASES = (spliced_after_close, all_of_it, reset_while_waiting, signalled_while_waiting, bytes_waiting, stalled)
MODES = ("plain", "in a sockmap", "redirected")

if __name__ == "__main__":
    print(f"Linux {platform.release()}")
    print(f"{'':<62}{MODES[0]:>12}{MODES[1]:>14}{MODES[2]:>12}")
    for case in CASES:
        results = []
        for mode in MODES:
            client, server, kept = pair(mode)
            results.append(str(case(client, server)))
            for end in (client, server):
                end.close()
            for descriptor in kept:
                os.close(descriptor)
        print(f"{case.__doc__:<62}{results[0]:>12}{results[1]:>14}{results[2]:>12}")
