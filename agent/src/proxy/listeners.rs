//! The agent's listeners inside a pod's network namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use culvert_common::{HBONE_PORT, OUTBOUND_PORT};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::AttachReusePortCbpf;
use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::congestion::{begins_near, has_no_network};
use crate::sys::{in_netns, keepalive};

const BACKLOG: i32 = 1024;

/// Listening, non-blocking sockets of one pod for one thread, for [`super::serve_pod`].
#[derive(Debug, Default)]
pub struct PodListeners {
    /// Where the kernel leads the apps' connections: loopback of each family that the pod has.
    pub outbound: Vec<TcpListener>,
    /// HBONE: one socket, for both families.
    pub inbound: Vec<TcpListener>,
}

/// Opens `127.0.0.1:15001`, `[::1]:15001` and `[::]:15008` in `netns`, once for each of `threads`: the kernel deals connections out
/// to them. A pod without IPv6 gets `127.0.0.1:15001` and `0.0.0.0:15008`.
pub fn open(netns: &impl AsFd, threads: usize) -> io::Result<Vec<PodListeners>> {
    let outbound = [(Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into(), (Ipv6Addr::LOCALHOST, OUTBOUND_PORT).into()];
    open_at(netns, &outbound, (Ipv6Addr::UNSPECIFIED, HBONE_PORT).into(), threads)
}

/// [`open`] at addresses of the caller's choice; IPv6 ones are left out, or fall back to 0.0.0.0, where there is no IPv6.
pub fn open_at(
    netns: &impl AsFd,
    outbound: &[SocketAddr],
    inbound: SocketAddr,
    threads: usize,
) -> io::Result<Vec<PodListeners>> {
    in_netns(netns, || {
        let mut sets: Vec<PodListeners> = (0..threads.max(1)).map(|_| PodListeners::default()).collect();
        for &address in outbound {
            match listen(address, sets.len()) {
                Ok(listeners) => {
                    sets.iter_mut().zip(listeners).for_each(|(set, listener)| set.outbound.push(listener));
                }
                Err(error) if address.is_ipv6() && no_ipv6(&error) => {
                    tracing::debug!(%address, %error, "the pod has no IPv6 loopback");
                }
                Err(error) => return Err(explain(address, &error)),
            }
        }
        let listeners = match listen(inbound, sets.len()) {
            Err(error) if inbound.is_ipv6() && no_ipv6(&error) => {
                let address = (Ipv4Addr::UNSPECIFIED, inbound.port()).into();
                listen(address, sets.len()).map_err(|error| explain(address, &error))?
            }
            result => result.map_err(|error| explain(inbound, &error))?,
        };
        sets.iter_mut().zip(listeners).for_each(|(set, listener)| set.inbound.push(listener));
        Ok(sets)
    })
}

/// `count` sockets that share `address`; for port 0 all have the port that the first one is given.
fn listen(mut address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    if count > 1 {
        // A program of the same user that shares its port would be given some of the mesh's connections: this one does not share.
        let alone = bind(address, false)?;
        address.set_port(alone.local_addr()?.as_socket().map_or(address.port(), |bound| bound.port()));
    }
    let listeners =
        (0..count).map(|_| listen_on(bind(address, count > 1)?)).collect::<io::Result<Vec<_>>>()?;
    if count > 1 && address.ip().is_loopback() {
        deal_by_processor(&listeners);
    }
    Ok(listeners)
}

/// What apps of one processor open goes to one thread: that of an app is warm for the next one too. Otherwise the kernel deals by a
/// hash of the ports, as it does on failure.
fn deal_by_processor(listeners: &[TcpListener]) {
    const SKF_AD_CPU: i32 = libc::SKF_AD_OFF + libc::SKF_AD_CPU;
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, SKF_AD_CPU as u32),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, listeners.len() as u32),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let Some(last) = listeners.last() else { return };
    if let Err(error) = setsockopt(last, AttachReusePortCbpf, &program) {
        tracing::debug!(%error, "connections are not dealt to threads by processor");
    }
}

fn listen_on(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_tcp_nodelay(true)?; // accepted sockets inherit this and the next ones
    socket.set_tcp_keepalive(&keepalive())?;
    if address.ip().is_loopback() {
        has_no_network(&socket);
    } else {
        begins_near(&socket);
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn no_ipv6(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let hint = if error.kind() == io::ErrorKind::AddrInUse {
        ": a program in the pod (a sidecar, another mesh agent) uses the port that the mesh needs"
    } else {
        ""
    };
    io::Error::new(error.kind(), format!("cannot listen on {address} in the pod: {error}{hint}"))
}
