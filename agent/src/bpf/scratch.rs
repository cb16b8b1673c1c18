//! A place of its own in the kernel for a test or a bench.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Capacities, KernelConfig, PIN_ROOT, remove_pins};
use crate::sys;

const PREFIX: &str = "scratch-";

/// A cgroup and a pin directory. Both go with it; what a killed process left goes with the next one's start.
#[derive(Debug)]
pub struct Scratch {
    /// Whose processes the programs see.
    pub cgroup: PathBuf,
    /// Where programs, links and maps are pinned.
    pub pins: PathBuf,
}

impl Scratch {
    /// Makes both, and mounts a bpffs where there is none. `name` tells it from others of this process. Needs root.
    ///
    /// # Errors
    ///
    /// There is no cgroup v2, no bpffs, or no permission.
    pub fn new(name: &str) -> io::Result<Self> {
        sys::mount_bpffs()?;
        let cgroups = sys::cgroup2_mount()?;
        sweep(&cgroups);
        let name = format!("{PREFIX}{name}-{}", std::process::id());
        let (cgroup, pins) = (cgroups.join(&name), Path::new(PIN_ROOT).join(name));
        fs::create_dir(&cgroup)?;
        Ok(Self { cgroup, pins })
    }

    /// Settings under which no process is the node's or the agent's.
    pub fn config(&self) -> KernelConfig {
        KernelConfig {
            pins: self.pins.clone(),
            cgroup: self.cgroup.clone(),
            host_netns: 1,
            agent_cgroup: 1,
            same_node_tunnel: false,
            clsact_guard: false,
            capacities: Capacities::default(),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.cgroup, &self.pins);
    }
}

fn remove(cgroup: &Path, pins: &Path) {
    // The next one tries again.
    let _ = remove_pins(pins);
    let _ = fs::remove_dir(cgroup);
}

/// Removes what processes that are no more have left.
fn sweep(cgroups: &Path) {
    let listed = [cgroups, Path::new(PIN_ROOT)].map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    for name in listed.into_iter().flatten().map(|entry| entry.file_name()) {
        let owner = name
            .to_str()
            .and_then(|name| name.trim_end_matches('~').strip_prefix(PREFIX)?.rsplit('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&cgroups.join(&name), &Path::new(PIN_ROOT).join(&name));
        }
    }
}
