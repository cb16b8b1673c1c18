//! Processes inside namespaces and cgroups. `unsafe` is fenced here: what runs between fork and exec.
#![allow(unsafe_code, reason = "pre_exec, for processes that start inside namespaces")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;

/// Where a process is to run.
#[derive(Default)]
pub(crate) struct Place {
    /// Network namespace.
    pub(crate) netns: Option<PathBuf>,
    /// cgroup directory.
    pub(crate) cgroup: Option<PathBuf>,
    /// Files to put over others, in a mount namespace of the process's own: (file, over what).
    pub(crate) mounts: Vec<(PathBuf, &'static str)>,
    /// Whether the process dies with the thread that starts it.
    pub(crate) dies_with_parent: bool,
}

/// Makes `command` start in `place`.
pub(crate) fn put(command: &mut Command, place: &Place) -> io::Result<()> {
    let netns = place.netns.as_deref().map(File::open).transpose()?;
    let procs = match &place.cgroup {
        Some(dir) => Some(File::options().write(true).open(dir.join("cgroup.procs"))?),
        None => None,
    };
    let mut mounts = Vec::new();
    for (file, over) in &place.mounts {
        mounts.push((c_path(file)?, c_path(Path::new(over))?));
    }
    let dies = place.dies_with_parent;
    // SAFETY: between fork and exec only system calls on values made before the fork: no allocation, no locks.
    unsafe {
        command.pre_exec(move || {
            // A lab handles signals in a thread of its own; what it starts must not inherit that.
            SigSet::empty().thread_set_mask()?;
            if dies && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(procs) = &procs
                && libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1
            {
                return Err(io::Error::last_os_error());
            }
            if let Some(netns) = &netns {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
            }
            if !mounts.is_empty() {
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(None, c"/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
                for (file, over) in &mounts {
                    mount(Some(file), over, MsFlags::MS_BIND)?;
                }
            }
            Ok(())
        });
    }
    Ok(())
}

fn mount(source: Option<&CString>, target: &std::ffi::CStr, flags: MsFlags) -> nix::Result<()> {
    let none: Option<&std::ffi::CStr> = None;
    nix::mount::mount(source.map(CString::as_c_str), target, none, flags, none)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Runs `f` in a thread inside the network namespace.
pub(crate) fn in_netns<T: Send>(netns: &Path, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let netns: OwnedFd = File::open(netns)?.into();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            f()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace panicked")))
    })
}
