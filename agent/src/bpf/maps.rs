//! Typed handles of every map the agent touches, taken once: a missing map fails at start.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use culvert_common::*;

use super::batch;
use super::capacity::Capacities;
use super::load::{KernelError, lock};
use super::mirror::{self, Blocks, Mirror, Mirrored, NoteCounts, Table};
use crate::policy::SourceBlock;

/// Every pinned map. `socket_state` belongs to its sockets, but is pinned for the reader of a dump.
pub(super) const MAP_NAMES: [&str; 21] = [
    "config",
    "pods",
    "guards",
    "workloads",
    "services",
    "backends",
    "members",
    "affinity",
    "policy",
    "sources",
    "unlisted",
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

/// The maps.
pub struct Maps {
    config: Array<MapData, Config>,
    pub(super) pods: Table<u64, Pod>,
    pub(super) guards: Table<u32, Guard>,
    pub(super) workloads: Mirrored<Ip, Workload>,
    pub(super) services: Mirrored<ServiceKey, Service>,
    pub(super) backends: Mirrored<BackendKey, Endpoint>,
    pub(super) members: Mirrored<Member, u32>,
    pub(super) affinity: Table<AffinityKey, Affinity>,
    pub(super) policy: Mirrored<PolicyKey, PolicyRow>,
    pub(super) sources: Blocks,
    pub(super) unlisted: Blocks,
    pub(super) notes: Mutex<NoteCounts>,
    pub(super) policy_names: Mirrored<u32, Name>,
    pub(super) identities: Mirrored<u32, Name>,
    pub(super) admitted: Table<Tuple, Admission>,
    pub(super) connections: Table<Tuple, Connection>,
    pub(super) original_dst: Table<LocalKey, OriginalDst>,
    pub(super) original_src: Table<LocalKey, Endpoint>,
    counters: PerCpuArray<MapData, u64>,
    events: Mutex<Option<RingBuf<MapData>>>,
    pub(super) capacities: Capacities,
}

impl Maps {
    pub(super) fn take(object: &mut Ebpf, capacities: Capacities) -> Result<Self, KernelError> {
        fn typed<T: TryFrom<Map, Error = MapError>>(
            object: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, KernelError> {
            let missing =
                || KernelError::Map { name, source: MapError::InvalidName { name: name.to_owned() } };
            let map = object.take_map(name).ok_or_else(missing)?;
            T::try_from(map).map_err(|source| KernelError::Map { name, source })
        }
        macro_rules! mirror {
            ($name:literal) => {
                mirror!($name, capacities.of($name))
            };
            ($name:literal, $capacity:expr) => {
                Mutex::new(
                    Mirror::new($name, typed(object, $name)?, $capacity).map_err(|error| {
                        KernelError::Map { name: $name, source: MapError::IoError(error) }
                    })?,
                )
            };
        }
        Ok(Self {
            config: typed(object, "config")?,
            pods: Mutex::new(typed(object, "pods")?),
            guards: Mutex::new(typed(object, "guards")?),
            workloads: mirror!("workloads"),
            services: mirror!("services"),
            backends: mirror!("backends"),
            members: mirror!("members"),
            affinity: Mutex::new(typed(object, "affinity")?),
            policy: mirror!("policy"),
            sources: mirror!("sources"),
            unlisted: mirror!("unlisted", MAX_UNLISTED),
            notes: Mutex::new(NoteCounts::new(typed(object, "notes")?)),
            policy_names: mirror!("policy_names"),
            identities: mirror!("identities"),
            admitted: Mutex::new(typed(object, "admitted")?),
            connections: Mutex::new(typed(object, "connections")?),
            original_dst: Mutex::new(typed(object, "original_dst")?),
            original_src: Mutex::new(typed(object, "original_src")?),
            counters: typed(object, "counters")?,
            events: Mutex::new(Some(typed(object, "events")?)),
            capacities,
        })
    }

    /// How many entries a map can have.
    pub fn room_for(&self, map: &str) -> usize {
        self.capacities.of(map)
    }

    pub(super) fn set_config(&mut self, config: Config) -> Result<(), KernelError> {
        self.config.set(0, config, 0).map_err(|source| KernelError::Map { name: "config", source })
    }

    /// Where a tunnelled connection was going; taken out of the map.
    pub fn take_original_dst(&self, key: LocalKey) -> io::Result<Option<OriginalDst>> {
        batch::take(lock(&self.original_dst).map().fd().as_fd(), &key)
    }

    /// Announces the real client of a connection that the agent is about to open.
    pub fn put_original_src(&self, key: LocalKey, client: Endpoint) -> io::Result<()> {
        lock(&self.original_src)
            .insert(key, client, 0)
            .map_err(|error| self.unwritten("original_src", &error))
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

    /// Leads the client in namespace `netns`, which asked for `vip` and got no further than the backend that was chosen for it,
    /// to `backend` from now on. Nothing, when the service has no session affinity.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn remember_backend(&self, netns: u64, vip: Endpoint, backend: Endpoint) -> io::Result<()> {
        let service = lock(&self.services).known().get(&ServiceKey { vip }).copied();
        let Some(service) = service.filter(|service| service.affinity != 0) else { return Ok(()) };
        let now = u64::try_from(crate::sys::since_boot().as_nanos()).unwrap_or(u64::MAX);
        lock(&self.affinity)
            .insert(AffinityKey::new(netns, service.id), Affinity::new(now, backend), 0)
            .map_err(|error| self.unwritten("affinity", &error))
    }

    /// Adds a local pod. From now on its connections are decided.
    pub fn put_pod(&self, netns: u64, pod: Pod) -> io::Result<()> {
        lock(&self.pods).insert(netns, pod, 0).map_err(|error| self.unwritten("pods", &error))
    }

    /// Removes a local pod. Its connections are its own affair again.
    pub fn remove_pod(&self, netns: u64) -> io::Result<()> {
        found(lock(&self.pods).remove(&netns)).map(drop)
    }

    /// The addresses that what arrives by an interface may bear.
    pub(super) fn put_guard(&self, index: u32, guard: Guard) -> io::Result<()> {
        lock(&self.guards).insert(index, guard, 0).map_err(|error| self.unwritten("guards", &error))
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

    /// What to do about it, when it is want of room.
    fn unwritten(&self, map: &str, error: &MapError) -> io::Error {
        if mirror::kind(error) == io::ErrorKind::StorageFull {
            let room = self.capacities.of(map);
            return io::Error::other(format!(
                "BPF map {map} is full ({room} entries): --map-entries {map}=N"
            ));
        }
        io::Error::other(format!("BPF map {map}: {error}"))
    }

    /// All pods in the map, by netns cookie.
    pub fn pods(&self) -> Vec<(u64, Pod)> {
        lock(&self.pods).iter().filter_map(Result::ok).collect()
    }

    /// Open connections into pods of this node that do not go through the agent, with the client's end first.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn connections(&self) -> io::Result<Vec<(Tuple, Connection)>> {
        batch::read_as(lock(&self.connections).map().fd().as_fd())
    }

    /// Forgets a connection whose socket is gone.
    pub fn remove_connection(&self, tuple: &Tuple) -> io::Result<()> {
        found(lock(&self.connections).remove(tuple)).map(drop)
    }

    /// Admits a tuple.
    pub(super) fn put_admission(&self, tuple: &Tuple, admission: Admission) -> io::Result<()> {
        lock(&self.admitted).insert(tuple, admission, 0).map_err(io::Error::other)
    }

    /// Takes the admission back: as it was given, or with the destination's verdict.
    pub(super) fn take_admission(&self, tuple: &Tuple) -> io::Result<Option<Admission>> {
        batch::take(lock(&self.admitted).map().fd().as_fd(), tuple)
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

    /// Makes room for the counts of notes that the rows to come refer to; returns how many have none. Those are not counted,
    /// and the verdicts stand.
    pub(super) fn add_notes(&self, notes: &[u32]) -> io::Result<usize> {
        let mut counts = lock(&self.notes);
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let wanted: Vec<u32> = notes.iter().filter(|note| !counts.known.contains(note)).copied().collect();
        let room = self.capacities.of("notes").saturating_sub(counts.known.len());
        for note in wanted.iter().take(room) {
            let zeros = PerCpuValues::try_from(vec![0; cpus])?;
            counts
                .map
                .insert(note, zeros, 0)
                .map_err(|error| io::Error::other(format!("BPF map notes: cannot write entry: {error}")))?;
            counts.known.insert(*note);
        }
        Ok(wanted.len().saturating_sub(room))
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
        let in_rows = rows.known().values().map(|row| row.decision().note);
        old.into_iter().chain(in_rows).max().unwrap_or(0)
    }

    /// One counter, summed over the CPUs.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum())
    }

    /// The identities that an earlier agent numbered.
    pub fn pinned_identities(&self) -> Vec<(u32, String)> {
        lock(&self.identities).known().iter().map(|(id, name)| (*id, name.as_str().to_owned())).collect()
    }

    /// The policies that an earlier agent numbered.
    pub fn pinned_policies(&self) -> Vec<(u32, String)> {
        lock(&self.policy_names)
            .known()
            .iter()
            .map(|(index, name)| (*index, name.as_str().to_owned()))
            .collect()
    }

    /// The service ports that an earlier agent numbered.
    pub fn pinned_services(&self) -> Vec<(ServiceKey, u32)> {
        lock(&self.services).known().iter().map(|(key, service)| (*key, service.id)).collect()
    }

    /// The highest identity that anything in the maps refers to, named in `identities` or not; 0 when there is none.
    pub fn highest_identity(&self) -> u32 {
        let (rows, workloads) = (lock(&self.policy), lock(&self.workloads));
        let rows = rows.known().keys().map(PolicyKey::identity).filter(|identity| *identity != ANY_IDENTITY);
        let numbers = rows.chain(workloads.known().values().map(|w| w.identity));
        let pods = lock(&self.pods);
        let pods = pods.iter().filter_map(Result::ok).map(|(_, pod)| pod.identity);
        let open = self.connections().unwrap_or_default();
        let open = open.into_iter().map(|(_, connection)| connection.identity);
        numbers.chain(pods).chain(open).max().unwrap_or(0)
    }

    /// The highest policy class in the maps, without [`CLASS_BY_SOURCE`]; 0 when there is none.
    pub fn highest_class(&self) -> u32 {
        let (rows, blocks, workloads) = (lock(&self.policy), lock(&self.sources), lock(&self.workloads));
        let classes = rows.known().keys().map(PolicyKey::class);
        let blocks = blocks.known().keys().map(|(key, _)| key.class());
        let classes = classes.chain(blocks).chain(workloads.known().values().map(|w| w.class));
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
