//! From policies to the rows of the `policy` map.
//!
//! Workloads that the same policies select, with the same content and the same STRICT setting, share a *class*. A class
//! never changes: other content is another class with a new id, so the kernel can take the new rows, then the workloads'
//! new class, then lose the old rows, and every connection meets one or the other in full.
//!
//! Rows of a class: (any, any) is the verdict of a peer whose identity no policy names; (any, port) where that depends
//! on the port; rows of an identity only where it differs from those. `culvert_common::decide` finds the most specific
//! one first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use culvert_common::{
    ANY_IDENTITY, ANY_PORT, Decision, PolicyKey, PolicyRow, PolicyTable, Reason, UNKNOWN_IDENTITY, Verdict,
    decide,
};

use super::lower::{L4Policy, lower};
use super::matching::{Face, Peer};
use super::{Applicable, AuthorizationPolicy, Finding, Interner, PeerAuthentication, StrictBy, Strictness};
use crate::identity::SpiffeId;
use crate::model::Mesh;

/// The compiled policies of a mesh. Immutable.
#[derive(Default)]
pub struct Compiled {
    /// The rows of the `policy` map.
    pub rows: HashMap<PolicyKey, PolicyRow>,
    /// The class of each enrolled workload, by uid.
    pub class_of: HashMap<String, u32>,
    /// Every identity that has a number.
    pub identities: Arc<HashMap<SpiffeId, u32>>,
    /// The index of every policy that has one, by `namespace/name`.
    pub policy_names: Arc<HashMap<String, u32>>,
    /// What of the policies is not enforced as written.
    pub findings: Vec<Finding>,
    classes: HashMap<u32, Arc<Class>>,
}

impl Compiled {
    /// May `peer` (`None`: it proved no identity) connect to `port` of a workload of `class`?
    ///
    /// The kernel's tables answer for every identity that they know; one that they have never met (a tunnel from
    /// another cluster) is evaluated here.
    pub fn decide(&self, class: u32, peer: Option<&SpiffeId>, port: u16) -> Decision {
        match peer.map(|peer| (peer, self.identities.get(peer))) {
            None => decide(self, class, UNKNOWN_IDENTITY, port),
            Some((_, Some(identity))) => decide(self, class, *identity, port),
            Some((peer, None)) => match self.classes.get(&class) {
                Some(class) => class.decide(&Peer::Known(Face::from(peer)), port),
                None => Decision::refuse(Reason::NoPolicyState),
            },
        }
    }
}

impl PolicyTable for Compiled {
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        self.rows.get(key).copied()
    }
}

/// Policies that were lowered before, by content.
pub(super) type PolicyCache = HashMap<Arc<AuthorizationPolicy>, Lowered>;

/// Classes that were compiled before, by content.
pub(super) type ClassCache = HashMap<ClassKey, CachedClass>;

pub(super) struct Lowered {
    /// With a serial number, which stands for its content.
    policy: Option<(u64, Arc<L4Policy>)>,
    findings: Vec<Finding>,
}

/// Serial numbers of the policies in the order of their names, and the STRICT setting.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    policies: Vec<u64>,
    strictness: Strictness,
}

pub(super) struct CachedClass {
    id: u32,
    class: Arc<Class>,
    /// How many identities there were: more of them may need more rows.
    identities: usize,
    rows: Vec<(PolicyKey, PolicyRow)>,
}

/// Compiles the policies for every enrolled workload of `mesh`.
pub fn compile(mesh: &Mesh, interner: &mut Interner) -> Compiled {
    let (enforced, findings) = lower_all(mesh, interner);
    let mut compiled = Compiled { findings, ..Compiled::default() };
    let applicable =
        Applicable::new(&mesh.settings.root_namespace, &mesh.policies, &mesh.peer_authentications);
    for workload in mesh.workloads.iter().filter(|w| w.enrolled) {
        interner.identity(&workload.identity);
    }
    let mut used = ClassCache::new();
    let mut by_labels: HashMap<(&str, &BTreeMap<String, String>), u32> = HashMap::new();
    for workload in mesh.workloads.iter().filter(|w| w.enrolled) {
        let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
        let id = *by_labels.entry((namespace, labels)).or_insert_with(|| {
            let policies = applicable.policies(namespace, labels).into_iter();
            let policies: Vec<_> = policies.filter_map(|p| enforced.get(&Arc::as_ptr(p)).cloned()).collect();
            class_id(&policies, applicable.strictness(namespace, labels), interner, &mut used)
        });
        compiled.class_of.insert(workload.uid.clone(), id);
    }
    for cached in used.values() {
        compiled.rows.extend(cached.rows.iter().copied());
        compiled.classes.insert(cached.id, cached.class.clone());
    }
    interner.class_cache = used;
    compiled.identities = interner.identities().clone();
    compiled.policy_names = interner.policies().clone();
    compiled
}

