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

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_common::{
    Decision, Ip, PolicyKey, PolicyRow, PolicyTable, Reason, SourceKey, UNKNOWN_IDENTITY, decide,
};
use ipnet::IpNet;

use super::evaluate::Answer;
use super::matching::{Asked, Face, Peer};
use super::notes::Notes;
use super::{Finding, Interner};
use crate::identity::SpiffeId;
use crate::model::Mesh;
pub(super) use cache::Cache;
use class::Class;

mod cache;
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
    classes: Arc<HashMap<u32, Known>>,
}

/// A class, and the blocks in its `sources` entries.
#[derive(Clone)]
struct Known {
    class: Arc<Class>,
    blocks: Arc<[SourceBlock]>,
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
                Some(Known { class, .. }) => {
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

impl Compiled {
    /// A decision in the reference's words; `None`: it has no such words.
    pub fn in_words(&self, decision: Decision) -> Option<Answer> {
        let policy = || {
            let named = self.policy_names.iter().find(|(_, index)| **index == decision.policy);
            named.map(|(name, _)| name.clone())
        };
        Some(match decision.reason {
            Reason::Allowed => Answer::Allowed(policy()?),
            Reason::DeniedByPolicy => Answer::Denied(policy()?),
            Reason::NoAuthorizer => Answer::NobodyToAsk(policy()?),
            Reason::NoPolicy => Answer::NoPolicy,
            Reason::NotAllowed => Answer::NotAllowed(policy()?),
            Reason::StrictPlaintext => Answer::Strict(policy()?),
            _ => return None,
        })
        .filter(|answer| answer.allowed() == decision.allowed())
    }
}

impl PolicyTable for Compiled {
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        self.rows.get(key).copied()
    }

    fn class_at(&self, key: &SourceKey) -> Option<u32> {
        let known = self.classes.get(&key.class())?;
        let around = known.blocks.iter().filter(|(block, bits)| covers(block, *bits, key));
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

/// Compiles the policies for every enrolled workload of `mesh`. What is as it was the last time costs next to nothing.
pub fn compile(mesh: &Mesh, interner: &mut Interner) -> Compiled {
    let mut cache = std::mem::take(&mut interner.cache);
    let compiled = cache.compile(mesh, interner);
    interner.cache = cache;
    compiled
}

#[cfg(test)]
mod tests;
