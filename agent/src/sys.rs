//! System calls that need care: everything that enters a network namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sched::{CloneFlags, setns};

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
