//! From policies to the rows of the `policy` map.
//!
//! Workloads that the same policies select, with the same content and the same STRICT setting, share a *class*. A class
//! never changes: other content is another class with a new number, so the kernel can take the new rows, then the
//! workloads' new class, then lose the old rows, and every connection meets one or the other in full.
//!
//! Rows of a class: (any, any) is the verdict of a peer whose identity no policy names; (any, port) where that depends
//! on the port; rows of an identity only where it differs from those. `culvert_common::decide` finds the most specific
//! one first.
//!
//! Where policies ask for the client's address, the class has no rows: its entries in the `sources` map lead from blocks
//! of addresses to classes that have them, one for each set of blocks that no policy tells apart. The destination's
//! address is known beforehand, so it only decides which class an address has.
//!
//! Rows are at worst identities times ports. A class that the map has no room for is closed, in one row, and told.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_common::{
    CLASS_BY_SOURCE, Decision, Ip, MAX_POLICY_ROWS, MAX_SOURCES, PolicyKey, PolicyRow, PolicyTable, Reason,
    SourceKey, UNKNOWN_IDENTITY, decide,
};
use ipnet::IpNet;

use super::lower::{L4Policy, lower};
use super::matching::{Asked, Face, Peer};
use super::notes::Notes;
use super::{Applicable, AuthorizationPolicy, Code, Finding, Interner, Strictness};
use crate::identity::SpiffeId;
use crate::model::{Mesh, Workload};
use class::{ANYWHERE, Class, source_key};

mod class;

/// A block of client addresses: the key of the `sources` map and its prefix length, 32 to 160 bits.
pub type SourceBlock = (SourceKey, u32);

/// The compiled policies of a mesh. Immutable.
#[derive(Default)]
pub struct Compiled {
    /// The rows of the `policy` map.
    pub rows: Arc<HashMap<PolicyKey, PolicyRow>>,
    /// The entries of the `sources` map.
    pub sources: Arc<HashMap<SourceBlock, u32>>,
    /// Every identity that has a number.
    pub identities: Arc<HashMap<SpiffeId, u32>>,
    /// The index of every policy that has one, by `namespace/name`.
    pub policy_names: Arc<HashMap<String, u32>>,
    /// What of the policies is not enforced as written.
    pub findings: Vec<Finding>,
    /// What the notes in decisions say.
    pub notes: Arc<Notes>,
    classes_of: Vec<Classes>,
    classes: HashMap<u32, (Arc<Class>, Vec<SourceBlock>)>,
}

/// The policy class of each of a workload's addresses, at most one of each family; 0: it has none.
#[derive(Clone, Copy, Default)]
struct Classes {
    v4: u32,
    v6: u32,
}

