//! What should be in the maps, and the order in which it gets there.
//!
//! A policy class never changes its meaning: a changed policy is a new class. So its rows are written first, then the
//! workloads and pods are pointed at them one by one (each an atomic replacement), then what nobody points at is
//! removed. No reader ever sees half a policy.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;

use super::load::lock;
use super::maps::{Maps, Table};
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
        stats.written += upsert(&self.identities, "identities", copied(&desired.identities))?;
        stats.written += upsert(&self.policy_names, "policy_names", copied(&desired.policy_names))?;
        stats.written += upsert(&self.policy, "policy", copied(&desired.policy))?;
        stats.written += upsert(&self.workloads, "workloads", copied(&desired.workloads))?;
        self.shrink_services(desired)?;
        stats.written += upsert(&self.backends, "backends", copied(&desired.backends))?;
        stats.written += upsert(&self.services, "services", copied(&desired.services))?;
        Ok(stats)
    }

    /// Removes what nothing refers to any more; after the pods have been pointed at the new state.
    pub fn sync_after(&self, desired: &Desired) -> io::Result<SyncStats> {
        let removed = prune(&self.services, |k| desired.services.contains_key(k))?
            + prune(&self.workloads, |k| desired.workloads.contains_key(k))?
            + prune(&self.backends, |k| desired.backends.contains_key(k))?
            + prune(&self.policy, |k| desired.policy.contains_key(k))?
            + prune(&self.identities, |k| desired.identities.contains_key(k))?
            + prune(&self.policy_names, |k| desired.policy_names.contains_key(k))?;
        Ok(SyncStats { written: 0, removed })
    }

    /// A service that loses backends must not be seen with more slots than are meant for it.
    fn shrink_services(&self, desired: &Desired) -> io::Result<()> {
        let mut map = lock(&self.services);
        for (key, wanted) in &desired.services {
            if let Ok(current) = map.get(key, 0)
                && wanted.backends < current.backends
            {
                map.insert(key, wanted, 0).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

fn copied<K: Copy, V: Copy>(map: &HashMap<K, V>) -> impl Iterator<Item = (K, V)> {
    map.iter().map(|(k, v)| (*k, *v))
}

/// Writes what is missing or different.
fn upsert<K, V>(table: &Table<K, V>, name: &str, wanted: impl Iterator<Item = (K, V)>) -> io::Result<usize>
where
    K: aya::Pod + Eq + Hash,
    V: aya::Pod + PartialEq,
{
    let mut map = lock(table);
    let current: HashMap<K, V> = map.iter().filter_map(Result::ok).collect();
    let mut written = 0;
    for (key, value) in wanted {
        if current.get(&key) != Some(&value) {
            map.insert(key, value, 0)
                .map_err(|error| io::Error::other(format!("BPF map {name}: cannot write entry: {error}")))?;
            written += 1;
        }
    }
    Ok(written)
}

fn prune<K, V>(table: &Table<K, V>, keep: impl Fn(&K) -> bool) -> io::Result<usize>
where
    K: aya::Pod + Eq + Hash,
    V: aya::Pod,
{
    let mut map = lock(table);
    let gone: Vec<K> = map.keys().filter_map(Result::ok).filter(|k| !keep(k)).collect();
    for key in &gone {
        map.remove(key).map_err(io::Error::other)?;
    }
    Ok(gone.len())
}
