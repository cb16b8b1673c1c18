use std::path::Path;

use crate::control::{Update, manifests};
use crate::model::{Mesh, Settings, World};

/// A waypoint `w` in `infra`, served by one pod; services and pods of `shop`, whose labels the tests choose.
fn mesh(gateway: &str, listener: &str, status: &str, namespace: &str, service: &str, pod: &str) -> Mesh {
    let text = format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{team: a, {namespace}}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: w, namespace: infra, labels: {{{gateway}}}}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, {listener}}}]}}
status: {{{status}}}
---
apiVersion: v1
kind: Service
metadata: {{name: w, namespace: infra, labels: {{gateway.istio.io/managed: istio.io-mesh-controller}}}}
spec: {{clusterIPs: [10.96.0.9], selector: {{gw: w}}, ports: [{{port: 15008}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: w-0, namespace: infra, labels: {{gw: w, gateway.networking.k8s.io/gateway-name: w}}}}
spec: {{serviceAccountName: w, nodeName: n2}}
status: {{podIPs: [{{ip: 10.0.0.9}}, {{ip: "fd00::9"}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: s, namespace: shop, labels: {{{service}}}}}
spec: {{clusterIPs: [10.96.0.1], selector: {{app: x}}, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: shop, labels: {{app: x, {pod}}}}}
status: {{podIPs: [{{ip: 10.0.0.1}}]}}
"#
    );
    let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    let mut world = World::default();
    world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
    world.resolve(&Settings::default())
}

const ANYBODY: &str = "allowedRoutes: {namespaces: {from: All}}";
const BY_NAME: &str = "addresses: [{type: Hostname, value: w.infra.svc.cluster.local}]";
const INFRA: &str = "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra";

/// Whether the service and the pod of `shop` have the waypoint.
fn bound(mesh: &Mesh) -> (bool, bool) {
    let service = mesh.services.iter().find(|s| s.name == "s").unwrap();
    let pod = mesh.workloads.iter().find(|w| w.name == "p").unwrap();
    (service.waypoint.is_some(), pod.waypoint.is_some())
}

#[test]
fn a_waypoint_is_for_services_unless_it_says_otherwise() {
    let kinds = [
        ("service", (true, false)),
        ("workload", (false, true)),
        ("all", (true, true)),
        ("none", (false, false)),
    ];
    assert_eq!(bound(&mesh("", ANYBODY, BY_NAME, INFRA, "", "")), (true, false));
    for (kind, expected) in kinds {
        let label = format!("istio.io/waypoint-for: {kind}");
        assert_eq!(bound(&mesh(&label, ANYBODY, BY_NAME, INFRA, "", "")), expected, "{kind}");
    }
}

#[test]
fn the_objects_own_label_comes_before_its_namespaces() {
    let all = "istio.io/waypoint-for: all";
    let none = "istio.io/use-waypoint: none";
    assert_eq!(bound(&mesh(all, ANYBODY, BY_NAME, INFRA, none, "")), (false, true));
    assert_eq!(bound(&mesh(all, ANYBODY, BY_NAME, INFRA, "", none)), (true, false));
    assert_eq!(
        bound(&mesh(all, ANYBODY, BY_NAME, "", INFRA, "")),
        (true, false),
        "a pod has not its service's"
    );
    let here = "istio.io/use-waypoint: w";
    assert_eq!(bound(&mesh(all, ANYBODY, BY_NAME, here, "", "")), (false, false), "there is no w in shop");
}

#[test]
fn a_gateway_says_who_may_attach_and_counts_once_it_has_an_address() {
    let from = |text: &str| format!("allowedRoutes: {{namespaces: {{from: {text}}}}}");
    assert_eq!(bound(&mesh("", "", BY_NAME, INFRA, "", "")), (false, false), "Same by default");
    for (who, expected) in [
        ("Same", false),
        ("None", false),
        ("Selector, selector: {matchLabels: {team: a}}", true),
        ("Selector, selector: {matchLabels: {team: b}}", false),
        ("Selector, selector: {matchExpressions: [{key: team, operator: In, values: [a, b]}]}", true),
        ("Selector, selector: {matchExpressions: [{key: team, operator: DoesNotExist}]}", false),
        ("Selector", false),
    ] {
        assert_eq!(bound(&mesh("", &from(who), BY_NAME, INFRA, "", "")).0, expected, "{who}");
    }
    assert_eq!(bound(&mesh("", ANYBODY, "", INFRA, "", "")), (false, false), "not ready");
}

#[test]
fn those_who_serve_it_are_found_by_name_and_by_address() {
    let pod = "addresses: [{value: 10.0.0.9}]";
    let service = "addresses: [{value: 10.96.0.9}]";
    for (status, ends) in [(BY_NAME, 2), (service, 2), (pod, 1)] {
        let mesh = mesh("", ANYBODY, status, INFRA, "", "");
        let waypoint = &mesh.waypoints[0];
        assert_eq!(waypoint.full_name(), "infra/w");
        assert_eq!(waypoint.instances.len(), ends, "{status}");
        assert_eq!(waypoint.instances[0].0.to_string(), "10.0.0.9:15008");
        assert_eq!(waypoint.instances[0].1.to_string(), "spiffe://cluster.local/ns/infra/sa/w");
    }
}

#[test]
fn a_waypoint_has_none_itself() {
    let mesh = mesh("istio.io/waypoint-for: all", ANYBODY, BY_NAME, "", "", "");
    assert!(mesh.workloads.iter().all(|w| w.waypoint.is_none()));
    assert!(mesh.services.iter().all(|s| s.waypoint.is_none()));
}