impl Classes {
    fn at(&mut self, ip: IpAddr) -> &mut u32 {
        if ip.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

impl Compiled {
    /// The class of an address of the mesh's `n`th workload; `None` when it is not enrolled.
    pub fn class_of(&self, n: usize, ip: IpAddr) -> Option<u32> {
        let class = *self.classes_of.get(n).copied()?.at(ip);
        (class != 0).then_some(class)
    }

    /// May `peer` (`None`: it proved no identity), connecting from `source`, have `port` of a workload of `class`?
    ///
    /// The kernel's tables answer for every identity that they know; one that they have never met (a tunnel from
    /// another cluster) is evaluated here.
    pub fn decide(&self, class: u32, peer: Option<&SpiffeId>, source: IpAddr, port: u16) -> Decision {
        let ip = Ip::from(source);
        match peer.map(|peer| (peer, self.identities.get(peer))) {
            None => decide(self, class, UNKNOWN_IDENTITY, ip, port),
            Some((_, Some(identity))) => decide(self, class, *identity, ip, port),
            Some((peer, None)) => match self.classes.get(&class) {
                Some((class, _)) => {
                    let peer = Peer::Known(Face::from(peer));
                    // As the maps see it: an IPv4-mapped address is the IPv4 address.
                    let source = IpNet::from(IpAddr::from(ip));
                    class.decide(&Asked { peer: &peer, port, source }, &self.notes)
                }
                None => Decision::refuse(Reason::NoPolicyState),
            },
        }
    }
}

impl PolicyTable for Compiled {
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        self.rows.get(key).copied()
    }

    fn class_at(&self, key: &SourceKey) -> Option<u32> {
        let (_, blocks) = self.classes.get(&key.class())?;
        let around = blocks.iter().filter(|(block, bits)| covers(block, *bits, key));
        let longest = around.max_by_key(|(_, bits)| *bits)?;
        self.sources.get(longest).copied()
    }
}

/// Whether the first `bits` of both keys are the same.
fn covers(block: &SourceKey, bits: u32, key: &SourceKey) -> bool {
    let number = |ip: Ip| u128::from_be_bytes(bytemuck::cast(ip));
    let free = SourceKey::BITS - bits;
    let differ = number(block.ip()) ^ number(key.ip());
    differ.checked_shr(free).unwrap_or(0) == 0
}

/// Policies that were lowered before, by the place of the object that they come from.
pub(super) type PolicyCache = HashMap<usize, Lowered>;

/// Classes that were compiled before, by content.
pub(super) type ClassCache = HashMap<ClassKey, CachedClass>;

pub(super) struct Lowered {
    /// With a serial number, which stands for its content.
    policy: Option<(u64, Arc<L4Policy>)>,
    findings: Vec<Finding>,
    /// As long as it lives, nothing else can be in its place.
    _object: Arc<AuthorizationPolicy>,
}

/// Serial numbers of the policies in the order of their names, the STRICT setting, and what the policies' tests of the
/// destination's address say.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    policies: Vec<u64>,
    strictness: Strictness,
    destination: Vec<bool>,
}

pub(super) struct CachedClass {
    id: u32,
    class: Arc<Class>,
    /// How many identities there were: more of them may need more rows.
    identities: usize,
    /// The classes that have the rows: one, or one for each group of client addresses.
    parts: Vec<Part>,
    sources: Vec<(SourceBlock, u32)>,
    rows: Vec<(PolicyKey, PolicyRow)>,
}

/// A class with rows, for clients that no policy tells from `source`.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    source: IpNet,
}

/// Workloads by namespace and labels: those of a group are selected by the same policies.
#[derive(Default)]
pub(super) struct Groups {
    workloads: Arc<Vec<Workload>>,
    /// The first workload of each group.
    first: Vec<usize>,
    /// The group of each workload; `None` when it is not enrolled.
    of: Vec<Option<usize>>,
}

/// Compiles the policies for every enrolled workload of `mesh`.
pub fn compile(mesh: &Mesh, interner: &mut Interner) -> Compiled {
    lower_all(mesh, interner);
    group(mesh, interner);
    let groups = std::mem::take(&mut interner.groups);
    let mut classes = ClassCache::new();
    let classes_of = classify(mesh, &groups, interner, &mut classes);
    interner.groups = groups;
    let mut findings = findings(mesh, interner);
    findings.extend(closed(&classes));
    let mut rows = HashMap::with_capacity(classes.values().map(|c| c.rows.len()).sum());
    let mut sources = HashMap::new();
    let mut by_id = HashMap::with_capacity(classes.len());
    for cached in classes.values() {
        rows.extend(cached.rows.iter().copied());
        sources.extend(cached.sources.iter().copied());
        let blocks = cached.sources.iter().map(|(block, _)| *block).collect();
        by_id.insert(cached.id, (cached.class.clone(), blocks));
    }
    interner.class_cache = classes;
    Compiled {
        rows: Arc::new(rows),
        sources: Arc::new(sources),
        identities: interner.identities().clone(),
        policy_names: interner.policies().clone(),
        findings,
        notes: interner.notes().clone(),
        classes_of,
        classes: by_id,
    }
}

