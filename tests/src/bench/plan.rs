//! What is measured: workloads, the legs that carry them, and their order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the pods do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Workload {
    /// A message of `size` bytes there and back, one after the other on each connection.
    Rr { size: u32, connections: u16 },
    /// As many bytes as go, by writes of `write` bytes.
    Stream { write: u32, flows: u16 },
    /// Connect, one byte there and back, close; so many at a time.
    Connect { parallel: u16 },
    /// The same by so many that the machine has no rest.
    Storm { parallel: u16 },
    /// So many open connections that say nothing.
    Idle { connections: u32 },
    /// The first connection ever to a pod, and the second.
    First,
}

/// A kind of workload, as `--only` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    Rr,
    Stream,
    Connect,
    Storm,
    Idle,
    First,
}

impl Kind {
    /// The heading of its part of the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Rr => "request/response",
            Self::Stream => "streaming, one way",
            Self::Connect => "connect, 1 byte there and back, close",
            Self::Storm => "connection storm",
            Self::Idle => "idle connections: memory of both agents",
            Self::First => "first connection to a pod: until the first byte is back",
        }
    }
}

impl Workload {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Rr { .. } => Kind::Rr,
            Self::Stream { .. } => Kind::Stream,
            Self::Connect { .. } => Kind::Connect,
            Self::Storm { .. } => Kind::Storm,
            Self::Idle { .. } => Kind::Idle,
            Self::First => Kind::First,
        }
    }

    /// The unit of a sample's value.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Rr { .. } | Self::Connect { .. } | Self::Storm { .. } => "/s",
            Self::Stream { .. } => "Gbit/s",
            Self::Idle { .. } => "B each",
            Self::First => "ms",
        }
    }

    /// What processor time is given for: a name, and how much of a sample's work that is.
    pub(crate) fn work_unit(self) -> (&'static str, f64) {
        match self {
            Self::Stream { .. } => ("GiB", f64::from(1 << 30)),
            _ => ("10k", 1e4),
        }
    }

    /// Whether it takes part in one round only: memory that an agent has had once is not asked for again.
    pub(crate) fn once(self) -> bool {
        matches!(self, Self::Idle { .. })
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Rr { size, connections } => write!(f, "{} x{connections}", bytes(size)),
            Self::Stream { write, flows } => write!(f, "{} writes x{flows}", bytes(write)),
            Self::Connect { parallel } | Self::Storm { parallel } => write!(f, "x{parallel}"),
            Self::Idle { connections } => write!(f, "{connections}"),
            Self::First => f.write_str("first"),
        }
    }
}

fn bytes(n: u32) -> String {
    if n >= 1024 { format!("{} KiB", n / 1024) } else { format!("{n} B") }
}

/// Between whom a workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Leg {
    /// Pods of one node that are not enrolled.
    RawNear,
    /// Enrolled pods of one node.
    Direct,
    /// Pods of two nodes that are not enrolled.
    RawFar,
    /// Enrolled pods of two nodes.
    Tunnel,
    /// Pods of two nodes that are not enrolled, behind the proxy of `--peer-start`.
    Peer,
}

impl Leg {
    /// The leg that it is held against.
    pub(crate) fn raw(self) -> Option<Self> {
        match self {
            Self::RawNear | Self::RawFar => None,
            Self::Direct => Some(Self::RawNear),
            Self::Tunnel | Self::Peer => Some(Self::RawFar),
        }
    }

    /// Whether both pods are on one node.
    pub(crate) fn near(self) -> bool {
        matches!(self, Self::RawNear | Self::Direct)
    }

    /// The namespace of its pods.
    pub(crate) fn namespace(self) -> &'static str {
        match self {
            Self::RawNear | Self::RawFar => "plain",
            Self::Direct | Self::Tunnel => "mesh",
            Self::Peer => "peer",
        }
    }

    /// The word in tables; `peer` is the name of `--peer`.
    pub(crate) fn name(self, peer: &str) -> &str {
        match self {
            Self::RawNear => "raw-near",
            Self::Direct => "direct",
            Self::RawFar => "raw-far",
            Self::Tunnel => "tunnel",
            Self::Peer => peer,
        }
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub(crate) fn name(self) -> &'static str {
        if self == Self::V4 { "IPv4" } else { "IPv6" }
    }
}

/// Everything that a run measures.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) families: Vec<Family>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) peer: bool,
}

impl Plan {
    /// The legs of a workload, in the order of a round: each round begins with another one.
    pub(crate) fn legs(&self, workload: Workload, round: u32) -> Vec<Leg> {
        let mut legs = match workload.kind() {
            // There is no agent between pods outside the mesh, and no pool on the way inside a node.
            Kind::Idle => vec![Leg::Direct, Leg::Tunnel],
            Kind::First => vec![Leg::RawFar, Leg::Tunnel],
            _ => vec![Leg::RawNear, Leg::Direct, Leg::RawFar, Leg::Tunnel],
        };
        if self.peer {
            legs.push(Leg::Peer);
        }
        let first = round as usize % legs.len();
        legs.rotate_left(first);
        legs
    }

    /// Whether this kind is measured.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.workloads.iter().any(|workload| workload.kind() == kind)
    }
}

/// All workloads of the kinds in `only` (empty: all kinds), or the few of `--quick`.
pub(crate) fn workloads(quick: bool, only: &[Kind], idle: u32) -> Vec<Workload> {
    let rr = |size, connections| Workload::Rr { size, connections };
    let stream = |write, flows| Workload::Stream { write, flows };
    let mut all = vec![Workload::Idle { connections: idle }];
    if quick {
        all = vec![rr(64, 1), rr(64, 16), stream(64 << 10, 1), Workload::Connect { parallel: 1 }];
    } else {
        all.extend([1, 64, 16 << 10].into_iter().flat_map(|size| [1, 16, 64].map(|n| rr(size, n))));
        all.extend([1 << 10, 64 << 10].into_iter().flat_map(|size| [1, 8].map(|n| stream(size, n))));
        all.extend([1, 16].map(|parallel| Workload::Connect { parallel }));
        all.extend([Workload::Storm { parallel: 64 }, Workload::First]);
    }
    all.retain(|workload| only.is_empty() || only.contains(&workload.kind()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_leg_and_begins_with_another() {
        let plan = Plan { rounds: 5, families: vec![Family::V4], workloads: Vec::new(), peer: true };
        let workload = Workload::Connect { parallel: 1 };
        let mut firsts = Vec::new();
        for round in 0..5 {
            let mut legs = plan.legs(workload, round);
            firsts.push(legs[0]);
            legs.sort_unstable();
            assert_eq!(legs, [Leg::RawNear, Leg::Direct, Leg::RawFar, Leg::Tunnel, Leg::Peer]);
        }
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 5);
    }

    #[test]
    fn only_keeps_what_it_names() {
        assert_eq!(workloads(false, &[], 9).len(), 18);
        assert_eq!(workloads(true, &[], 9).len(), 4);
        assert_eq!(workloads(true, &[Kind::Stream], 9), [Workload::Stream { write: 65536, flows: 1 }]);
        assert_eq!(workloads(false, &[Kind::Idle], 9), [Workload::Idle { connections: 9 }]);
    }
}
