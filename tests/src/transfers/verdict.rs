//! What both ends found, held against each other and against the path that was asked for.

use std::collections::BTreeMap;

use super::plan::{Part, Plan};
use super::play::Outcome;
use crate::lab::FlowRecord;
use crate::net::Addresses;

/// What is wrong with one connection, in the words of both ends; empty when nothing is.
pub(crate) fn connection(
    plan: &Plan,
    client: &Outcome,
    server: Option<&Outcome>,
    from: &Addresses,
) -> Vec<String> {
    let mut wrong = Vec::new();
    if !client.wrong.is_empty() {
        wrong.push(format!("client: {}", client.wrong));
    }
    let Some(server) = server else {
        wrong.push("server: it never arrived".to_owned());
        return wrong;
    };
    if !server.wrong.is_empty() {
        wrong.push(format!("server: {}", server.wrong));
    }
    if !wrong.is_empty() {
        return wrong;
    }
    wrong.extend(direction("to the server", &plan.client, client, server));
    wrong.extend(direction("to the client", &plan.server, server, client));
    let port = client.client.map(|local| local.port());
    if !server.client.is_some_and(|seen| from.contains(seen.ip()) && Some(seen.port()) == port) {
        wrong.push(format!(
            "the server saw the client as {:?}, which is {} port {port:?}",
            server.client, from.v4
        ));
    }
    wrong
}

fn direction(name: &str, part: &Part, from: &Outcome, to: &Outcome) -> Option<String> {
    let whole = from.sent == part.size && to.received == part.size;
    (!whole || from.sent_digest != to.received_digest).then(|| {
        format!(
            "{name}: {} of {} bytes sent ({}), {} received ({})",
            from.sent, part.size, from.sent_digest, to.received, to.received_digest
        )
    })
}

/// What the agents counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) direct: u64,
    pub(crate) tunnel: u64,
    pub(crate) passthrough: u64,
    /// Bytes that agents carried, all agents together.
    pub(crate) relayed: u64,
    /// Istio's metrics, of clients and of servers.
    pub(crate) told: [Told; 2],
}

/// What one side's series of Istio's metrics add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) to_server: u64,
    pub(crate) to_client: u64,
}

impl Told {
    fn sum(metrics: &[BTreeMap<String, u64>], reporter: &str) -> Self {
        let sum = |name: &str| {
            let start = format!("istio_tcp_{name}_total{{reporter=\"{reporter}\"");
            metrics.iter().flatten().filter(|(series, _)| series.starts_with(&start)).map(|(_, n)| n).sum()
        };
        Self {
            opened: sum("connections_opened"),
            closed: sum("connections_closed"),
            to_server: sum("received_bytes"),
            to_client: sum("sent_bytes"),
        }
    }

    fn combine(&self, other: &Self, with: fn(u64, u64) -> u64) -> Self {
        Self {
            opened: with(self.opened, other.opened),
            closed: with(self.closed, other.closed),
            to_server: with(self.to_server, other.to_server),
            to_client: with(self.to_client, other.to_client),
        }
    }
}

impl Counted {
    /// The sum of all agents' metrics.
    pub(crate) fn sum(metrics: &[BTreeMap<String, u64>]) -> Self {
        let sum = |name: &str| metrics.iter().filter_map(|m| m.get(name)).sum();
        let kind = |kind: &str| sum(&format!("culvert_kernel_connections_total{{kind=\"{kind}\"}}"));
        Self {
            direct: kind("direct"),
            tunnel: kind("tunnel"),
            passthrough: kind("passthrough"),
            relayed: sum("culvert_relay_bytes_total"),
            told: ["source", "destination"].map(|reporter| Told::sum(metrics, reporter)),
        }
    }

    /// What was added since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        self.combine(before, u64::saturating_sub)
    }

    /// Both together.
    pub(crate) fn and(&self, more: &Self) -> Self {
        self.combine(more, u64::saturating_add)
    }

    fn combine(&self, other: &Self, with: fn(u64, u64) -> u64) -> Self {
        Self {
            direct: with(self.direct, other.direct),
            tunnel: with(self.tunnel, other.tunnel),
            passthrough: with(self.passthrough, other.passthrough),
            relayed: with(self.relayed, other.relayed),
            told: [0, 1].map(|side: usize| self.told[side].combine(&other.told[side], with)),
        }
    }
}

/// The path that connections were to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Path {
    /// Both pods on one node: plain TCP in the kernel.
    Direct,
    /// Two nodes: HBONE through both agents.
    Tunnel,
    /// Two nodes without agents.
    Raw,
}

