//! Privileges and mounts.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::Finding;
use crate::exec::{self, Show};
use crate::machine;

const BPFFS: &str = "/sys/fs/bpf";
/// Where cgroup v2 goes on a machine that uses v1 for its controllers.
const CGROUP_HYBRID: &str = "/sys/fs/cgroup/unified";

/// Capabilities that the agent needs, by their numbers in capabilities(7).
const CAPABILITIES: [(&str, u32); 4] =
    [("CAP_NET_ADMIN", 12), ("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];

pub(super) fn findings() -> Vec<Finding> {
    vec![privileges(), cgroup(), bpffs()]
}

fn privileges() -> Finding {
    let lacking: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(_, number)| !machine::has_capability(*number))
        .map(|(name, _)| *name)
        .collect();
    match (lacking.is_empty(), machine::is_root()) {
        (true, true) => Finding::ok("privileges", "root, with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"),
        (true, false) => {
            Finding::warn("privileges", "the agent can run; the lab needs root", "sudo -E cargo xtask check")
        }
        (false, _) => Finding::missing(
            "privileges",
            format!("no {}", lacking.join(", ")),
            "run as root, in the host's namespace",
        ),
    }
}

fn cgroup() -> Finding {
    match machine::mount_point("cgroup2") {
        Some(path) => Finding::ok("cgroup v2", format!("mounted at {}", path.display())),
        None => {
            Finding::missing("cgroup v2", "not mounted", format!("mount -t cgroup2 cgroup2 {CGROUP_HYBRID}"))
        }
    }
}

fn bpffs() -> Finding {
    match machine::mount_point("bpf") {
        Some(path) if path == Path::new(BPFFS) => Finding::ok("bpffs", format!("mounted at {BPFFS}")),
        Some(path) => {
            Finding::missing("bpffs", format!("mounted at {} only", path.display()), bpffs_command())
        }
        None => Finding::missing("bpffs", "not mounted", bpffs_command()),
    }
}

fn bpffs_command() -> String {
    format!("mount -t bpf bpf {BPFFS}")
}

/// Mounts cgroup v2 and bpffs where they are not mounted; says so.
pub(super) fn mount_what_is_missing() -> Result<()> {
    if machine::mount_point("cgroup2").is_none() {
        mount("cgroup2", CGROUP_HYBRID)?;
    }
    if machine::mount_point("bpf").is_none() {
        mount("bpf", BPFFS)?;
    }
    Ok(())
}

fn mount(kind: &str, path: &str) -> Result<()> {
    if !machine::is_root() {
        bail!("only root can run: mount -t {kind} {kind} {path}");
    }
    println!("Mounting {kind} at {path}");
    std::fs::create_dir_all(path)?;
    exec::run("mount", Command::new("mount").args(["-t", kind, kind, path]), Show::Nothing)?.ok("mount")?;
    Ok(())
}
