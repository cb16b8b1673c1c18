//! Whether the programs are still where this agent has put them. Whoever may load programs can detach or replace them, and whoever
//! may write to the bpffs can remove their pins; nothing tells the agent.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::link::{AttachType, programs_at};
use super::load::{ADMIT, Kernel, NODE_PROGRAMS, lock};

impl Kernel {
    /// What is no longer attached, or would not outlive this agent: one sentence for each, empty when all is well.
    pub fn detached(&self) -> Vec<String> {
        let mut found = Vec::new();
        let cgroup = File::open(&self.cgroup);
        let links = self.pins().join("links");
        for (name, kind, pin) in NODE_PROGRAMS {
            let at = cgroup.as_ref().map_err(|error| io::Error::from(error.kind()));
            let place = self.cgroup.display().to_string();
            found.extend(at.map_or_else(
                |error| Some(format!("cgroup {place}: {error}")),
                |cgroup| missing((name, self.own_id(name)), kind, cgroup.as_raw_fd(), &place),
            ));
            found.extend(unpinned(name, &links.join(pin)));
        }
        let admit = (ADMIT, self.own_id(ADMIT));
        for (cookie, pod) in lock(&self.pods).iter() {
            let place = format!("network namespace {cookie}");
            found.extend(missing(admit, AttachType::SkLookup, pod.netns.as_raw_fd(), &place));
            found.extend(unpinned(ADMIT, &links.join(format!("admit-{cookie}"))));
        }
        found.sort();
        found
    }

    fn own_id(&self, name: &str) -> Option<u32> {
        lock(&self.programs).program(name)?.info().ok().map(|info| info.id())
    }
}

fn missing((name, own): (&str, Option<u32>), kind: AttachType, target: i32, place: &str) -> Option<String> {
    let there = match programs_at(target as u32, kind, false) {
        Ok(ids) => own.is_some_and(|own| ids.contains(&own)),
        Err(error) => return Some(format!("BPF program {name} at {place}: {error}")),
    };
    (!there).then(|| format!("BPF program {name} is no longer attached to {place}: restart the agent"))
}

fn unpinned(name: &str, pin: &std::path::Path) -> Option<String> {
    let gone = !pin.exists();
    gone.then(|| {
        format!("BPF program {name} ends with this agent, {} is gone: restart the agent", pin.display())
    })
}
