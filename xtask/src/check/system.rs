//! Privileges and mounts.

use super::Finding;
use crate::{machine, mounts};

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
        None => Finding::missing("cgroup v2", "not mounted", mounts::cgroup_remedy()),
    }
}

fn bpffs() -> Finding {
    if mounts::has_bpffs() {
        return Finding::ok("bpffs", format!("mounted at {}", mounts::BPFFS));
    }
    Finding::missing("bpffs", format!("not mounted at {}", mounts::BPFFS), mounts::bpffs_remedy())
}
