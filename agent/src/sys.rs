//! System calls that need care: everything that enters a network namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

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