/// The enforceable policies by the place of the policy that they come from.
type Enforced = HashMap<*const AuthorizationPolicy, (u64, Arc<L4Policy>)>;

fn lower_all(mesh: &Mesh, interner: &mut Interner) -> (Enforced, Vec<Finding>) {
    let mut cache = PolicyCache::new();
    let mut enforced = Enforced::new();
    let mut findings = Vec::new();
    for policy in &mesh.policies {
        let lowered = interner.policy_cache.remove(policy).unwrap_or_else(|| {
            let (lowered, findings) = lower(policy);
            let policy = lowered.map(|lowered| (interner.new_serial(), Arc::new(lowered)));
            Lowered { policy, findings }
        });
        if let Some((serial, lowered)) = &lowered.policy {
            interner.policy(&lowered.name);
            enforced.insert(Arc::as_ptr(policy), (*serial, lowered.clone()));
        }
        findings.extend_from_slice(&lowered.findings);
        cache.insert(policy.clone(), lowered);
    }
    interner.policy_cache = cache;
    let authn = |p: &Arc<PeerAuthentication>| p.findings(&mesh.settings.root_namespace);
    findings.extend(mesh.peer_authentications.iter().flat_map(authn));
    (enforced, findings)
}

fn class_id(
    policies: &[(u64, Arc<L4Policy>)],
    strictness: Strictness,
    interner: &mut Interner,
    used: &mut ClassCache,
) -> u32 {
    let key = ClassKey { policies: policies.iter().map(|(serial, _)| *serial).collect(), strictness };
    if let Some(cached) = used.get(&key) {
        return cached.id;
    }
    let identities = interner.identities().len();
    let (id, class) = match interner.class_cache.remove(&key) {
        Some(cached) if cached.identities == identities => {
            let id = cached.id;
            used.insert(key, cached);
            return id;
        }
        Some(cached) => (cached.id, cached.class),
        None => {
            let class = Class::new(policies, &key.strictness, interner);
            (interner.new_class(), Arc::new(class))
        }
    };
    let rows = class.rows(id, interner);
    used.insert(key, CachedClass { id, class, identities, rows });
    id
}

/// What a class consists of; policies with their index, in the order of their names.
struct Class {
    deny: Vec<(u32, Arc<L4Policy>)>,
    allow: Vec<(u32, Arc<L4Policy>)>,
    strict: Option<u32>,
    strict_ports: BTreeMap<u16, Option<u32>>,
}

impl Class {
    fn new(policies: &[(u64, Arc<L4Policy>)], strictness: &Strictness, interner: &mut Interner) -> Self {
        let indexed: Vec<_> = policies.iter().map(|(_, p)| (interner.policy(&p.name), p.clone())).collect();
        let (deny, allow) = indexed.into_iter().partition(|(_, policy)| policy.deny);
        let mut index = |by: &Option<StrictBy>| by.as_ref().map(|by| interner.policy(&by.0));
        let strict = index(&strictness.default);
        let strict_ports = strictness.ports.iter().map(|(port, by)| (*port, index(by))).collect();
        Self { deny, allow, strict, strict_ports }
    }