impl Path {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Raw => "raw",
        }
    }
}

/// Whether so many connections with so many bytes (to servers, to clients) truly took `path`, and the agents tell of them exactly;
/// says where not.
pub(crate) fn path(path: Path, connections: u64, bytes: (u64, u64), counted: &Counted) -> Vec<String> {
    let told = Told { opened: connections, closed: connections, to_server: bytes.0, to_client: bytes.1 };
    let (told, bytes) = ([told; 2], bytes.0 + bytes.1);
    // Both agents carry each byte of a tunnel.
    let expected = match path {
        Path::Direct => Counted { direct: connections, told, ..Counted::default() },
        Path::Tunnel => Counted { tunnel: connections, relayed: 2 * bytes, told, ..Counted::default() },
        Path::Raw => Counted::default(),
    };
    let wrong = (expected != *counted)
        .then(|| format!("wrong path: the agents should have counted {expected:?}, and counted {counted:?}"));
    wrong.into_iter().collect()
}

/// Flow records of connections that took another path, or broke. Refusals are not among them: the ends of a connection say
/// whether it was refused, and to sk_lookup a late segment of one that has ended looks like one that begins.
pub(crate) fn records(path: Path, flows: &[FlowRecord]) -> impl Iterator<Item = &FlowRecord> {
    let judged = flows.iter().filter(|flow| flow.stage != "refused");
    judged.filter(move |flow| flow.path != path.as_str() || !flow.error.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfers::plan::Rules;

    #[test]
    fn another_path_is_wrong() {
        let told = Told { opened: 10, closed: 10, to_server: 700, to_client: 300 };
        let direct = Counted { direct: 10, told: [told; 2], ..Counted::default() };
        let tunnel = Counted { tunnel: 10, relayed: 2000, told: [told; 2], ..Counted::default() };
        let path = |way, counted: &Counted| path(way, 10, (700, 300), counted);
        assert!(path(Path::Direct, &direct).is_empty());
        assert!(path(Path::Tunnel, &tunnel).is_empty());
        assert!(path(Path::Raw, &Counted::default()).is_empty());
        for (asked, counted) in [
            (Path::Direct, tunnel),
            (Path::Tunnel, direct),
            (Path::Direct, Counted { direct: 9, ..direct }),
            (Path::Direct, Counted { relayed: 1, ..direct }),
            (Path::Direct, Counted { passthrough: 1, ..direct }),
            (Path::Tunnel, Counted { relayed: 1999, ..tunnel }),
            (Path::Raw, direct),
            (Path::Direct, Counted { told: [told, Told { closed: 9, ..told }], ..direct }),
            (Path::Direct, Counted { told: [Told { to_server: 701, ..told }, told], ..direct }),
        ] {
            assert_eq!(path(asked, &counted).len(), 1, "{asked:?} {counted:?}");
        }
        let flow = |path: &str| FlowRecord { path: path.to_owned(), ..FlowRecord::default() };
        assert_eq!(records(Path::Direct, &[flow("direct"), flow("tunnel")]).count(), 1);
    }

    #[test]
    fn ends_that_disagree_are_found_out() {
        let plan = Rules { seed: 1, max_size: 100 }.plan(3);
        let from = Addresses { v4: "10.0.0.1".parse().unwrap(), v6: "fd00::1".parse().unwrap() };
        let end = |sent: &Part, received: &Part| Outcome {
            sent: sent.size,
            received: received.size,
            sent_digest: format!("{}", sent.key),
            received_digest: format!("{}", received.key),
            client: Some("[fd00::1]:4000".parse().unwrap()),
            ..Outcome::default()
        };
        let (client, server) = (end(&plan.client, &plan.server), end(&plan.server, &plan.client));
        let judge = |client: &Outcome, server: Option<&Outcome>| connection(&plan, client, server, &from);
        assert_eq!(judge(&client, Some(&server)), Vec::<String>::new());
        assert_eq!(judge(&client, None), ["server: it never arrived"]);
        let broken = Outcome { wrong: "x".to_owned(), ..server.clone() };
        assert_eq!(judge(&client, Some(&broken)), ["server: x"]);
        for other in [
            Outcome { received: plan.client.size + 1, ..server.clone() },
            Outcome { received_digest: "other".to_owned(), ..server.clone() },
            Outcome { client: Some("[fd00::2]:4000".parse().unwrap()), ..server.clone() },
            Outcome { client: Some("[fd00::1]:4001".parse().unwrap()), ..server.clone() },
        ] {
            assert_eq!(judge(&client, Some(&other)).len(), 1, "{other:?}");
        }
    }
}
