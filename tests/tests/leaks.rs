//! Pods that join and leave again and again leave nothing in the agent and in the kernel. Needs root.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test's helpers say what they expect by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");
const PODS: usize = 3;
/// Cycles before the first look, and between the looks; `CULVERT_LEAK_CYCLES` asks for more.
const WARM_UP: usize = 10;
const CYCLES: usize = 40;
/// What the memory of the agent may have grown by, in KiB: freed memory is not given back at once.
const ROOM: u64 = 4096;

/// A lab of one node, from the outside: its files, its pins, its agent's process.
struct Lab {
    name: String,
    manifests: PathBuf,
    pins: PathBuf,
    agent: PathBuf,
}

impl Lab {
    fn up() -> Self {
        let name = format!("leak{}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scenario.yaml");
        let pods: String = (0..PODS).map(|n| format!("- {{pod: shop/p{n}, node: n1}}\n")).collect();
        let namespace = "apiVersion: v1\n    kind: Namespace\n    metadata: {name: shop}";
        let text =
            format!("name: leaks\nnodes: [n1]\nmanifests:\n- inline: |\n    {namespace}\npods:\n{pods}");
        fs::write(&file, text).unwrap();
        let culvert = culvert_lab::lab::agent_beside(LAB).unwrap();
        let mut up = Command::new(LAB);
        let up = up.args(["up", "--name", &name, "--culvert"]).arg(culvert).arg(file);
        let up = up.output().expect("culvert-lab starts");
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        let instance = format!("lab-{name}-n1");
        let lock =
            fs::read_to_string(format!("/run/culvert/{instance}/agent.lock")).expect("the agent's lock");
        Self {
            manifests: Path::new("/run/culvert-lab").join(&name).join("manifests"),
            pins: Path::new("/sys/fs/bpf/culvert").join(instance),
            agent: Path::new("/proc").join(lock.trim()),
            name,
        }
    }

    /// Labels the namespace or not, and waits until the kernel has it.
    fn enrol(&self, ambient: bool) {
        let labels = if ambient { r#", "labels": {"istio.io/dataplane-mode": "ambient"}"# } else { "" };
        let text =
            format!(r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "shop"{labels}}}}}"#);
        let half = self.manifests.join(".half");
        fs::write(&half, text).unwrap();
        fs::rename(half, self.manifests.join("namespace__shop.json")).unwrap();
        let wanted = if ambient { PODS } else { 0 };
        let begun = Instant::now();
        while self.links("admit-") != wanted || self.links("guard-") != wanted {
            let links = fs::read_dir(self.pins.join("links")).unwrap().flatten().map(|e| e.file_name());
            assert!(begun.elapsed() < Duration::from_secs(20), "{ambient}: {:?}", links.collect::<Vec<_>>());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn links(&self, prefix: &str) -> usize {
        let links = fs::read_dir(self.pins.join("links")).unwrap().flatten();
        links.filter(|link| link.file_name().to_string_lossy().starts_with(prefix)).count()
    }

    /// How many of each there are.
    fn holds(&self) -> BTreeMap<String, usize> {
        let mut held = BTreeMap::from([
            ("descriptors".to_owned(), fs::read_dir(self.agent.join("fd")).unwrap().count()),
            ("links".to_owned(), self.links("")),
        ]);
        for map in
            ["pods", "guards", "workloads", "policy", "sources", "identities", "admitted", "connections"]
        {
            let mut bpftool = Command::new("bpftool");
            let dump = bpftool.args(["-j", "map", "dump", "pinned"]).arg(self.pins.join(map)).output();
            let dump = dump.expect("bpftool");
            let entries = String::from_utf8_lossy(&dump.stdout).matches("\"formatted\"").count();
            held.insert(format!("map {map}"), entries);
        }
        held
    }

    /// Resident memory of the agent, KiB.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(self.agent.join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(LAB).args(["down", &self.name]).output();
    }
}

#[test]
fn pods_that_come_and_go_leave_nothing() {
    let cycles = std::env::var("CULVERT_LEAK_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(CYCLES);
    let lab = Lab::up();
    let cycle = |times: usize| {
        for _ in 0..times {
            lab.enrol(true);
            lab.enrol(false);
        }
        // Listeners of pods that left are still there for a moment, for the other nodes to hear of it.
        std::thread::sleep(Duration::from_millis(1500));
    };
    cycle(WARM_UP);
    let (before, memory) = (lab.holds(), lab.memory());
    cycle(cycles);
    let (after, grown) = (lab.holds(), lab.memory().saturating_sub(memory));
    println!("{} enrolments: {after:?}, {grown} KiB more", cycles * PODS);
    assert_eq!(before, after);
    assert!(grown < ROOM, "{grown} KiB more after {cycles} cycles");
}
