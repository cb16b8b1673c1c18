//! System calls that need care: everything that enters a network namespace.

pub mod congestion;
pub(crate) mod files;
pub mod memory;
pub mod netfilter;
pub mod netlink;
pub mod rtnetlink;

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpSocket;

/// Runs `f` with the calling thread inside the network namespace `netns`, then returns the thread to where it was.
///
/// Sockets made by `f` stay in that namespace for good. `f` must not await or spawn. If the way back fails the thread
/// is lost to the wrong namespace, so the process aborts rather than serve one pod's traffic in another's.
pub fn in_netns<T>(netns: impl AsFd, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // Taken: were `f` to come here again, its way back would be to where it is.
    let home = match HOME.take() {
        Some(home) => home,
        None => File::open("/proc/thread-self/ns/net")?,
    };
    let entered = setns(netns, CloneFlags::CLONE_NEWNET);
    let result = entered.map_err(io::Error::from).and_then(|()| {
        let result = f();
        if let Err(error) = setns(&home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a pod's network namespace; giving up");
            std::process::abort();
        }
        result
    });
    HOME.set(Some(home));
    result
}

thread_local! {
    /// The calling thread's own network namespace, once it has left it: to look it up costs more than the visit.
    static HOME: Cell<Option<File>> = const { Cell::new(None) };
}

/// As many open files as the system lets this process have: a tunnel is one descriptor, and a peer's connection another.
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The cookie of the network namespace `netns`: the number by which BPF programs know it (`SO_NETNS_COOKIE`, since
/// Linux 5.14). Stable for the life of the namespace, unique until reboot.
pub fn netns_cookie(netns: impl AsFd) -> io::Result<u64> {
    let socket = in_netns(netns, || Socket::new(Domain::UNIX, Type::DGRAM, None))?;
    socket_netns_cookie(&socket)
}

/// The cookie of the network namespace that `socket` belongs to.
#[expect(unsafe_code, reason = "no safe binding of SO_NETNS_COOKIE exists")]
pub fn socket_netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the length of the call, and the kernel writes at most `length` bytes, which is
    // the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A TCP socket of `netns` bound to `address`, with port 0 to one that the kernel chooses: non-blocking, without Nagle's delay.
/// `to_app`: it is to connect to an app of that namespace, and may take a port whose last connection is in TIME_WAIT.
pub fn tcp_socket(netns: impl AsFd, address: SocketAddr, to_app: bool) -> io::Result<TcpSocket> {
    let socket = in_netns(netns, || {
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
    })?;
    socket.set_tcp_nodelay(true)?;
    if to_app {
        socket.set_reuse_address(true)?;
        congestion::has_no_network(&socket);
    } else {
        congestion::begins_near(&socket);
    }
    socket.bind(&address.into())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// What connections to other machines use: 180 s, 180 s, 9 times, as ztunnel. Of an app in a pod of this node the kernel knows when
/// it is gone.
pub fn keepalive() -> TcpKeepalive {
    let period = Duration::from_secs(180);
    TcpKeepalive::new().with_time(period).with_interval(period).with_retries(9)
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
    SystemTime::now().checked_sub(since_boot()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns()`.
pub fn since_boot() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Processor time that this process has used so far, user and system, of all threads.
pub fn processor_time() -> Option<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    u64::try_from(micros).ok().map(Duration::from_micros)
}

/// Waits for a moment; for good when there is none.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Cookie of this process's own network namespace.
///
/// # Errors
///
/// As [`netns_cookie`].
pub fn own_netns_cookie() -> io::Result<u64> {
    socket_netns_cookie(Socket::new(Domain::UNIX, Type::DGRAM, None)?)
}

/// `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie() {
        let netns = File::open("/proc/self/ns/net").unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = netns_cookie(&netns).unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(cookie, socket_netns_cookie(&socket).unwrap());
    }
}
