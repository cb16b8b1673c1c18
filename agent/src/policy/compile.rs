//! From policies to rows that [`culvert_common::decide`] reads.
//!
//! A class is the content of everything that decides about a workload: its policies and its mTLS demand. Equal content
//! is one class; changed content is a new class with new rows. A class never changes its meaning, so the kernel is
//! switched from one policy to the next workload by workload, each atomically.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use culvert_common::{
    ANY_IDENTITY, ANY_PORT, Decision, FIRST_IDENTITY, PolicyKey, PolicyRow, PolicyTable, Reason,
    UNKNOWN_IDENTITY, Verdict, decide,
};

use super::matching::Peer;
use super::peer_auth::Strict;
use super::select::{L4Policy, PolicySet};
use crate::control::objects::Action;
use crate::identity::SpiffeId;
use crate::model::Mesh;

/// Everything that decides about a workload.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    policies: Vec<Arc<L4Policy>>,
    strict: Strict,
}

/// Numbers for identities, policies and classes. A number is given once; it keeps its meaning while the agent lives.
#[derive(Default)]
pub struct Interner {
    identities: HashMap<SpiffeId, u32>,
    policies: HashMap<String, u32>,
    classes: HashMap<Arc<Content>, u32>,
    services: HashMap<(String, u16, bool), u32>,
    next_identity: u32,
    next_class: u32,
}

impl Interner {
    /// Takes over the numbers that a predecessor gave and left in the maps.
    pub fn adopt(identities: Vec<(u32, String)>, policies: Vec<(u32, String)>, highest_class: u32) -> Self {
        let mut interner =
            Self { next_identity: FIRST_IDENTITY, next_class: highest_class + 1, ..Self::default() };
        for (id, text) in identities {
            interner.next_identity = interner.next_identity.max(id.saturating_add(1));
            if let Ok(spiffe) = text.parse() {
                interner.identities.insert(spiffe, id);
            }
        }
        interner.policies = policies.into_iter().map(|(index, name)| (name, index)).collect();
        interner
    }

    /// The number of an identity.
    pub fn identity(&mut self, spiffe: &SpiffeId) -> u32 {
        if let Some(id) = self.identities.get(spiffe) {
            return *id;
        }
        let id = self.next_identity.max(FIRST_IDENTITY);
        self.next_identity = id + 1;
        self.identities.insert(spiffe.clone(), id);
        id
    }

    /// The index of a policy; 0 for none.
    fn policy(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let next = self.policies.values().copied().max().unwrap_or(0) + 1;
        *self.policies.entry(name.to_owned()).or_insert(next)
    }

    fn past(&self) -> Past {
        Past {
            policies: self.policies.iter().map(|(name, index)| (*index, name.clone())).collect(),
            identities: self.identities.iter().map(|(spiffe, id)| (*id, spiffe.clone())).collect(),
        }
    }

    /// The number of a service port in one family.
    pub fn service(&mut self, name: &str, port: u16, v4: bool) -> u32 {
        let next = self.services.len() as u32 + 1;
        *self.services.entry((name.to_owned(), port, v4)).or_insert(next)
    }

    fn class(&mut self, content: &Arc<Content>) -> u32 {
        if let Some(class) = self.classes.get(content) {
            return *class;
        }
        let class = self.next_class.max(1);
        self.next_class = class + 1;
        self.classes.insert(content.clone(), class);
        class
    }
}

/// Names that numbers once had.
#[derive(Default)]
pub struct Past {
    policies: HashMap<u32, String>,
    identities: HashMap<u32, SpiffeId>,
}

impl Past {
    /// The policy that had this index.
    pub fn policy(&self, index: u32) -> Option<&str> {
        self.policies.get(&index).map(String::as_str)
    }

    /// The identity that had this number.
    pub fn identity(&self, id: u32) -> Option<&SpiffeId> {
        self.identities.get(&id)
    }
}

/// Compiled policy.
#[derive(Default)]
pub struct Compiled {
    /// All rows.
    pub rows: HashMap<PolicyKey, PolicyRow>,
    /// Class of each enrolled workload, by UID.
    pub class_of: HashMap<String, u32>,
    /// Identities in use.
    pub identities: HashMap<u32, SpiffeId>,
    /// Policies in force, by index.
    pub policy_names: HashMap<u32, String>,
    /// Every policy and identity that ever had a number, for records of the past.
    pub past: Past,
    numbers: HashMap<SpiffeId, u32>,
    contents: HashMap<u32, Arc<Content>>,
    indexes: HashMap<String, u32>,
}

impl PolicyTable for Compiled {
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        self.rows.get(key).copied()
    }
}

impl Compiled {
    /// The verdict on `peer`, by the same rows and the same function as in the kernel. An identity that has no rows (a
    /// peer that no object tells of) is judged by the policies themselves.
    pub fn decide(&self, class: u32, peer: Option<&SpiffeId>, port: u16) -> Decision {
        match peer {
            None => decide(self, class, UNKNOWN_IDENTITY, port),
            Some(spiffe) => match (self.numbers.get(spiffe), self.contents.get(&class)) {
                (Some(number), _) => decide(self, class, *number, port),
                (None, Some(content)) => content.judge(Some(spiffe), Some(port), &self.indexes),
                (None, None) => Decision::refuse(Reason::NoPolicyState),
            },
        }
    }

    /// The number of an identity in use.
    pub fn number(&self, spiffe: &SpiffeId) -> Option<u32> {
        self.numbers.get(spiffe).copied()
    }
}

