//! A kernel without memory for a map's entries. The process moves between cgroups for that, so the test is alone here. Needs
//! root.

#![expect(clippy::expect_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use culvert::bpf::{Kernel, Scratch};
use culvert::model::Desired;
use culvert_common::{Workload, flags};

/// A mesh of so many remote pods.
fn pods(number: u32) -> Desired {
    let workload = Workload { identity: 16, class: 1, flags: flags::ENROLLED };
    let ip = |n| Ipv4Addr::from(0x0a00_0000 + n).into();
    Desired { workloads: (0..number).map(|n| (ip(n), workload)).collect(), ..Desired::default() }
}

/// Entries of `workloads`.
fn entries(kernel: &Kernel) -> usize {
    let all = kernel.maps.usage().expect("the maps can be read");
    all.iter().find(|usage| usage.map == "workloads").expect("the map").entries
}

/// A cgroup whose kernel memory can be limited, in whichever hierarchy has memory.
struct Memory {
    dir: PathBuf,
    home: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl Memory {
    /// `None`: this machine does not let anybody limit memory.
    fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").expect("own cgroups");
        let v1 = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.to_owned()));
        let v2 = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
        let (root, home, limit, usage) = match v1 {
            Some(home) => {
                (Path::new("/sys/fs/cgroup/memory"), home, "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            None => {
                let root = Path::new("/sys/fs/cgroup");
                fs::write(root.join("cgroup.subtree_control"), "+memory").ok()?;
                (root, v2, "memory.max", "memory.current")
            }
        };
        let dir = root.join(format!("culvert-room-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        Some(Self { dir, home: root.join(home.trim_start_matches('/')), limit, usage })
    }

    /// Moves this process.
    fn enter(dir: &Path) {
        fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).expect("the process moves");
    }

    /// Leaves so much room beside what is used, in bytes.
    fn leave_room(&self, bytes: u64) {
        let used = fs::read_to_string(self.dir.join(self.usage)).expect("usage");
        let used: u64 = used.trim().parse().expect("a number");
        fs::write(self.dir.join(self.limit), (used + bytes).to_string()).expect("the limit");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        Self::enter(&self.home);
        let _ = fs::remove_dir(&self.dir);
    }
}

#[test]
fn want_of_kernel_memory_stops_the_change_and_passes() {
    let Some(memory) = Memory::new() else {
        eprintln!("skipped: no cgroup with a memory limit can be made here");
        return;
    };
    let scratch = Scratch::new("memory").expect("a cgroup and a bpffs");
    // Maps are charged to the cgroup of whoever made them.
    Memory::enter(&memory.dir);
    let kernel = Kernel::load(&scratch.config()).expect("the programs load");
    Memory::enter(&memory.home);
    memory.leave_room(1 << 20);
    kernel.maps.sync_before(&pods(1000)).expect("a few fit");
    let error = kernel.maps.sync_before(&pods(200_000)).expect_err("there is no memory for so many");
    assert_eq!(
        error.to_string(),
        "BPF map workloads: cannot write entry: Cannot allocate memory (os error 12)"
    );
    assert!(entries(&kernel) >= 1000, "what was there stays");
    memory.leave_room(1 << 30);
    // The kernel fetches memory for maps in advance: the first try only makes it fetch some.
    let tries = (0..100).map(|_| kernel.maps.sync_before(&pods(200_000)));
    let synced = tries.flatten().next().expect("with memory it goes on");
    assert!(synced.short.is_empty());
    assert_eq!(entries(&kernel), 200_000);
}