fn place(policy: &Arc<AuthorizationPolicy>) -> usize {
    Arc::as_ptr(policy).addr()
}

/// Lowers the policies that are new, and forgets those that are gone.
fn lower_all(mesh: &Mesh, interner: &mut Interner) {
    for policy in &mesh.policies {
        if interner.policy_cache.contains_key(&place(policy)) {
            continue;
        }
        let (lowered, findings) = lower(policy, &mesh.settings);
        if let Some(lowered) = &lowered {
            interner.policy(&lowered.name);
        }
        let numbered = lowered.map(|lowered| (interner.new_serial(), Arc::new(lowered)));
        let lowered = Lowered { policy: numbered, findings, _object: policy.clone() };
        interner.policy_cache.insert(place(policy), lowered);
    }
    if interner.policy_cache.len() > mesh.policies.len() {
        let present: HashSet<_> = mesh.policies.iter().map(place).collect();
        interner.policy_cache.retain(|place, _| present.contains(place));
    }
}

fn findings(mesh: &Mesh, interner: &Interner) -> Vec<Finding> {
    let lowered = mesh.policies.iter().filter_map(|p| interner.policy_cache.get(&place(p)));
    let authn = mesh.peer_authentications.iter();
    let authn = authn.flat_map(|p| p.findings(&mesh.settings.root_namespace));
    lowered.flat_map(|l| l.findings.iter().cloned()).chain(authn).collect()
}

/// Numbers the identities and groups the workloads, unless they are those of the last time.
fn group(mesh: &Mesh, interner: &mut Interner) {
    if Arc::ptr_eq(&interner.groups.workloads, &mesh.workloads) {
        return;
    }
    let mut groups = Groups { workloads: mesh.workloads.clone(), ..Groups::default() };
    let mut known: HashMap<(&str, &BTreeMap<String, String>), usize> = HashMap::new();
    for (n, workload) in mesh.workloads.iter().enumerate() {
        if !workload.enrolled {
            groups.of.push(None);
            continue;
        }
        interner.identity(&workload.identity);
        let group = known.entry((&workload.namespace, &workload.labels)).or_insert_with(|| {
            groups.first.push(n);
            groups.first.len() - 1
        });
        groups.of.push(Some(*group));
    }
    interner.groups = groups;
}

/// The policies of a group, and its class unless that depends on the destination's address.
struct Group {
    policies: Vec<(u64, Arc<L4Policy>)>,
    strictness: Strictness,
    class: Option<u32>,
}

fn classify(mesh: &Mesh, groups: &Groups, interner: &mut Interner, classes: &mut ClassCache) -> Vec<Classes> {
    let applicable =
        Applicable::new(&mesh.settings.root_namespace, &mesh.policies, &mesh.peer_authentications);
    let mut resolved = Vec::with_capacity(groups.first.len());
    for workload in groups.first.iter().filter_map(|n| mesh.workloads.get(*n)) {
        let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
        let lowered = |p: &Arc<AuthorizationPolicy>| {
            interner.policy_cache.get(&place(p)).and_then(|lowered| lowered.policy.clone())
        };
        let policies: Vec<_> =
            applicable.policies(namespace, labels).into_iter().filter_map(lowered).collect();
        let strictness = applicable.strictness(namespace, labels);
        let anywhere = !policies.iter().any(|(_, p)| p.alternatives().any(|a| !a.destinations.is_empty()));
        let class = anywhere.then(|| class_id(&policies, &strictness, None, interner, classes));
        resolved.push(Group { policies, strictness, class });
    }
    let mut classes_of = Vec::with_capacity(mesh.workloads.len());
    for (workload, group) in mesh.workloads.iter().zip(&groups.of) {
        let mut of = Classes::default();
        if let Some(group) = group.and_then(|g| resolved.get(g)) {
            for ip in &workload.addresses {
                *of.at(*ip) = group.class.unwrap_or_else(|| {
                    class_id(&group.policies, &group.strictness, Some(*ip), interner, classes)
                });
            }
        }
        classes_of.push(of);
    }
    classes_of
}

