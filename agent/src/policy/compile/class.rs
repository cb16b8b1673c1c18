//! A policy class: what it decides, and the rows that say so.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_common::{
    ANY_IDENTITY, ANY_PORT, Decision, Ip, PolicyKey, PolicyRow, Reason, SourceKey, UNKNOWN_IDENTITY,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::policy::lower::{L4Policy, Test};
use crate::policy::matching::{Asked, Peer};
use crate::policy::notes::{Note, Notes, Would};
use crate::policy::{Action, Interner, Strictness};

/// Every address; where no policy of a class asks for the client's, this one stands for it.
pub(super) const ANYWHERE: IpNet = IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0));
/// Every IPv4 address. Blocks of one family say nothing about the other.
const ANY_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));

/// How many verdicts (identities times ports) are weighed for one class before it is closed: 20 bytes each.
const MOST_VERDICTS: usize = 4 << 20;

/// A policy with its index in `policy_names`.
type Indexed = (u32, Arc<L4Policy>);

/// What a class consists of; policies in the order of their names.
#[derive(Clone)]
pub(super) struct Class {
    /// There is no room for its rows: it refuses everything.
    pub(super) closed: bool,
    custom: Vec<Indexed>,
    deny: Vec<Indexed>,
    allow: Vec<Indexed>,
    audit: Vec<Indexed>,
    dry_run: bool,
    strict: Option<u32>,
    strict_ports: BTreeMap<u16, Option<u32>>,
    /// An address of the destination, where a policy asks for it.
    destination: Option<IpAddr>,
}

impl Class {
    pub(super) fn new(
        policies: &[(u64, Arc<L4Policy>)],
        strictness: &Strictness,
        destination: Option<IpAddr>,
        interner: &mut Interner,
    ) -> Self {
        let indexed: Vec<Indexed> =
            policies.iter().map(|(_, p)| (interner.policy(&p.name), p.clone())).collect();
        let of = |action| indexed.iter().filter(|(_, p)| p.action == action).cloned().collect();
        let mut index = |by: &Option<crate::policy::StrictBy>| by.as_ref().map(|by| interner.policy(&by.0));
        Self {
            closed: false,
            custom: of(Action::Custom),
            deny: of(Action::Deny),
            allow: of(Action::Allow),
            audit: of(Action::Audit),
            dry_run: indexed.iter().any(|(_, p)| p.dry_run),
            strict: index(&strictness.default),
            strict_ports: strictness.ports.iter().map(|(port, by)| (*port, index(by))).collect(),
            destination,
        }
    }

    /// The class, closed.
    pub(super) fn without_room(&self) -> Self {
        Self { closed: true, ..self.clone() }
    }

    /// The verdict, and what is to be noted beside it.
    pub(super) fn decide(&self, asked: &Asked<'_>, notes: &Notes) -> Decision {
        if self.closed {
            return Decision::refuse(Reason::NoPolicyState);
        }
        let decision = self.verdict(asked, false);
        if !self.dry_run && self.audit.is_empty() {
            return decision;
        }
        Decision { note: notes.id(self.note(asked, &decision)), ..decision }
    }

    /// `as_if`: dry-run policies were enforced.
    fn verdict(&self, asked: &Asked<'_>, as_if: bool) -> Decision {
        let live = |policy: &L4Policy| as_if || !policy.dry_run;
        let matching = |policies: &[Indexed]| {
            let hit = |p: &L4Policy| live(p) && p.matches(asked, self.destination);
            policies.iter().find(|(_, policy)| hit(policy)).map(|(index, _)| *index)
        };
        let refuse = |reason, policy| Decision { policy, ..Decision::refuse(reason) };
        let strict = self.strict_ports.get(&asked.port).unwrap_or(&self.strict);
        if let (Peer::Plaintext, Some(policy)) = (asked.peer, strict) {
            return refuse(Reason::StrictPlaintext, *policy);
        }
        if let Some(policy) = matching(&self.custom) {
            return refuse(Reason::NoAuthorizer, policy);
        }
        if let Some(policy) = matching(&self.deny) {
            return refuse(Reason::DeniedByPolicy, policy);
        }
        let Some((first, _)) = self.allow.iter().find(|(_, policy)| live(policy)) else {
            return Decision::allow(Reason::NoPolicy);
        };
        match matching(&self.allow) {
            Some(policy) => Decision { policy, ..Decision::allow(Reason::Allowed) },
            None => refuse(Reason::NotAllowed, *first),
        }
    }

