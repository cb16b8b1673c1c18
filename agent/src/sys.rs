//! System calls that need care: everything that enters a network namespace.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::libc;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Runs `f` with the calling thread inside the network namespace `netns`, then returns the thread to where it was.
///
/// Sockets made by `f` stay in that namespace for good. `f` must not await or spawn. If the way back fails the thread
/// is lost to the wrong namespace, so the process aborts rather than serve one pod's traffic in another's.
pub fn in_netns<T>(netns: impl AsFd, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = File::open("/proc/thread-self/ns/net")?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    let result = f();
    if let Err(error) = setns(&home, CloneFlags::CLONE_NEWNET) {
        tracing::error!(%error, "cannot leave a pod's network namespace; giving up");
        std::process::abort();
    }
    result
}

/// Where cgroup v2 is mounted.
///
/// # Errors
///
/// When it is not, with the command that mounts it.
pub fn cgroup2_mount() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        tail.starts_with("cgroup2 ").then(|| head.split(' ').nth(4)).flatten()
    });
    mount.map(PathBuf::from).ok_or_else(|| {
        io::Error::other("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
    })
}

/// Mounts a bpffs at `/sys/fs/bpf` when there is none.
///
/// # Errors
///
/// When mounting fails: usually for want of privileges.
pub fn mount_bpffs() -> io::Result<()> {
    let path = "/sys/fs/bpf";
    if nix::sys::statfs::statfs(path)?.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    let none: Option<&str> = None;
    nix::mount::mount(Some("bpffs"), path, Some("bpf"), nix::mount::MsFlags::empty(), none)?;
    Ok(())
}

/// The cgroup v2 directory of this process.
///
/// # Errors
///
/// When cgroup v2 is not mounted.
pub fn own_cgroup() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    Ok(cgroup2_mount()?.join(path))
}

/// The wall-clock moment at which CLOCK_MONOTONIC was zero, for the time stamps of kernel events.
pub fn boot_time() -> SystemTime {
    let monotonic = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
    SystemTime::now().checked_sub(monotonic.unwrap_or_default()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Cookie of a network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
///
/// When the namespace cannot be entered or the kernel does not know the option.
pub fn netns_cookie(netns: impl AsFd) -> io::Result<u64> {
    let socket = in_netns(netns, || Socket::new(Domain::IPV4, Type::DGRAM, None))?;
    cookie_of(&socket)
}

/// Cookie of this process's own network namespace.
///
/// # Errors
///
/// As [`netns_cookie`].
pub fn own_netns_cookie() -> io::Result<u64> {
    cookie_of(&Socket::new(Domain::IPV4, Type::DGRAM, None)?)
}

#[allow(unsafe_code, reason = "no safe wrapper knows SO_NETNS_COOKIE")]
fn cookie_of(socket: &Socket) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length describe a live u64, which is what the option writes.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut length)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A TCP socket inside `netns`, bound to `local` (port 0: any), ready for tokio.
///
/// # Errors
///
/// When the namespace cannot be entered or the address cannot be bound.
pub fn tcp_socket_in(netns: impl AsFd, local: SocketAddr) -> io::Result<TcpSocket> {
    let socket = in_netns(netns, || {
        let socket = Socket::new(Domain::for_address(local), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&local.into())?;
        Ok(socket)
    })?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Options of every long-lived data connection: no Nagle, and keepalive as ztunnel sets it (180 s, 180 s, 9 times).
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let interval = Duration::from_secs(180);
    let keepalive = TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(9);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Makes closing `stream` send RST instead of FIN: the other end learns that the connection failed.
pub fn reset_on_close(stream: &TcpStream) {
    // A socket that refuses the option is broken already; closing it is all that is left.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
