mod canary;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::{to_waypoint, to_workload, waypoint_of};
use crate::control::{Update, manifests};
use crate::model::{Settings, Snapshot, World};
use crate::policy::Compiled;
use crate::proxy::Hop;

/// Three pods of a service on `n1`, `n2` and `n3`, seen from `n1`; `n2` is in its zone. The service says `spec`; its namespace
/// has a waypoint when `waypoint` says so, served by the same pods.
fn snapshot(spec: &str, waypoint: bool) -> Snapshot {
    let label = if waypoint { ", istio.io/use-waypoint: w" } else { "" };
    let mut text = format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: a, labels: {{istio.io/dataplane-mode: ambient{label}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: s, namespace: a}}
spec: {{clusterIPs: [10.96.0.1], selector: {{app: x}}, ports: [{{port: 80}}, {{port: 15008}}], {spec}}}
---
apiVersion: v1
kind: Service
metadata: {{name: asked, namespace: a}}
spec: {{clusterIPs: [10.96.0.2], ports: [{{port: 80}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: w, namespace: a}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{port: 15008, protocol: HBONE}}]}}
status: {{addresses: [{{value: 10.96.0.1}}]}}
"#
    );
    for (n, zone) in [(1, "a"), (2, "a"), (3, "b")] {
        text += &format!(
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: n{n}, labels: {{topology.kubernetes.io/zone: {zone}}}}}}}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: p{n}, namespace: a, labels: {{app: x}}}}, spec: {{nodeName: n{n}}}, \
             status: {{podIP: 10.0.0.{n}}}}}\n"
        );
    }
    let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    let mut world = World::default();
    world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
    let mesh = world.resolve(&Settings { node: "n1".to_owned(), ..Settings::default() });
    Snapshot::new(Arc::new(mesh), Arc::new(Compiled::default()))
}

fn numbers(hops: &[Hop]) -> Vec<String> {
    hops.iter().map(|hop| hop.address.to_string().replace("10.0.0.", "")).collect()
}

const SAME_NODE: &str = "trafficDistribution: PreferSameNode";

/// Where a connection to the service goes, when the kernel has chosen pod `chosen`; often, for the order is random.
fn workloads(spec: &str, chosen: u8) -> Vec<Vec<String>> {
    let snapshot = snapshot(spec, false);
    let (vip, target) = (SocketAddr::from(([10, 96, 0, 1], 80)), SocketAddr::from(([10, 0, 0, chosen], 80)));
    let mut seen: Vec<_> =
        (0..50).map(|_| numbers(&to_workload(&snapshot, vip, target).expect("hops"))).collect();
    seen.sort();
    seen.dedup();
    seen
}

#[test]
fn the_retry_leaves_the_tier_last_and_the_node_never_when_the_service_keeps_to_it() {
    assert_eq!(workloads("", 1), [["1", "2", "3"], ["1", "3", "2"]]);
    assert_eq!(workloads(SAME_NODE, 1), [["1", "2", "3"]]);
    // The kernel's choice comes first even when it is no longer the best.
    assert_eq!(workloads(SAME_NODE, 3), [["3", "1", "2"]]);
    assert_eq!(workloads("trafficDistribution: PreferSameZone", 2), [["2", "1", "3"]]);
    assert_eq!(workloads("internalTrafficPolicy: Local", 1), [["1"]]);
}

#[test]
fn who_a_service_entry_names_may_answer_for_its_endpoints() {
    let text = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: a, labels: {networking.istio.io/tunnel: http}}
spec:
  hosts: [e.example]
  addresses: [10.1.0.1]
  ports: [{number: 80, name: tcp}]
  resolution: STATIC
  subjectAltNames: ['spiffe://other.domain/ns/b/sa/c', e.example]
  endpoints: [{address: 10.2.0.1, serviceAccount: d}]
";
    let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    let mut world = World::default();
    world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
    let mesh = world.resolve(&Settings::default());
    assert!(
        mesh.services[0].notes[0].contains("\"e.example\" does not count"),
        "{:?}",
        mesh.services[0].notes
    );
    let snapshot = Snapshot::new(Arc::new(mesh), Arc::new(Compiled::default()));
    let target = SocketAddr::from(([10, 2, 0, 1], 80));
    let expected = |requested| to_workload(&snapshot, requested, target).expect("hops").remove(0).expected;
    let own = "spiffe://cluster.local/ns/a/sa/d";
    let by_vip = expected(SocketAddr::from(([10, 1, 0, 1], 80)));
    assert_eq!(by_vip.to_string(), format!("{own} or spiffe://other.domain/ns/b/sa/c"));
    assert_eq!(expected(target).to_string(), own, "asked for by its own address");
}

#[test]
fn instances_of_a_waypoint_are_chosen_as_its_service_says() {
    let instances = |spec: &str| {
        let snapshot = snapshot(spec, true);
        let (vip, own) = (SocketAddr::from(([10, 96, 0, 2], 80)), ["10.0.0.9".parse().expect("an address")]);
        let waypoint = waypoint_of(&snapshot, vip, &own).expect("a waypoint");
        let mut seen: Vec<_> =
            (0..50).map(|_| numbers(&to_waypoint(waypoint, vip, &own).expect("hops"))).collect();
        seen.sort();
        seen.dedup();
        seen
    };
    assert_eq!(instances("").len(), 6);
    assert_eq!(instances(SAME_NODE), [["1", "2", "3"]]);
    assert_eq!(instances("trafficDistribution: PreferSameZone"), [["1", "2", "3"], ["2", "1", "3"]]);
    assert_eq!(instances("internalTrafficPolicy: Local"), [["1"]]);
}
