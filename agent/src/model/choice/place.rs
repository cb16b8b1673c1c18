//! Where a node is.

use crate::control::objects::Node;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

/// A node and what it is a part of; empty: not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Place<'a> {
    pub(super) region: &'a str,
    pub(super) zone: &'a str,
    pub(super) subzone: &'a str,
    pub(super) node: &'a str,
}

/// What two places may share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
}

impl Scope {
    fn shared(self) -> &'static str {
        match self {
            Self::Region => "same region",
            Self::Zone => "same zone",
            Self::Subzone => "same subzone",
            Self::Node => "same node",
        }
    }
}

impl<'a> Place<'a> {
    /// What the Node's labels say.
    pub(super) fn of(node: &'a Node) -> Self {
        let label = |key| node.metadata.labels.get(key).map_or("", String::as_str);
        Self { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE), node: &node.metadata.name }
    }

    /// What an Istio `locality` says: `region/zone/subzone`, of which the last may be missing.
    pub(super) fn at(locality: &'a str) -> Self {
        let mut parts = locality.split('/');
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next(), node: "" }
    }

    fn part(&self, scope: Scope) -> &'a str {
        match scope {
            Scope::Region => self.region,
            Scope::Zone => self.zone,
            Scope::Subzone => self.subzone,
            Scope::Node => self.node,
        }
    }

    /// How many of `scopes` the two share, before the first that they do not. As in ztunnel two unknown ones are the same: nodes
    /// without a subzone do not keep their pods from preferring their node.
    pub(super) fn rank(&self, other: &Place<'_>, scopes: &[Scope]) -> u8 {
        let shared = scopes.iter().take_while(|scope| self.part(**scope) == other.part(**scope)).count();
        u8::try_from(shared).unwrap_or(u8::MAX)
    }

    /// What endpoints of `rank` have in common with this place, for people.
    pub(super) fn shared(&self, scopes: &[Scope], rank: usize) -> &'static str {
        let shared = scopes.iter().take(rank).rev().find(|scope| !self.part(**scope).is_empty());
        match shared {
            Some(scope) => scope.shared(),
            None if rank == 0 => "elsewhere",
            None => "place not known",
        }
    }
}
