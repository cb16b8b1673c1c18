//! How full the maps are.

use std::io;
use std::os::fd::AsFd;

use aya::maps::{HashMap, IterableMap, MapData};
use culvert_common::MAX_UNLISTED;
use serde::Serialize;

use super::batch;
use super::load::lock;
use super::maps::Maps;
use super::mirror::{Mirrored, Table};

/// A map's entries and its room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Usage {
    /// The map's name.
    pub map: &'static str,
    /// Entries now.
    pub entries: usize,
    /// Entries at most.
    pub capacity: usize,
    /// Nine tenths and more of a map that refuses what it has no room for; `affinity` forgets instead, and fills up in time.
    pub high: bool,
}

impl Usage {
    fn new(map: &'static str, entries: usize, capacity: usize) -> Self {
        Self { map, entries, capacity, high: map != "affinity" && entries * 10 >= capacity * 9 }
    }
}

impl Maps {
    /// Every map whose entries come and go. The maps that programs write are read for that, in a few system calls.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn usage(&self) -> io::Result<Vec<Usage>> {
        let counts = [
            ("pods", count(&self.pods)?),
            ("guards", count(&self.guards)?),
            ("workloads", known(&self.workloads)),
            ("services", known(&self.services)),
            ("backends", known(&self.backends)),
            ("members", known(&self.members)),
            ("affinity", count(&self.affinity)?),
            ("policy", known(&self.policy)),
            ("sources", lock(&self.sources).known().len()),
            ("unlisted", lock(&self.unlisted).known().len()),
            ("notes", lock(&self.notes).known.len()),
            ("policy_names", known(&self.policy_names)),
            ("identities", known(&self.identities)),
            ("admitted", count(&self.admitted)?),
            ("connections", count(&self.connections)?),
            ("original_dst", count(&self.original_dst)?),
            ("original_src", count(&self.original_src)?),
        ];
        let capacity = |map| if map == "unlisted" { MAX_UNLISTED } else { self.capacities.of(map) };
        Ok(counts.map(|(map, entries)| Usage::new(map, entries, capacity(map))).to_vec())
    }
}

fn known<K, V>(table: &Mirrored<K, V>) -> usize
where
    K: aya::Pod + bytemuck::Pod + Eq + std::hash::Hash,
    V: aya::Pod + bytemuck::Pod + PartialEq,
{
    lock(table).known().len()
}

fn count<K: aya::Pod, V: aya::Pod>(table: &Table<K, V>) -> io::Result<usize> {
    let map = lock(table);
    let data = <HashMap<MapData, K, V> as IterableMap<K, V>>::map(&map);
    Ok(batch::read(data.fd().as_fd(), size_of::<K>(), size_of::<V>())?.count)
}
