//! What should be in the maps, and the order in which it gets there.
//!
//! A policy class never changes its meaning: a changed policy is a new class. So its rows are written first, then the
//! workloads are pointed at them one by one (each an atomic replacement), then what nobody points at is removed. No reader ever sees half a policy.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::sync::Mutex;

use culvert_common::{Service, ServiceKey};

use super::load::lock;
use super::maps::{Maps, Mirror, Store};
use crate::model::Desired;

/// How many entries a synchronisation wrote and removed.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct SyncStats {
    /// Entries added or replaced.
    pub written: usize,
    /// Entries removed.
    pub removed: usize,
}

impl Maps {
    /// Everything that must be there before workloads and pods may refer to it: names, policy rows, backends.
    pub fn sync_before(&self, desired: &Desired) -> io::Result<SyncStats> {
        let mut stats = SyncStats::default();
        // These two are for the reader of a dump: without room for a name enforcement goes on.
        stats.written += legible(upsert(&self.identities, "identities", &desired.identities));
        stats.written += legible(upsert(&self.policy_names, "policy_names", &desired.policy_names));
        self.add_notes(&desired.notes)
            .map_err(|error| io::Error::other(format!("BPF map notes: cannot write entry: {error}")))?;
        stats.written += upsert(&self.policy, "policy", &desired.policy)?;
        stats.written += upsert(&self.sources, "sources", &desired.sources)?;
        stats.written += upsert(&self.workloads, "workloads", &desired.workloads)?;
        self.shrink_services(desired)?;
        stats.written += upsert(&self.backends, "backends", &desired.backends)?;
        stats.written += upsert(&self.services, "services", &desired.services)?;
        Ok(stats)
    }

    /// Removes what nothing refers to any more; after the pods have been pointed at the new state.
    pub fn sync_after(&self, desired: &Desired) -> io::Result<SyncStats> {
        let removed = prune(&self.services, &desired.services)?
            + prune(&self.workloads, &desired.workloads)?
            + prune(&self.backends, &desired.backends)?
            + prune(&self.sources, &desired.sources)?
            + prune(&self.policy, &desired.policy)?
            + prune(&self.identities, &desired.identities)?
            + prune(&self.policy_names, &desired.policy_names)?;
        Ok(SyncStats { written: 0, removed })
    }

    /// A service that loses backends must not be seen with more slots than are meant for it.
    fn shrink_services(&self, desired: &Desired) -> io::Result<()> {
        let mut services = lock(&self.services);
        let smaller = |(key, wanted): &(&ServiceKey, &Service)| {
            services.known().get(*key).is_some_and(|current| wanted.backends < current.backends)
        };
        let shrinking: Vec<_> = desired.services.iter().filter(smaller).collect();
        for (key, wanted) in shrinking {
            services.put(key, wanted).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn legible(written: io::Result<usize>) -> usize {
    written.unwrap_or_else(|error| {
        tracing::warn!(%error, "a dump of the maps will show numbers where a name should be");
        0
    })
}

/// Writes what is missing or different.
fn upsert<M, K, V>(table: &Mutex<Mirror<M, K, V>>, name: &str, wanted: &HashMap<K, V>) -> io::Result<usize>
where
    M: Store<K, V>,
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    let mut mirror = lock(table);
    let mut written = 0;
    for (key, value) in wanted {
        let fault = |error| io::Error::other(format!("BPF map {name}: cannot write entry: {error}"));
        written += usize::from(mirror.put(key, value).map_err(fault)?);
    }
    Ok(written)
}

fn prune<M, K, V>(table: &Mutex<Mirror<M, K, V>>, wanted: &HashMap<K, V>) -> io::Result<usize>
where
    M: Store<K, V>,
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    lock(table).prune(|key| wanted.contains_key(key)).map_err(io::Error::other)
}
