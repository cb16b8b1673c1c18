//! The pods of the benchmark and its objects.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::load::ECHO;
use super::plan::{Kind, Leg, Plan};
use crate::lab::Placement;

/// Pods of each namespace: the client and a server on n1, the other server on n2.
pub(crate) const CLIENT: &str = "client";
pub(crate) const NEAR: &str = "near";
pub(crate) const FAR: &str = "far";

/// Objects of one list: the parser bounds what a text may hold.
const LIST: usize = 4000;

/// The pod that answers on a leg, as `namespace/name`.
pub(crate) fn server(leg: Leg) -> String {
    format!("{}/{}", leg.namespace(), if leg.near() { NEAR } else { FAR })
}

/// A pod on n2 that nobody has met before this round.
pub(crate) fn cold(leg: Leg, round: u32) -> String {
    format!("{}/cold-{}", leg.namespace(), round + 1)
}

/// Where pods run.
pub(crate) fn placements(plan: &Plan, pods: u32) -> BTreeMap<String, Placement> {
    let place = |node: &str, tcp| Placement { node: node.to_owned(), tcp, ..Placement::default() };
    let mut all = BTreeMap::new();
    for namespace in namespaces(plan) {
        all.insert(format!("{namespace}/{CLIENT}"), place("n1", Vec::new()));
        all.insert(format!("{namespace}/{NEAR}"), place("n1", vec![ECHO]));
        all.insert(format!("{namespace}/{FAR}"), place("n2", vec![ECHO]));
    }
    if plan.has(Kind::First) {
        let far =
            [Leg::RawFar, Leg::Tunnel, Leg::Peer].into_iter().filter(|leg| plan.peer || *leg != Leg::Peer);
        for leg in far {
            all.extend((0..plan.rounds).map(|round| (cold(leg, round), place("n2", vec![ECHO]))));
        }
    }
    all.extend((0..pods).map(|n| (format!("mesh/filler-{n}"), place("n1", Vec::new()))));
    all
}

fn namespaces(plan: &Plan) -> impl Iterator<Item = &'static str> {
    ["mesh", "plain", "peer"].into_iter().filter(|name| plan.peer || *name != "peer")
}

/// Kubernetes Lists of all objects. mTLS is STRICT: what is not of the mesh does not come in.
pub(crate) fn objects(plan: &Plan, pods: u32, policies: u32) -> Vec<Value> {
    let mut items = vec![json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "istio-system"}, "spec": {"mtls": {"mode": "STRICT"}}})];
    for name in namespaces(plan) {
        let labels = if name == "mesh" { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
        items.push(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }
    for full in placements(plan, pods).keys() {
        let (namespace, name) = full.split_once('/').unwrap_or_default();
        let account = if name.starts_with("filler") { name } else { "default" };
        items.push(json!({"apiVersion": "v1", "kind": "Pod", "spec": {"serviceAccountName": account},
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}}}));
    }
    items.extend((0..policies).map(|n| policy(n, pods)));
    let list = |items: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": items});
    items.chunks(LIST).map(list).collect()
}

/// A policy that denies one of the other pods one port. It selects one pod; each tenth selects all, the measured ones too.
fn policy(n: u32, pods: u32) -> Value {
    let other = |n: u32| format!("filler-{}", n % pods.max(1));
    let mut spec = json!({"action": "DENY", "rules": [{
        "from": [{"source": {"principals": [format!("cluster.local/ns/mesh/sa/{}", other(n / 10))]}}],
        "to": [{"operation": {"ports": [(9000 + n % 100).to_string()]}}]}]});
    if !n.is_multiple_of(10) {
        spec["selector"] = json!({"matchLabels": {"app": other(n)}});
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
           "metadata": {"name": format!("policy-{n}"), "namespace": "mesh"}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::{Family, workloads};

    #[test]
    fn each_leg_has_its_pods_and_each_round_a_new_one() {
        let plan =
            |peer| Plan { rounds: 2, families: vec![Family::V4], workloads: workloads(false, &[], 9), peer };
        assert_eq!(placements(&plan(false), 3).len(), 6 + 4 + 3);
        let all = placements(&plan(true), 0);
        assert_eq!(all.len(), 9 + 6);
        for leg in [Leg::RawNear, Leg::Direct, Leg::RawFar, Leg::Tunnel, Leg::Peer] {
            assert_eq!(all[&server(leg)].node, if leg.near() { "n1" } else { "n2" });
        }
        assert_eq!(all[&cold(Leg::Tunnel, 1)].node, "n2");
        let items = objects(&plan(false), 3, 20)[0]["items"].as_array().unwrap().clone();
        let policies = items.iter().filter(|o| o["kind"] == "AuthorizationPolicy");
        assert_eq!(objects(&plan(false), 3, 10_000).len(), 3);
        assert_eq!(policies.filter(|o| o["spec"]["selector"].is_null()).count(), 2);
    }
}
