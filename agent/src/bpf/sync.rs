//! What should be in the maps, and the order in which it gets there.
//!
//! A policy class never changes its meaning: a changed policy is a new class. So its rows are written first, then the
//! workloads are pointed at them one by one (each an atomic replacement), then what nobody points at is removed. No reader ever sees half a policy.
//!
//! A map that is full first loses what nothing leads to any more. What then has no room is closed, each thing in its way
//! (see [`super::room`]), and told as [`Short`]; the rest of the change is carried out. Any other failure stops the change
//! where it is: the state before stays in force.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::io;
use std::sync::Mutex;

use culvert_common::{BackendKey, Ip, PolicyKey, Service, ServiceKey, Workload};

use super::load::lock;
use super::maps::Maps;
use super::mirror::{Mirror, Store};
use super::room;
use crate::model::Desired;
use crate::policy::SourceBlock;

/// How many entries a synchronisation wrote and removed.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct SyncStats {
    /// Entries added or replaced.
    pub written: usize,
    /// Entries removed.
    pub removed: usize,
}

/// A map that has no room for everything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Short {
    /// Its name.
    pub map: &'static str,
    /// How many entries it can have.
    pub capacity: usize,
    /// How many are missing.
    pub missing: usize,
}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { map, capacity, missing } = self;
        write!(f, "room for {missing} more entries in BPF map {map} ({capacity}): --map-entries {map}=N")
    }
}

/// What came of writing.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Synced {
    /// What was done.
    pub stats: SyncStats,
    /// What has no room.
    pub short: Vec<Short>,
}

impl Maps {
    /// Everything that must be there before workloads and pods may refer to it: names, policy rows, backends.
    ///
    /// # Errors
    ///
    /// An entry could not be written, for another reason than want of room.
    pub fn sync_before(&self, desired: &Desired) -> io::Result<Synced> {
        let mut synced = Synced::default();
        // These three are for readers: without room for a name or a count enforcement goes on.
        legible(self.upsert(&mut synced, &self.identities, &desired.identities));
        legible(self.upsert(&mut synced, &self.policy_names, &desired.policy_names));
        let uncounted = self.add_notes(&desired.notes)?;
        self.short(&mut synced, "notes", uncounted);
        let mut closed = self.write_policy(&mut synced, desired)?;
        if !closed.is_empty() {
            self.drop_unused_policy(desired)?;
            synced.short.retain(|short| short.map != "policy" && short.map != "sources");
            closed = self.write_policy(&mut synced, desired)?;
        }
        let mut unlisted = self.write_workloads(&mut synced, desired, &closed)?;
        unlisted.extend(self.write_services(&mut synced, desired)?);
        self.unlist(&mut synced, &unlisted)?;
        Ok(synced)
    }

    /// Removes what nothing refers to any more; after the pods have been pointed at the new state.
    ///
    /// # Errors
    ///
    /// An entry could not be removed.
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

    /// Rows and blocks, each class as a whole; returns the classes that must not be used.
    fn write_policy(&self, synced: &mut Synced, desired: &Desired) -> io::Result<HashSet<u32>> {
        let rows = put_classes(&mut lock(&self.policy), &desired.policy, PolicyKey::class)?;
        let blocks = put_classes(&mut lock(&self.sources), &desired.sources, |(key, _)| key.class())?;
        synced.stats.written += rows.written + blocks.written;
        self.short(synced, "policy", rows.missing);
        self.short(synced, "sources", blocks.missing);
        Ok(room::incomplete(rows.without, blocks.without, desired.sources.iter()))
    }

    /// Rows of classes that no workload has now, or is to have.
    fn drop_unused_policy(&self, desired: &Desired) -> io::Result<()> {
        prune(&self.workloads, &desired.workloads)?;
        let used = room::classes_in_use(lock(&self.workloads).known().values(), lock(&self.sources).known());
        let keep = |(key, bits): &SourceBlock| {
            used.contains(&key.class()) || desired.sources.contains_key(&(*key, *bits))
        };
        lock(&self.sources).prune(keep)?;
        let keep = |key: &PolicyKey| used.contains(&key.class()) || desired.policy.contains_key(key);
        lock(&self.policy).prune(keep).map(drop)
    }

