//! What an agent holds, and whether that is too much.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::lab::Lab;

/// Maps whose entries must not be left behind. Those of the first list are empty when nobody connects.
const TRANSIENT: [&str; 4] = ["admitted", "original_dst", "original_src", "connections"];
const LASTING: [&str; 5] = ["pods", "guards", "workloads", "policy", "sources"];
/// What an agent may hold more than at first: HBONE connections that wait to be used again, each with one descriptor.
const SPARE_DESCRIPTORS: u64 = 40;
/// While connections come and go.
const BUSY_DESCRIPTORS: u64 = 600;
const BUSY_ENTRIES: u64 = 400;
/// KiB. Freed memory is not given back at once.
const SPARE_MEMORY: u64 = 48 << 10;

/// What the agent of one node holds: things by name, and memory in KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) held: BTreeMap<String, u64>,
}

impl Health {
    /// Looks at the agent of `node`.
    pub(crate) fn of(lab: &Lab, node: &str) -> Result<Self> {
        let process = Path::new("/proc").join(lab.agent_pid(node)?.to_string());
        let pins = Path::new("/sys/fs/bpf/culvert").join(lab.instance(node));
        let count = |path: &Path| -> Result<u64> {
            Ok(fs::read_dir(path).with_context(|| format!("{}", path.display()))?.count() as u64)
        };
        let status = fs::read_to_string(process.join("status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let mut held = BTreeMap::from([
            ("descriptors".to_owned(), count(&process.join("fd"))?),
            ("links".to_owned(), count(&pins.join("links"))?),
            ("memory".to_owned(), memory.and_then(|kib| kib.parse().ok()).context("VmRSS")?),
        ]);
        for map in TRANSIENT.iter().chain(&LASTING) {
            held.insert(format!("map {map}"), entries(&pins.join(map))?);
        }
        Ok(Self { held })
    }

    fn get(&self, name: &str) -> u64 {
        self.held.get(name).copied().unwrap_or(0)
    }

    /// What is too much after a run that came back to where it began; nobody connects now.
    pub(crate) fn leaks(&self, before: &Self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut most = |name: String, most: u64| {
            let held = self.get(&name);
            if held > most {
                wrong.push(format!("{name}: {held}, at first {}", before.get(&name)));
            }
        };
        most("descriptors".to_owned(), before.get("descriptors") + SPARE_DESCRIPTORS);
        most("memory".to_owned(), before.get("memory") + SPARE_MEMORY);
        TRANSIENT.iter().for_each(|map| most(format!("map {map}"), 0));
        for name in LASTING.iter().map(|map| format!("map {map}")).chain(["links".to_owned()]) {
            if self.get(&name) != before.get(&name) {
                wrong.push(format!("{name}: {}, at first {}", self.get(&name), before.get(&name)));
            }
        }
        wrong
    }

    /// What is too much while the run goes on.
    pub(crate) fn excess(&self, before: &Self) -> Vec<String> {
        let mut limits = vec![("descriptors".to_owned(), BUSY_DESCRIPTORS)];
        limits.push(("memory".to_owned(), before.get("memory") + SPARE_MEMORY));
        limits.push(("links".to_owned(), before.get("links") + 2)); // a guest's
        limits.extend(TRANSIENT.iter().map(|map| (format!("map {map}"), BUSY_ENTRIES)));
        let over = limits.into_iter().filter(|(name, most)| self.get(name) > *most);
        over.map(|(name, most)| format!("{name}: {}, more than {most}", self.get(&name))).collect()
    }
}

fn entries(map: &Path) -> Result<u64> {
    let dump = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map).output();
    let dump = dump.context("starting bpftool")?;
    anyhow::ensure!(
        dump.status.success(),
        "bpftool map dump pinned {}: {}",
        map.display(),
        String::from_utf8_lossy(&dump.stdout)
    );
    Ok(String::from_utf8_lossy(&dump.stdout).matches("\"formatted\"").count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_is_a_leak() {
        let held = |changes: &[(&str, u64)]| {
            let mut held = BTreeMap::from(
                [("descriptors", 50), ("links", 9), ("memory", 30_000), ("map pods", 4)]
                    .map(|(n, v)| (n.to_owned(), v)),
            );
            held.extend(changes.iter().map(|(n, v)| ((*n).to_owned(), *v)));
            Health { held }
        };
        let before = held(&[]);
        assert!(held(&[("descriptors", 60), ("memory", 40_000)]).leaks(&before).is_empty());
        for leak in [
            ("descriptors", 91),
            ("links", 10),
            ("links", 8),
            ("memory", 90_000),
            ("map pods", 5),
            ("map admitted", 1),
            ("map original_dst", 1),
            ("map original_src", 1),
            ("map connections", 1),
        ] {
            assert_eq!(held(&[leak]).leaks(&before).len(), 1, "{leak:?}");
        }
        assert_eq!(held(&[("map admitted", 9), ("links", 11)]).excess(&before), Vec::<String>::new());
        for excess in [("map admitted", 500), ("links", 12), ("descriptors", 700), ("memory", 90_000)] {
            assert_eq!(held(&[excess]).excess(&before).len(), 1, "{excess:?}");
        }
    }
}
