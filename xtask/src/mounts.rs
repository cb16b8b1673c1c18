//! The file systems that Culvert needs mounted: cgroup v2 and bpffs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::exec::{self, Show};
use crate::machine;

/// Where bpffs is expected; pins go below it.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// Where cgroup v2 goes on a machine that keeps v1 for its controllers.
const CGROUP_HYBRID: &str = "/sys/fs/cgroup/unified";

/// Is bpffs where it is expected?
pub(crate) fn has_bpffs() -> bool {
    machine::is_mounted("bpf", Path::new(BPFFS))
}

/// The command that mounts bpffs.
pub(crate) fn bpffs_remedy() -> String {
    remedy("bpf", BPFFS)
}

/// The command that mounts cgroup v2.
pub(crate) fn cgroup_remedy() -> String {
    remedy("cgroup2", CGROUP_HYBRID)
}

/// As root, mounts what is not mounted, and says so. For others there is nothing to do but to tell, which `check` does.
pub(crate) fn ensure() -> Result<()> {
    if !machine::is_root() {
        return Ok(());
    }
    if machine::mount_point("cgroup2").is_none() {
        mount("cgroup2", CGROUP_HYBRID)?;
    }
    if !has_bpffs() {
        mount("bpf", BPFFS)?;
    }
    Ok(())
}

fn mount(kind: &str, path: &str) -> Result<()> {
    println!("Mounting {kind} at {path}");
    fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))?;
    exec::run("mount", Command::new("mount").args(["-t", kind, kind, path]), Show::Nothing)?
        .ok(&remedy(kind, path))?;
    Ok(())
}

fn remedy(kind: &str, path: &str) -> String {
    format!("mount -t {kind} {kind} {path}")
}
