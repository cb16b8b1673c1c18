//! What an agent needs of the machine.

use std::path::Path;

use super::finding::Finding;
use crate::{bpf, sys};

/// Capabilities that the agent needs, by their numbers in capabilities(7).
const CAPABILITIES: [(&str, u32); 4] =
    [("CAP_NET_ADMIN", 12), ("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn findings() -> Vec<Finding> {
    vec![privileges(), kernel(), source_guard(), btf(), cgroup(), bpffs()]
}

fn privileges() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(_, bit)| held & (1 << bit) == 0).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        return Finding::ok("privileges", "CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE");
    }
    Finding::error(
        "privileges",
        format!("no {}", lacking.join(", ")),
        "run as root on the node; in a cluster `privileged: true` in the DaemonSet, as deploy/ has it",
    )
}

fn kernel() -> Finding {
    match bpf::lacking() {
        None => Finding::ok("kernel", format!("Linux {} has all that Culvert needs", release())),
        Some(lacking) => Finding::error("kernel", lacking, "a newer kernel; docs/kernel.md has the table"),
    }
}

fn source_guard() -> Finding {
    if bpf::has_tcx() {
        return Finding::ok("tcx", "the source guard is a link, before other programs on an interface");
    }
    Finding::ok("tcx", "not in this kernel (Linux 6.6): the source guard is a filter at clsact instead")
}

fn btf() -> Finding {
    if Path::new(BTF).exists() {
        return Finding::ok("BTF", BTF);
    }
    Finding::warning(
        "BTF",
        format!("no {BTF}: `bpftool map dump` shows numbers only"),
        "a kernel with CONFIG_DEBUG_INFO_BTF",
    )
}

fn cgroup() -> Finding {
    match sys::cgroup2_mount() {
        Ok(path) => Finding::ok("cgroup v2", format!("mounted at {}", path.display())),
        Err(error) => Finding::error(
            "cgroup v2",
            error.to_string(),
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
        ),
    }
}

fn bpffs() -> Finding {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some("/sys/fs/bpf") && words.next() == Some("bpf")
    });
    if mounted {
        return Finding::ok("bpffs", "mounted at /sys/fs/bpf");
    }
    Finding::warning(
        "bpffs",
        "not mounted at /sys/fs/bpf: an agent mounts it, but in a container that mount ends with it",
        "mount -t bpf none /sys/fs/bpf on the node",
    )
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
