//! A picture as JSON: for programs, with every figure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::words::moment;
use super::{Edge, Selection};
use crate::telemetry::pairs::{Kind, Node, Why};

pub(super) fn write(selection: &Selection) -> Result<String, serde_json::Error> {
    let pairs = selection.pairs;
    let seconds = selection.seconds();
    let nodes = selection.nodes();
    let node = |node: &&Node| {
        json!({"id": id(node), "kind": node.kind, "namespace": node.namespace, "name": node.name,
               "addresses": addresses(&selection.edges, node)})
    };
    let (first, last) = pairs
        .span()
        .map_or((Value::Null, Value::Null), |(first, last)| (moment(first).into(), moment(last).into()));
    let document = json!({
        "by": pairs.by(),
        "first": first,
        "last": last,
        "seconds": seconds,
        "records": pairs.records(),
        "lost": pairs.lost(),
        "nodes": nodes.keys().map(node).collect::<Vec<_>>(),
        "edges": selection.edges.iter().map(|one| edge(one, seconds)).collect::<Vec<_>>(),
        "left_out": selection.left_out,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// Names a node in this document.
fn id(node: &Node) -> String {
    match node.kind {
        Kind::Clients => "outside/clients".to_owned(),
        Kind::Servers => "outside/servers".to_owned(),
        Kind::Service => format!("service:{}", node.full()),
        Kind::Workload => node.full(),
    }
}

fn edge(edge: &Edge, seconds: f64) -> Value {
    let pair = edge.pair;
    // Over less than a second a rate says nothing.
    let rate = |count: u64| (seconds >= 1.0).then(|| (count as f64 / seconds * 1000.0).round() / 1000.0);
    let mut value = json!({
        "from": id(&edge.key.from),
        "to": id(&edge.key.to),
        "path": edge.key.path,
        "verdict": if edge.refused { "refused" } else { "allowed" },
        "connections": edge.connections(),
        "connections_per_second": rate(edge.connections()),
        "ports": pair.ports,
        "services": pair.services,
        "first": moment(pair.first),
        "last": moment(pair.last),
    });
    let more = if edge.refused {
        json!({"refused": reasons(&pair.refused)})
    } else {
        json!({
            "open": pair.open,
            "failed": pair.failed,
            "cut": reasons(&pair.cut),
            "bytes_sent": pair.bytes_sent,
            "bytes_received": pair.bytes_received,
            "bytes_per_second": rate(pair.bytes_sent + pair.bytes_received),
        })
    };
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}

fn reasons(whys: &BTreeMap<Why, u64>) -> Vec<Value> {
    let one =
        |(why, count): (&Why, &u64)| json!({"reason": why.reason, "policy": why.policy, "count": count});
    whys.iter().map(one).collect()
}

/// Those behind a node that is no workload.
pub(super) fn addresses(edges: &[Edge], node: &Node) -> BTreeSet<IpAddr> {
    let of = |edge: &Edge| match node.kind {
        Kind::Clients if edge.key.from == *node => edge.pair.clients.clone(),
        Kind::Servers if edge.key.to == *node => edge.pair.servers.clone(),
        _ => BTreeSet::new(),
    };
    edges.iter().flat_map(of).collect()
}