    /// Points the workloads at their classes; returns the addresses in the mesh that have no room.
    fn write_workloads(
        &self,
        synced: &mut Synced,
        desired: &Desired,
        closed: &HashSet<u32>,
    ) -> io::Result<Vec<Ip>> {
        let wanted = close(&desired.workloads, closed);
        let mut mirror = lock(&self.workloads);
        let fresh = fresh(&mirror, &wanted);
        if fresh > mirror.room() {
            synced.stats.removed += mirror.prune(|ip| wanted.contains_key(ip))?;
        }
        if fresh <= mirror.room() {
            let (written, left) = mirror.put_all(wanted.iter())?;
            synced.stats.written += written;
            self.short(synced, "workloads", left.len());
            return Ok(left);
        }
        let mut needed = room::by_need(&wanted, |ip| mirror.known().contains_key(ip));
        let mut left: Vec<Ip> =
            needed.split_off(mirror.capacity().min(needed.len())).into_iter().map(|(ip, _)| ip).collect();
        // What gives its place to a pod of this node must not look like one outside the mesh in between.
        lock(&self.unlisted).put_all(room::unlisted(&left).iter())?;
        let kept: HashMap<Ip, Workload> = needed.into_iter().collect();
        synced.stats.removed += mirror.prune(|ip| kept.contains_key(ip))?;
        let (written, refused) = mirror.put_all(kept.iter())?;
        synced.stats.written += written;
        left.extend(refused);
        self.short(synced, "workloads", left.len());
        Ok(left)
    }

    /// Backends, then the services that count them; returns the virtual addresses that have no room.
    fn write_services(&self, synced: &mut Synced, desired: &Desired) -> io::Result<Vec<Ip>> {
        self.shrink_services(desired)?;
        let missing = self.write_backends(synced, desired)?;
        self.short(synced, "backends", missing.len());
        // A client must not be led back to a backend that the service has no longer.
        synced.stats.removed += prune(&self.members, &desired.members)?;
        // One that has no room keeps nobody: its clients are led anywhere each time.
        self.upsert(synced, &self.members, &desired.members)?;
        let services = match missing.is_empty() {
            true => Cow::Borrowed(&desired.services),
            false => Cow::Owned(room::with_fewer_backends(&desired.services, &missing)),
        };
        let left = self.upsert(synced, &self.services, &services)?;
        Ok(left.into_iter().map(|key| key.vip.ip()).collect())
    }

    fn write_backends(&self, synced: &mut Synced, desired: &Desired) -> io::Result<Vec<BackendKey>> {
        let fits = |mirror: &Mirror<_, _, _>| fresh(mirror, &desired.backends) <= mirror.room();
        if !fits(&lock(&self.backends)) {
            synced.stats.removed += prune(&self.services, &desired.services)?;
            synced.stats.removed += prune(&self.backends, &desired.backends)?;
        }
        let mut mirror = lock(&self.backends);
        let mut backends: Vec<_> = desired.backends.iter().collect();
        if !fits(&mirror) {
            // The first slots first: every service has some before any has all.
            backends.sort_by_key(|(BackendKey { service, slot }, _)| (*slot, *service));
        }
        let (written, left) = mirror.put_all(backends.into_iter())?;
        synced.stats.written += written;
        Ok(left)
    }

    /// Closes the way to what the tables do not hold, and opens it to what they hold again. A program that finds neither an
    /// entry nor a block takes an address for one outside the mesh.
    fn unlist(&self, synced: &mut Synced, addresses: &[Ip]) -> io::Result<()> {
        let blocks = room::unlisted(addresses);
        let mut mirror = lock(&self.unlisted);
        synced.stats.written += mirror.put_all(blocks.iter())?.0;
        synced.stats.removed += mirror.prune(|block| blocks.contains_key(block))?;
        Ok(())
    }