/// Compiles the policies for every enrolled workload, local or remote.
pub fn compile(mesh: &Mesh, set: &PolicySet, interner: &mut Interner) -> Compiled {
    let mut compiled = Compiled::default();
    let enrolled = || mesh.workloads.iter().filter(|w| w.enrolled);
    for workload in enrolled() {
        let number = interner.identity(&workload.identity);
        compiled.identities.insert(number, workload.identity.clone());
        compiled.numbers.insert(workload.identity.clone(), number);
    }
    let mut contents: HashMap<Arc<Content>, u32> = HashMap::new();
    for workload in enrolled() {
        let content =
            Arc::new(Content { policies: set.authorization_of(workload), strict: set.strict_of(workload) });
        let class = *contents.entry(content.clone()).or_insert_with(|| interner.class(&content));
        compiled.class_of.insert(workload.uid.clone(), class);
    }
    for content in contents.keys() {
        for name in content
            .policies
            .iter()
            .map(|p| &p.name)
            .chain([&content.strict.policy, &content.strict.except_policy])
        {
            let index = interner.policy(name);
            if index != 0 {
                compiled.indexes.insert(name.clone(), index);
                compiled.policy_names.insert(index, name.clone());
            }
        }
    }
    for (content, class) in &contents {
        content.rows(*class, &compiled.identities, &compiled.indexes, &mut compiled.rows);
        compiled.contents.insert(*class, content.clone());
    }
    interner.classes.retain(|content, _| contents.contains_key(content));
    compiled.past = interner.past();
    compiled
}

impl Content {
    /// The verdict on one peer; `port` is `None` for every port that nothing names.
    fn judge(&self, peer: Peer<'_>, port: Option<u16>, indexes: &HashMap<String, u32>) -> Decision {
        let index = |name: &str| indexes.get(name).copied().unwrap_or(0);
        let refuse = |reason, name: &str| Decision { verdict: Verdict::Refused, reason, policy: index(name) };
        if let (None, Some(policy)) = (peer, self.strict.demanded_by(port)) {
            return refuse(Reason::StrictPlaintext, policy);
        }
        let of = |action| self.policies.iter().filter(move |p| p.action == action);
        if let Some(policy) = of(Action::Deny).find(|p| p.matches(peer, port)) {
            return refuse(Reason::DeniedByPolicy, &policy.name);
        }
        let Some(first) = of(Action::Allow).next() else { return Decision::allow(Reason::NoPolicy) };
        match of(Action::Allow).find(|p| p.matches(peer, port)) {
            Some(policy) => Decision { policy: index(&policy.name), ..Decision::allow(Reason::Allowed) },
            None => refuse(Reason::NotAllowed, &first.name),
        }
    }

    fn ports(&self) -> BTreeSet<u16> {
        let rules = self.policies.iter().flat_map(|p| &p.rules);
        rules.flat_map(super::matching::L4Rule::ports).chain(self.strict.except.iter().copied()).collect()
    }

    /// Writes the rows: the answers of somebody whom no policy names for (any, any) and (any, port), then for each identity
    /// and for the unknown peer only what differs from what the lookup would fall back to.
    fn rows(
        &self,
        class: u32,
        identities: &HashMap<u32, SpiffeId>,
        indexes: &HashMap<String, u32>,
        rows: &mut HashMap<PolicyKey, PolicyRow>,
    ) {
        let ports = self.ports();
        // No identity can have this trust domain: what it gets is what no policy string gives or takes by name.
        let stranger = SpiffeId::new("\u{0}", "\u{0}", "\u{0}");
        let base = self.judge(Some(&stranger), None, indexes);
        rows.insert(PolicyKey::new(class, ANY_IDENTITY, ANY_PORT), PolicyRow::new(base));
        let mut any: HashMap<u16, Decision> = HashMap::new();
        for port in &ports {
            let decision = self.judge(Some(&stranger), Some(*port), indexes);
            any.insert(*port, decision);
            if decision != base {
                rows.insert(PolicyKey::new(class, ANY_IDENTITY, *port), PolicyRow::new(decision));
            }
        }
        let known = identities.iter().map(|(id, spiffe)| (*id, Some(spiffe)));
        let mut seen = HashSet::new();
        for (id, peer) in known.chain([(UNKNOWN_IDENTITY, None)]).filter(|(id, _)| seen.insert(*id)) {
            self.rows_of(class, id, peer, indexes, &ports, (base, &any), rows);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the inner half of one loop")]
    fn rows_of(
        &self,
        class: u32,
        id: u32,
        peer: Peer<'_>,
        indexes: &HashMap<String, u32>,
        ports: &BTreeSet<u16>,
        (base, any): (Decision, &HashMap<u16, Decision>),
        rows: &mut HashMap<PolicyKey, PolicyRow>,
    ) {
        let elsewhere = self.judge(peer, None, indexes);
        let own_row = elsewhere != base;
        if own_row {
            rows.insert(PolicyKey::new(class, id, ANY_PORT), PolicyRow::new(elsewhere));
        }
        for port in ports {
            let decision = self.judge(peer, Some(*port), indexes);
            // The (identity, any port) row is found before the (any identity, port) row.
            let fallback = if own_row { elsewhere } else { any.get(port).copied().unwrap_or(base) };
            if decision != fallback {
                rows.insert(PolicyKey::new(class, id, *port), PolicyRow::new(decision));
            }
        }
    }
}
