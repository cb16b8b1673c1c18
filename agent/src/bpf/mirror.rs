//! Maps that only the agent writes, with a copy of their content.

use std::collections::{HashMap as Known, HashSet};
use std::hash::Hash;
use std::io;
use std::os::fd::AsFd;
use std::sync::Mutex;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, IterableMap, MapData, MapError, PerCpuHashMap};
use culvert_common::SourceKey;
use nix::libc;

use super::batch;
use crate::policy::SourceBlock;

pub(super) type Table<K, V> = Mutex<HashMap<MapData, K, V>>;
pub(super) type Mirrored<K, V> = Mutex<Mirror<HashMap<MapData, K, V>, K, V>>;
pub(super) type Blocks = Mutex<Mirror<LpmTrie<MapData, SourceKey, u32>, SourceBlock, u32>>;

/// What a [`Mirror`] needs of a map.
pub(super) trait Store<K, V> {
    fn all(&self) -> io::Result<Known<K, V>>;
    fn write(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn erase(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K, V> Store<K, V> for HashMap<MapData, K, V>
where
    K: aya::Pod + bytemuck::Pod + Eq + Hash,
    V: aya::Pod + bytemuck::Pod,
{
    fn all(&self) -> io::Result<Known<K, V>> {
        Ok(batch::read_as(self.map().fd().as_fd())?.into_iter().collect())
    }

    fn write(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn erase(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }
}

impl Store<SourceBlock, u32> for LpmTrie<MapData, SourceKey, u32> {
    fn all(&self) -> io::Result<Known<SourceBlock, u32>> {
        let block = |entry: Result<(Key<SourceKey>, u32), MapError>| {
            entry.map(|(key, class)| ((key.data(), key.prefix_len()), class)).map_err(io::Error::other)
        };
        self.iter().map(block).collect()
    }

    fn write(&mut self, (key, bits): &SourceBlock, class: &u32) -> Result<(), MapError> {
        self.insert(&Key::new(*bits, *key), class, 0)
    }

    fn erase(&mut self, (key, bits): &SourceBlock) -> Result<(), MapError> {
        self.remove(&Key::new(*bits, *key))
    }
}

/// A map that only the agent writes, with a copy of its content: what has not changed costs no system call.
pub(super) struct Mirror<M, K, V> {
    /// The map's name.
    pub(super) name: &'static str,
    pub(super) map: M,
    known: Known<K, V>,
    capacity: usize,
}

impl<M: Store<K, V>, K: Copy + Eq + Hash, V: Copy + PartialEq> Mirror<M, K, V> {
    /// Reads what an earlier agent left.
    pub(super) fn new(name: &'static str, map: M, capacity: usize) -> io::Result<Self> {
        let known = map.all()?;
        Ok(Self { name, map, known, capacity })
    }

    /// What is in the map.
    pub(super) fn known(&self) -> &Known<K, V> {
        &self.known
    }

    /// How many entries it has room for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many more entries it has room for.
    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.known.len())
    }

    /// Writes the entry unless it is there already; returns whether it was written.
    pub(super) fn put(&mut self, key: &K, value: &V) -> io::Result<bool> {
        if self.known.get(key) == Some(value) {
            return Ok(false);
        }
        self.map.write(key, value).map_err(|error| failed(self.name, "write", error))?;
        self.known.insert(*key, *value);
        Ok(true)
    }

    /// Writes what is missing or different: first what needs no room. Returns how many, and the keys that have no room.
    pub(super) fn put_all<'a>(
        &mut self,
        wanted: impl Iterator<Item = (&'a K, &'a V)>,
    ) -> io::Result<(usize, Vec<K>)>
    where
        K: 'a,
        V: 'a,
    {
        let mut written = 0;
        let mut fresh = Vec::new();
        for (key, value) in wanted {
            if self.known.contains_key(key) {
                written += usize::from(self.put(key, value)?);
            } else {
                fresh.push((key, value));
            }
        }
        let mut left = Vec::new();
        for (key, value) in fresh {
            if !left.is_empty() || self.room() == 0 {
                left.push(*key);
                continue;
            }
            match self.put(key, value) {
                Ok(_) => written += 1,
                Err(error) if is_full(&error) => left.push(*key),
                Err(error) => return Err(error),
            }
        }
        Ok((written, left))
    }

    /// Removes the entries that `keep` does not want; returns how many.
    pub(super) fn prune(&mut self, keep: impl Fn(&K) -> bool) -> io::Result<usize> {
        let gone: Vec<K> = self.known.keys().filter(|key| !keep(key)).copied().collect();
        for key in &gone {
            self.map.erase(key).map_err(|error| failed(self.name, "remove", error))?;
            self.known.remove(key);
        }
        Ok(gone.len())
    }
}

fn failed(map: &str, what: &str, error: MapError) -> io::Error {
    let kind = kind(&error);
    let why = match error {
        MapError::SyscallError(error) => error.io_error.to_string(),
        error => error.to_string(),
    };
    io::Error::new(kind, format!("BPF map {map}: cannot {what} entry: {why}"))
}

/// A full hash table says E2BIG, a full trie ENOSPC; want of memory is neither.
pub(super) fn kind(error: &MapError) -> io::ErrorKind {
    match error {
        MapError::SyscallError(error)
            if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
        {
            io::ErrorKind::StorageFull
        }
        _ => io::ErrorKind::Other,
    }
}

/// Whether a write failed because the map has all the entries that it can have.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

/// The `notes` map, and which notes are in it: a change that brings no new one costs no system call.
pub(super) struct NoteCounts {
    pub(super) map: PerCpuHashMap<MapData, u32, u64>,
    pub(super) known: HashSet<u32>,
}

impl NoteCounts {
    pub(super) fn new(map: PerCpuHashMap<MapData, u32, u64>) -> Self {
        let known = map.keys().filter_map(Result::ok).collect();
        Self { map, known }
    }
}