    /// A service that loses backends must not be seen with more slots than are meant for it.
    fn shrink_services(&self, desired: &Desired) -> io::Result<()> {
        let mut services = lock(&self.services);
        let smaller = |(key, wanted): &(&ServiceKey, &Service)| {
            services.known().get(*key).is_some_and(|current| wanted.backends < current.backends)
        };
        let shrinking: Vec<_> = desired.services.iter().filter(smaller).collect();
        for (key, wanted) in shrinking {
            services.put(key, wanted)?;
        }
        Ok(())
    }

    /// Writes what is missing or different; returns what has no room even when what is not wanted has gone.
    fn upsert<M, K, V>(
        &self,
        synced: &mut Synced,
        table: &Mutex<Mirror<M, K, V>>,
        wanted: &HashMap<K, V>,
    ) -> io::Result<Vec<K>>
    where
        M: Store<K, V>,
        K: Copy + Eq + Hash,
        V: Copy + PartialEq,
    {
        let mut mirror = lock(table);
        let (mut written, mut left) = mirror.put_all(wanted.iter())?;
        if !left.is_empty() {
            synced.stats.removed += mirror.prune(|key| wanted.contains_key(key))?;
            let again = mirror.put_all(wanted.iter())?;
            (written, left) = (written + again.0, again.1);
        }
        synced.stats.written += written;
        self.short(synced, mirror.name, left.len());
        Ok(left)
    }

    fn short(&self, synced: &mut Synced, map: &'static str, missing: usize) {
        if missing > 0 {
            synced.short.push(Short { map, capacity: self.capacities.of(map), missing });
        }
    }
}

/// What came of writing rows or blocks class by class.
struct PutClasses {
    written: usize,
    missing: usize,
    without: HashSet<u32>,
}

fn put_classes<M, K, V>(
    mirror: &mut Mirror<M, K, V>,
    wanted: &HashMap<K, V>,
    class: impl Fn(&K) -> u32,
) -> io::Result<PutClasses>
where
    M: Store<K, V>,
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    let mut without = HashSet::new();
    if fresh(mirror, wanted) > mirror.room() {
        let classes = wanted.keys().filter(|key| !mirror.known().contains_key(*key)).map(&class);
        without = room::classes_without_room(classes, mirror.room());
    }
    let (written, left) = mirror.put_all(wanted.iter().filter(|(key, _)| !without.contains(&class(key))))?;
    without.extend(left.iter().map(&class));
    let missing = wanted.keys().filter(|key| !mirror.known().contains_key(*key)).count();
    Ok(PutClasses { written, missing, without })
}

/// How many keys of `wanted` are not in the map.
fn fresh<M, K, V>(mirror: &Mirror<M, K, V>, wanted: &HashMap<K, V>) -> usize
where
    M: Store<K, V>,
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    wanted.keys().filter(|key| !mirror.known().contains_key(*key)).count()
}

/// The workloads, those of `closed` classes in the class that has no rows: whoever connects to them is refused.
fn close<'a>(workloads: &'a HashMap<Ip, Workload>, closed: &HashSet<u32>) -> Cow<'a, HashMap<Ip, Workload>> {
    if closed.is_empty() {
        return Cow::Borrowed(workloads);
    }
    let class = |w: &Workload| if closed.contains(&w.class) { room::CLOSED } else { w.class };
    Cow::Owned(workloads.iter().map(|(ip, w)| (*ip, Workload { class: class(w), ..*w })).collect())
}

fn legible<K>(written: io::Result<Vec<K>>) {
    if let Err(error) = written {
        tracing::warn!(%error, "a dump of the maps will show numbers where a name should be");
    }
}

fn prune<M, K, V>(table: &Mutex<Mirror<M, K, V>>, wanted: &HashMap<K, V>) -> io::Result<usize>
where
    M: Store<K, V>,
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    lock(table).prune(|key| wanted.contains_key(key))
}
