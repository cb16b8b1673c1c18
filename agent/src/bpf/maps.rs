//! Typed handles of every map the agent touches, taken once: a missing map fails at start.

use std::cell::Cell;
use std::collections::HashSet;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf};
use culvert_common::*;

use super::load::{KernelError, lock};
use crate::policy::SourceBlock;

/// Every pinned map. `socket_state` belongs to its sockets, but is pinned for the reader of a dump.
pub(super) const MAP_NAMES: [&str; 18] = [
    "config",
    "pods",
    "guards",
    "workloads",
    "services",
    "backends",
    "policy",
    "sources",
    "notes",
    "policy_names",
    "identities",
    "admitted",
    "connections",
    "original_dst",
    "original_src",
    "socket_state",
    "counters",
    "events",
];

pub(super) type Table<K, V> = Mutex<HashMap<MapData, K, V>>;
pub(super) type Mirrored<K, V> = Mutex<Mirror<HashMap<MapData, K, V>, K, V>>;

/// What a [`Mirror`] needs of a map.
pub(super) trait Store<K, V> {
    fn all(&self) -> std::collections::HashMap<K, V>;
    fn write(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn erase(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: aya::Pod + Eq + Hash, V: aya::Pod> Store<K, V> for HashMap<MapData, K, V> {
    fn all(&self) -> std::collections::HashMap<K, V> {
        self.iter().filter_map(Result::ok).collect()
    }

    fn write(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn erase(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }
}

impl Store<SourceBlock, u32> for LpmTrie<MapData, SourceKey, u32> {
    fn all(&self) -> std::collections::HashMap<SourceBlock, u32> {
        let found = self.iter().filter_map(Result::ok);
        found.map(|(key, class)| ((key.data(), key.prefix_len()), class)).collect()
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
    map: M,
    known: std::collections::HashMap<K, V>,
}

impl<M: Store<K, V>, K: Copy + Eq + Hash, V: Copy + PartialEq> Mirror<M, K, V> {
    /// Reads what an earlier agent left.
    fn new(map: M) -> Self {
        let known = map.all();
        Self { map, known }
    }

    /// What is in the map.
    pub(super) fn known(&self) -> &std::collections::HashMap<K, V> {
        &self.known
    }

    /// Writes the entry unless it is there already; returns whether it was written.
    pub(super) fn put(&mut self, key: &K, value: &V) -> Result<bool, MapError> {
        if self.known.get(key) == Some(value) {
            return Ok(false);
        }
        self.map.write(key, value)?;
        self.known.insert(*key, *value);
        Ok(true)
    }

    /// Removes the entries that `keep` does not want; returns how many.
    pub(super) fn prune(&mut self, keep: impl Fn(&K) -> bool) -> Result<usize, MapError> {
        let gone: Vec<K> = self.known.keys().filter(|key| !keep(key)).copied().collect();
        for key in &gone {
            self.map.erase(key)?;
            self.known.remove(key);
        }
        Ok(gone.len())
    }
}

/// The `notes` map, and which notes are in it: a change that brings no new one costs no system call.
struct NoteCounts {
    map: PerCpuHashMap<MapData, u32, u64>,
    known: HashSet<u32>,
}

impl NoteCounts {
    fn new(map: PerCpuHashMap<MapData, u32, u64>) -> Self {
        let known = map.keys().filter_map(Result::ok).collect();
        Self { map, known }
    }
}

/// The maps.
pub struct Maps {
    config: Array<MapData, Config>,
    pub(super) pods: Table<u64, Pod>,
    guards: Table<u32, Guard>,
    pub(super) workloads: Mirrored<Ip, Workload>,
    pub(super) services: Mirrored<ServiceKey, Service>,
    pub(super) backends: Mirrored<BackendKey, Endpoint>,
    pub(super) policy: Mirrored<PolicyKey, PolicyRow>,
    pub(super) sources: Mutex<SourcesMirror>,
    notes: Mutex<NoteCounts>,
    pub(super) policy_names: Mirrored<u32, Name>,
    pub(super) identities: Mirrored<u32, Name>,
    admitted: Table<Tuple, Admission>,
    connections: Table<Tuple, Connection>,
    original_dst: Table<LocalKey, OriginalDst>,
    original_src: Table<LocalKey, Endpoint>,
    counters: PerCpuArray<MapData, u64>,
    events: Mutex<Option<RingBuf<MapData>>>,
}

impl Maps {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, KernelError> {
        fn typed<T: TryFrom<Map, Error = MapError>>(
            object: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, KernelError> {
            let missing =
                || KernelError::Map { name, source: MapError::InvalidName { name: name.to_owned() } };
            let map = object.take_map(name).ok_or_else(missing)?;
            T::try_from(map).map_err(|source| KernelError::Map { name, source })
        }
        Ok(Self {
            config: typed(object, "config")?,
            pods: Mutex::new(typed(object, "pods")?),
            guards: Mutex::new(typed(object, "guards")?),
            workloads: Mutex::new(Mirror::new(typed(object, "workloads")?)),
            services: Mutex::new(Mirror::new(typed(object, "services")?)),
            backends: Mutex::new(Mirror::new(typed(object, "backends")?)),
            policy: Mutex::new(Mirror::new(typed(object, "policy")?)),
            sources: Mutex::new(Mirror::new(typed(object, "sources")?)),
            notes: Mutex::new(NoteCounts::new(typed(object, "notes")?)),
            policy_names: Mutex::new(Mirror::new(typed(object, "policy_names")?)),
            identities: Mutex::new(Mirror::new(typed(object, "identities")?)),
            admitted: Mutex::new(typed(object, "admitted")?),
            connections: Mutex::new(typed(object, "connections")?),
            original_dst: Mutex::new(typed(object, "original_dst")?),
            original_src: Mutex::new(typed(object, "original_src")?),
            counters: typed(object, "counters")?,
            events: Mutex::new(Some(typed(object, "events")?)),
        })
    }

    pub(super) fn set_config(&mut self, config: Config) -> Result<(), KernelError> {
        self.config.set(0, config, 0).map_err(|source| KernelError::Map { name: "config", source })
    }

    /// Where a tunnelled connection was going; taken out of the map.
    pub fn take_original_dst(&self, key: LocalKey) -> io::Result<Option<OriginalDst>> {
        let mut map = lock(&self.original_dst);
        let Some(value) = found(map.get(&key, 0))? else { return Ok(None) };
        found(map.remove(&key))?;
        Ok(Some(value))
    }

    /// Announces the real client of a connection that the agent is about to open.
    pub fn put_original_src(&self, key: LocalKey, client: Endpoint) -> io::Result<()> {
        lock(&self.original_src).insert(key, client, 0).map_err(io::Error::other)
    }

    /// Takes an announcement back.
    pub fn remove_original_src(&self, key: LocalKey) -> io::Result<()> {
        found(lock(&self.original_src).remove(&key)).map(drop)
    }

    /// Forgets the connections that a dead agent was to pick up or to deliver: they were reset with its listeners. To be
    /// called before there are new ones; returns how many there were.
    pub fn forget_handovers(&self) -> io::Result<usize> {
        fn clear<V: aya::Pod>(table: &Table<LocalKey, V>) -> io::Result<usize> {
            let mut map = lock(table);
            let keys: Vec<LocalKey> = map.keys().filter_map(Result::ok).collect();
            keys.iter().try_for_each(|key| found(map.remove(key)).map(drop))?;
            Ok(keys.len())
        }
        Ok(clear(&self.original_dst)? + clear(&self.original_src)?)
    }

    /// Adds a local pod. From now on its connections are decided.
    pub fn put_pod(&self, netns: u64, pod: Pod) -> io::Result<()> {
        lock(&self.pods).insert(netns, pod, 0).map_err(io::Error::other)
    }

    /// Removes a local pod. Its connections are its own affair again.
    pub fn remove_pod(&self, netns: u64) -> io::Result<()> {
        found(lock(&self.pods).remove(&netns)).map(drop)
    }

    /// The addresses that what arrives by an interface may bear.
    pub(super) fn put_guard(&self, index: u32, guard: Guard) -> io::Result<()> {
        lock(&self.guards).insert(index, guard, 0).map_err(io::Error::other)
    }

    /// Forgets an interface.
    pub(super) fn remove_guard(&self, index: u32) -> io::Result<()> {
        found(lock(&self.guards).remove(&index)).map(drop)
    }

    /// Forgets the interfaces that `keep` does not name, left by an earlier agent; their links are gone.
    pub(super) fn sweep_guards(&self, keep: impl Fn(u32) -> bool) -> io::Result<()> {
        let mut map = lock(&self.guards);
        let gone: Vec<u32> = map.keys().filter_map(Result::ok).filter(|index| !keep(*index)).collect();
        gone.iter().try_for_each(|index| found(map.remove(index)).map(drop))
    }

    /// Cookies of all pods in the map.
    pub fn pod_cookies(&self) -> Vec<u64> {
        lock(&self.pods).keys().filter_map(Result::ok).collect()
    }

    /// Open connections into pods of this node that do not go through the agent, with the client's end first.
    pub fn connections(&self) -> Vec<(Tuple, Connection)> {
        lock(&self.connections).iter().filter_map(Result::ok).collect()
    }

    /// Whether this is one of [`Maps::connections`].
    pub fn is_connection(&self, tuple: &Tuple) -> bool {
        lock(&self.connections).get(tuple, 0).is_ok()
    }

    /// Admits a tuple, or takes its admission back.
    pub(super) fn put_admission(&self, tuple: &Tuple, admission: Option<Admission>) -> io::Result<()> {
        let mut map = lock(&self.admitted);
        match admission {
            Some(admission) => map.insert(tuple, admission, 0).map_err(io::Error::other),
            None => found(map.remove(tuple)).map(drop),
        }
    }

    /// The row of the kernel's policy table that decides, with its key: what the programs find at this moment.
    pub fn deciding_row(
        &self,
        class: u32,
        identity: u32,
        source: IpAddr,
        port: u16,
    ) -> (Option<PolicyKey>, Decision) {
        let rows =
            KernelRows { policy: lock(&self.policy), sources: lock(&self.sources), found: Cell::new(None) };
        let decision = decide(&rows, class, identity, source.into(), port);
        (rows.found.get(), decision)
    }

    /// Makes room for the counts of notes that the rows to come refer to.
    pub(super) fn add_notes(&self, notes: &[u32]) -> Result<(), MapError> {
        let mut counts = lock(&self.notes);
        for note in notes {
            if counts.known.contains(note) {
                continue;
            }
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
            counts.map.insert(note, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
            counts.known.insert(*note);
        }
        Ok(())
    }

    /// How often the programs met a note.
    pub fn note_count(&self, note: u32) -> u64 {
        lock(&self.notes).map.get(&note, 0).map_or(0, |values| values.iter().sum())
    }

    /// The highest note that an earlier agent numbered, 0 when there is none. Its counts are not ours: they go.
    pub fn take_pinned_notes(&self) -> u32 {
        let mut counts = lock(&self.notes);
        let old: Vec<u32> = counts.known.drain().collect();
        for note in &old {
            // One that stays costs a few bytes and is never referred to again.
            let _ = counts.map.remove(note);
        }
        let rows = lock(&self.policy);
        let in_rows = rows.known.values().map(|row| row.decision().note);
        old.into_iter().chain(in_rows).max().unwrap_or(0)
    }

    /// One counter, summed over the CPUs.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum())
    }

    /// The identities that an earlier agent numbered.
    pub fn pinned_identities(&self) -> Vec<(u32, String)> {
        lock(&self.identities).known.iter().map(|(id, name)| (*id, name.as_str().to_owned())).collect()
    }

    /// The policies that an earlier agent numbered.
    pub fn pinned_policies(&self) -> Vec<(u32, String)> {
        lock(&self.policy_names)
            .known
            .iter()
            .map(|(index, name)| (*index, name.as_str().to_owned()))
            .collect()
    }

    /// The service ports that an earlier agent numbered.
    pub fn pinned_services(&self) -> Vec<(ServiceKey, u32)> {
        lock(&self.services).known.iter().map(|(key, service)| (*key, service.id)).collect()
    }

    /// The highest policy class in the maps, without [`CLASS_BY_SOURCE`]; 0 when there is none.
    pub fn highest_class(&self) -> u32 {
        let (rows, blocks, workloads) = (lock(&self.policy), lock(&self.sources), lock(&self.workloads));
        let classes = rows.known.keys().map(PolicyKey::class);
        let blocks = blocks.known.keys().map(|(key, _)| key.class());
        let classes = classes.chain(blocks).chain(workloads.known.values().map(|w| w.class));
        classes.map(|class| class & !CLASS_BY_SOURCE).max().unwrap_or(0)
    }

    pub(super) fn take_events(&self) -> Option<RingBuf<MapData>> {
        lock(&self.events).take()
    }
}

type PolicyMirror = Mirror<HashMap<MapData, PolicyKey, PolicyRow>, PolicyKey, PolicyRow>;
type SourcesMirror = Mirror<LpmTrie<MapData, SourceKey, u32>, SourceBlock, u32>;

/// The kernel's tables for [`decide`], remembering the key that was found.
struct KernelRows<'a> {
    policy: MutexGuard<'a, PolicyMirror>,
    sources: MutexGuard<'a, SourcesMirror>,
    found: Cell<Option<PolicyKey>>,
}

impl PolicyTable for KernelRows<'_> {
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        let row = self.policy.map.get(key, 0).ok()?;
        self.found.set(Some(*key));
        Some(row)
    }

    fn class_at(&self, key: &SourceKey) -> Option<u32> {
        self.sources.map.get(&Key::new(SourceKey::BITS, *key), 0).ok()
    }
}

/// A missing key is `None`, not an error.
fn found<T>(result: Result<T, MapError>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}