    fn decide(&self, peer: &Peer, port: u16) -> Decision {
        let matching = |policies: &[(u32, Arc<L4Policy>)]| {
            policies.iter().find(|(_, policy)| policy.matches(peer, port)).map(|(index, _)| *index)
        };
        let strict = self.strict_ports.get(&port).unwrap_or(&self.strict);
        if let (Peer::Plaintext, Some(policy)) = (peer, strict) {
            return Decision { verdict: Verdict::Refused, reason: Reason::StrictPlaintext, policy: *policy };
        }
        if let Some(policy) = matching(&self.deny) {
            return Decision { verdict: Verdict::Refused, reason: Reason::DeniedByPolicy, policy };
        }
        let Some((first, _)) = self.allow.first() else {
            return Decision::allow(Reason::NoPolicy);
        };
        match matching(&self.allow) {
            Some(policy) => Decision { verdict: Verdict::Allowed, reason: Reason::Allowed, policy },
            None => Decision { verdict: Verdict::Refused, reason: Reason::NotAllowed, policy: *first },
        }
    }

    fn rows(&self, id: u32, interner: &Interner) -> Vec<(PolicyKey, PolicyRow)> {
        let ports = self.ports();
        let mut rows = Rows { class: id, rows: Vec::new() };
        let general = Verdicts::of(self, &Peer::Stranger, &ports);
        rows.push(ANY_IDENTITY, ANY_PORT, general.other);
        for (port, decision) in general.exceptions() {
            rows.push(ANY_IDENTITY, port, decision);
        }
        rows.push_identity(UNKNOWN_IDENTITY, &Verdicts::of(self, &Peer::Plaintext, &ports), &general);
        for identity in self.candidates(interner) {
            if let Some(peer) = interner.peer(identity) {
                rows.push_identity(identity, &Verdicts::of(self, peer, &ports), &general);
            }
        }
        rows.rows
    }

    fn policies(&self) -> impl Iterator<Item = &Arc<L4Policy>> {
        self.deny.iter().chain(&self.allow).map(|(_, policy)| policy)
    }

    fn ports(&self) -> BTreeSet<u16> {
        let named = self
            .policies()
            .flat_map(|p| p.alternatives())
            .flat_map(|a| a.ports.any.iter().chain(&a.ports.none));
        named.chain(self.strict_ports.keys()).copied().collect()
    }

    /// The identities that some policy may treat unlike a stranger.
    fn candidates(&self, interner: &Interner) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for alternative in self.policies().flat_map(|p| p.alternatives()) {
            let test = &alternative.principals;
            test.any.iter().chain(&test.none).for_each(|p| interner.with_principal(p, &mut found));
            let test = &alternative.namespaces;
            test.any.iter().chain(&test.none).for_each(|n| interner.with_namespace(n, &mut found));
            let test = &alternative.accounts;
            test.any.iter().chain(&test.none).for_each(|a| interner.with_account(a, &mut found));
        }
        found
    }
}

/// One peer's verdicts: at each port that a policy names, and at all others.
struct Verdicts {
    ports: Vec<(u16, Decision)>,
    other: Decision,
}

impl Verdicts {
    fn of(class: &Class, peer: &Peer, ports: &BTreeSet<u16>) -> Self {
        Self {
            ports: ports.iter().map(|port| (*port, class.decide(peer, *port))).collect(),
            other: class.decide(peer, ANY_PORT),
        }
    }

    fn exceptions(&self) -> impl Iterator<Item = (u16, Decision)> {
        self.ports.iter().copied().filter(|(_, decision)| *decision != self.other)
    }
}

struct Rows {
    class: u32,
    rows: Vec<(PolicyKey, PolicyRow)>,
}

impl Rows {
    fn push(&mut self, identity: u32, port: u16, decision: Decision) {
        self.rows.push((PolicyKey::new(self.class, identity, port), PolicyRow::new(decision)));
    }

    /// A row of (identity, any port) hides the rows of (any identity, port): with one, ports compare with it; without,
    /// with what anybody gets there.
    fn push_identity(&mut self, identity: u32, own: &Verdicts, general: &Verdicts) {
        if own.other != general.other {
            self.push(identity, ANY_PORT, own.other);
            for (port, decision) in own.exceptions() {
                self.push(identity, port, decision);
            }
            return;
        }
        for ((port, decision), (_, fallback)) in own.ports.iter().zip(&general.ports) {
            if decision != fallback {
                self.push(identity, *port, *decision);
            }
        }
    }
}

#[cfg(test)]
mod tests;