fn class_id(
    policies: &[(u64, Arc<L4Policy>)],
    strictness: &Strictness,
    destination: Option<IpAddr>,
    interner: &mut Interner,
    used: &mut ClassCache,
) -> u32 {
    let key = ClassKey {
        policies: policies.iter().map(|(serial, _)| *serial).collect(),
        strictness: strictness.clone(),
        destination: destination.map(|ip| tests_of(policies, ip)).unwrap_or_default(),
    };
    if let Some(cached) = used.get(&key) {
        return cached.id;
    }
    let cached = match interner.class_cache.remove(&key) {
        Some(cached) if cached.identities == interner.count() => cached,
        Some(cached) => {
            CachedClass::with_rows(cached.id, cached.class, cached.parts, cached.sources, interner)
        }
        None => {
            let class = Class::new(policies, strictness, destination, interner);
            CachedClass::new(Arc::new(class), interner)
        }
    };
    let id = cached.id;
    used.insert(key, cached);
    id
}

/// What each test of the destination's address says to `ip`.
fn tests_of(policies: &[(u64, Arc<L4Policy>)], ip: IpAddr) -> Vec<bool> {
    let alternatives = policies.iter().flat_map(|(_, policy)| policy.alternatives());
    let tests = alternatives.map(|a| &a.destinations).filter(|test| !test.is_empty());
    tests.map(|test| test.holds(|block| block.contains(&ip))).collect()
}

impl CachedClass {
    fn new(class: Arc<Class>, interner: &mut Interner) -> Self {
        let groups = class.sources();
        if groups.is_empty() {
            let id = interner.new_class();
            let parts = vec![Part { id, source: ANYWHERE }];
            return Self::with_rows(id, class, parts, Vec::new(), interner);
        }
        let id = interner.new_class() | CLASS_BY_SOURCE;
        let mut parts = Vec::with_capacity(groups.len());
        let mut sources = Vec::new();
        for blocks in groups {
            let part = interner.new_class();
            sources.extend(blocks.iter().map(|block| (source_key(id, block), part)));
            parts.extend(blocks.first().map(|source| Part { id: part, source: *source }));
        }
        Self::with_rows(id, class, parts, sources, interner)
    }

    fn with_rows(
        id: u32,
        class: Arc<Class>,
        parts: Vec<Part>,
        sources: Vec<(SourceBlock, u32)>,
        interner: &mut Interner,
    ) -> Self {
        let mut rows = Vec::new();
        let fits = sources.len() <= MAX_SOURCES
            && parts.iter().all(|part| {
                let room = MAX_POLICY_ROWS.saturating_sub(rows.len());
                let part = class.rows(part.id, part.source, interner, room);
                part.map(|part| rows.extend(part)).is_some()
            });
        if fits {
            return Self { id, class, identities: interner.count(), parts, sources, rows };
        }
        // Another number: its rows would not change all at once.
        let closed = Arc::new(class.without_room());
        let part = Part { id: interner.new_class(), source: ANYWHERE };
        Self::with_rows(part.id, closed, vec![part], Vec::new(), interner)
    }
}

/// The policies of closed classes.
fn closed(classes: &ClassCache) -> BTreeSet<Finding> {
    let classes = classes.values().map(|cached| &cached.class).filter(|class| class.closed);
    let finding = |policy: &Arc<L4Policy>| Finding {
        code: Code::TooManyRows,
        object: format!("AuthorizationPolicy {}", policy.name),
        field: "spec.rules".to_owned(),
        message: format!(
            "the policies of a workload of this one need more than {MAX_POLICY_ROWS} rows (identities times ports), \
             so every connection to it is refused; name fewer ports"
        ),
    };
    classes.flat_map(|class| class.policies().map(finding)).collect()
}

#[cfg(test)]
mod tests;