    fn note(&self, asked: &Asked<'_>, decision: &Decision) -> Note {
        let hit = |p: &L4Policy| p.matches(asked, self.destination);
        let names = |list: &mut dyn Iterator<Item = &Indexed>| {
            list.filter(|(_, p)| hit(p)).map(|(_, p)| p.name.clone()).collect()
        };
        let as_if = self.verdict(asked, true);
        let would = (as_if.verdict != decision.verdict)
            .then(|| Would { allow: as_if.allowed(), policy: self.name(as_if.policy) });
        Note {
            audit: names(&mut self.audit.iter()),
            dry_run: names(&mut self.deny.iter().chain(&self.allow).filter(|(_, p)| p.dry_run)),
            would,
        }
    }

    fn name(&self, index: u32) -> String {
        let found = self.indexed().find(|(known, _)| *known == index);
        found.map(|(_, policy)| policy.name.clone()).unwrap_or_default()
    }

    fn indexed(&self) -> impl Iterator<Item = &Indexed> {
        self.custom.iter().chain(&self.deny).chain(&self.allow).chain(&self.audit)
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &Arc<L4Policy>> {
        self.indexed().map(|(_, policy)| policy)
    }

    /// The blocks of client addresses that the policies tell apart, each with those inside it taken out. Empty: none
    /// asks.
    fn blocks(&self) -> BTreeSet<IpNet> {
        let tests = self.policies().flat_map(|p| p.alternatives()).map(|a| &a.sources);
        let mut blocks: BTreeSet<IpNet> =
            tests.flat_map(|t| t.any.iter().chain(&t.none)).map(IpNet::trunc).collect();
        if !blocks.is_empty() {
            blocks.extend([ANYWHERE, ANY_V4]);
        }
        blocks
    }

    /// Blocks in groups of equal verdicts. Empty: no policy asks for the client's address.
    pub(super) fn sources(&self) -> Vec<Vec<IpNet>> {
        let alternatives = self.policies().flat_map(|p| p.alternatives());
        let tests = alternatives.map(|a| &a.sources).filter(|test| !test.is_empty());
        let tests: Vec<_> = tests.map(Blocks::from).collect();
        let mut groups: BTreeMap<Vec<bool>, Vec<IpNet>> = BTreeMap::new();
        for block in self.blocks() {
            let verdicts = tests.iter().map(|test| test.holds(&block)).collect();
            groups.entry(verdicts).or_default().push(block);
        }
        groups.into_values().collect()
    }

    /// The rows for clients of one group of blocks, of which `source` is one; no more than `room`, else `None`.
    pub(super) fn rows(
        &self,
        id: u32,
        source: IpNet,
        interner: &Interner,
        room: usize,
    ) -> Option<Vec<(PolicyKey, PolicyRow)>> {
        if self.closed {
            let row = PolicyRow::new(Decision::refuse(Reason::NoPolicyState));
            return Some(vec![(PolicyKey::new(id, ANY_IDENTITY, ANY_PORT), row)]);
        }
        let ports = self.ports();
        let of = |peer: &Peer| Verdicts::of(self, peer, source, &ports, interner.notes());
        let stranger = of(&Peer::Stranger);
        let mut named: Vec<(u32, Verdicts)> = Vec::new();
        // Each may need a row for each port: those that need none are found only when all are known.
        let most = MOST_VERDICTS / (ports.len() + 1);
        for identity in self.candidates(interner) {
            let Some(peer) = interner.peer(identity) else { continue };
            named.push((identity, of(peer)));
            if named.len() > most {
                return None;
            }
        }
        let general = most_common(&named, &stranger, interner.count());
        let mut rows = Rows { class: id, rows: Vec::new() };
        rows.push(ANY_IDENTITY, ANY_PORT, general.other);
        for (port, decision) in general.exceptions() {
            rows.push(ANY_IDENTITY, port, decision);
        }
        rows.push_identity(UNKNOWN_IDENTITY, &of(&Peer::Plaintext), &general);
        if stranger != general {
            let known: HashSet<u32> = named.iter().map(|(identity, _)| *identity).collect();
            for identity in interner.numbers().filter(|n| !known.contains(n)) {
                rows.push_identity(identity, &stranger, &general);
            }
        }
        for (identity, verdicts) in &named {
            rows.push_identity(*identity, verdicts, &general);
        }
        (rows.rows.len() <= room).then_some(rows.rows)
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

/// A test of the client's address, fast in long lists.
struct Blocks {
    any: HashSet<IpNet>,
    none: HashSet<IpNet>,
}

impl From<&Test<IpNet>> for Blocks {
    fn from(test: &Test<IpNet>) -> Self {
        let set = |list: &[IpNet]| list.iter().map(IpNet::trunc).collect();
        Self { any: set(&test.any), none: set(&test.none) }
    }
}

impl Blocks {
    /// What the test says to every address of `block`, which has those of smaller blocks taken out.
    fn holds(&self, block: &IpNet) -> bool {
        let around = |set: &HashSet<IpNet>| {
            let wider = std::iter::successors(Some(*block), IpNet::supernet);
            !set.is_empty() && wider.into_iter().any(|net| set.contains(&net))
        };
        (self.any.is_empty() || around(&self.any)) && !around(&self.none)
    }
}

/// The key and the prefix length of a block in the `sources` map.
pub(super) fn source_key(class: u32, block: &IpNet) -> (SourceKey, u32) {
    let bits = u32::from(block.prefix_len()) + if block.addr().is_ipv4() { 96 } else { 0 };
    (SourceKey::new(class, Ip::from(block.network())), SourceKey::CLASS_BITS + bits)
}

/// How many rows it must save before what anybody gets is not a stranger's verdict: a reader of the table expects that.
const WORTH_IT: usize = 256;

/// The verdicts that stand for any identity: a stranger's, unless a pattern gives most of the `total` numbered ones
/// others. Identities that no policy names are strangers.
fn most_common(named: &[(u32, Verdicts)], stranger: &Verdicts, total: usize) -> Verdicts {
    let mut counts: HashMap<&Verdicts, usize> = HashMap::new();
    for (_, verdicts) in named {
        *counts.entry(verdicts).or_default() += 1;
    }
    let unnamed = total.saturating_sub(named.len()) + counts.get(stranger).copied().unwrap_or(0);
    // Of equals the least by content: which one it is must not depend on the order of a map.
    let most =
        counts.into_iter().max_by_key(|(verdicts, count)| (*count, std::cmp::Reverse(verdicts.weight())));
    match most {
        Some((verdicts, count)) if count > unnamed + WORTH_IT => verdicts.clone(),
        _ => stranger.clone(),
    }
}

/// One peer's verdicts: at each port that a policy names, and at all others.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Verdicts {
    ports: Vec<(u16, Decision)>,
    other: Decision,
}

impl Verdicts {
    fn of(class: &Class, peer: &Peer, source: IpNet, ports: &BTreeSet<u16>, notes: &Notes) -> Self {
        let at = |port| class.decide(&Asked { peer, port, source }, notes);
        Self { ports: ports.iter().map(|port| (*port, at(*port))).collect(), other: at(ANY_PORT) }
    }

    fn exceptions(&self) -> impl Iterator<Item = (u16, Decision)> {
        self.ports.iter().copied().filter(|(_, decision)| *decision != self.other)
    }

    fn weight(&self) -> Vec<(u16, u32, u32, u32, u32)> {
        let row = |(port, d): (u16, Decision)| (port, d.verdict as u32, d.reason as u32, d.policy, d.note);
        self.ports.iter().copied().chain([(ANY_PORT, self.other)]).map(row).collect()
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
