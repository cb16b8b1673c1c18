//! Looking after the limits: maps that fill up, and connections that found no room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::events::Untracked;
use crate::bpf::{Kernel, Short};
use crate::pods::{Ended, Pods};

/// How often.
pub(super) const ROUND: Duration = Duration::from_secs(1);
/// After how many looks maps that programs write are read.
const MAPS_EVERY: u32 = 10;

/// What was seen the last time.
pub(super) struct Limits {
    kernel: Arc<Kernel>,
    untracked: Arc<Untracked>,
    looks: u32,
    left: u64,
    high: BTreeSet<&'static str>,
    short: Vec<Short>,
}

impl Limits {
    pub(super) fn new(kernel: Arc<Kernel>, untracked: Arc<Untracked>) -> Self {
        Self { kernel, untracked, looks: 0, left: 0, high: BTreeSet::new(), short: Vec::new() }
    }

    /// To be called once in a while; returns connections that were ended because they had no entry.
    pub(super) fn look(&mut self, pods: &Pods) -> Vec<Ended> {
        if self.looks.is_multiple_of(MAPS_EVERY) {
            self.warn_of_full_maps();
        }
        self.looks = self.looks.wrapping_add(1);
        // Events may be on their way: what is left twice in a row has lost its event.
        let left = self.untracked.left(&self.kernel);
        let lost = left > 0 && left == self.left;
        self.left = left;
        if lost { self.compare(pods) } else { Vec::new() }
    }

    /// Ends what no entry stands for.
    pub(super) fn compare(&mut self, pods: &Pods) -> Vec<Ended> {
        let left = self.untracked.left(&self.kernel);
        match pods.compare_connections() {
            Ok(ended) => {
                self.untracked.settle(left);
                self.left = 0;
                ended
            }
            Err(error) => {
                tracing::error!(%error, "the pods' sockets cannot be compared with the kernel's table; trying again");
                Vec::new()
            }
        }
    }

    /// Says what has no room, when that is news. The closed state and the way out of it go together.
    pub(super) fn tell(&mut self, short: &[Short]) {
        let maps = |list: &[Short]| list.iter().map(|s| s.map).collect::<Vec<_>>();
        if maps(short) != maps(&self.short) {
            for Short { map, capacity, missing } in short {
                tracing::error!(
                    map,
                    capacity,
                    missing,
                    "a BPF map is full: what has no room in it is refused; start the agent with --map-entries {map}=N, N larger"
                );
            }
            if short.is_empty() {
                tracing::info!("the BPF maps have room for everything again");
            }
        }
        self.short = short.to_vec();
    }

    fn warn_of_full_maps(&mut self) {
        let usage = match self.kernel.maps.usage() {
            Ok(usage) => usage,
            Err(error) => {
                tracing::warn!(%error, "cannot tell how full the BPF maps are");
                return;
            }
        };
        let high: Vec<_> = usage.into_iter().filter(|usage| usage.high).collect();
        for usage in high.iter().filter(|usage| !self.high.contains(usage.map)) {
            tracing::warn!(
                map = usage.map,
                entries = usage.entries,
                capacity = usage.capacity,
                "a BPF map is nearly full; --map-entries {}=N gives it more room at the agent's next start",
                usage.map
            );
        }
        self.high = high.into_iter().map(|usage| usage.map).collect();
    }
}
