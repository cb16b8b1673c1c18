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

#[test]
fn the_class_says_for_what_traffic_unless_the_gateway_does() {
    let with_class = |gateway: &str, class: &str| {
        let text = gateways(
            "w",
            gateway,
            &format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: istio-waypoint, labels: \
                 {{{class}}}}}\nspec: {{controllerName: istio.io/mesh-controller}}\n"
            ),
        );
        let shop = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\n\
                    ---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIPs: [10.96.0.1]}\n\
                    ---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n";
        bound(&resolved(&(text + shop)))
    };
    let label = |kind: &str| format!("istio.io/waypoint-for: {kind}");
    assert_eq!(with_class("", ""), (true, false));
    assert_eq!(with_class("", &label("workload")), (false, true));
    assert_eq!(with_class(&label("service"), &label("workload")), (true, false));
    assert_eq!(with_class(&label("all"), &label("none")), (true, true));
}

/// A Gateway of `shop` that is ready, and whatever follows.
fn gateways(name: &str, labels: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop, labels: \
         {{{labels}}}}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n\
         status: {{addresses: [{{value: 10.0.0.9}}]}}\n{more}"
    )
}

fn resolved(text: &str) -> Mesh {
    let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    let mut world = World::default();
    world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
    world.resolve(&Settings::default())
}

/// What the metadata of a Service and of its Namespace make of the waypoints `w` and `v2`, and of `pods`, which is for pods: the
/// waypoint, the canary and its weight, or the reason.
fn shifted(service: &str, namespace: &str) -> (Option<String>, Option<(String, u8)>, String) {
    let more = gateways("v2", "", "---\n") + &gateways("pods", "istio.io/waypoint-for: workload", "---\n");
    let text = gateways("w", "", "---\n")
        + &more
        + &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {namespace}}}\n---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: s, namespace: shop, {service}}}\nspec: {{clusterIPs: [10.96.0.1]}}\n"
        );
    let mesh = resolved(&text);
    let service = mesh.services.iter().find(|s| s.name == "s").unwrap();
    let name = |place: usize| mesh.waypoints[place].name.clone();
    let canary = service.canary.map(|canary| (name(canary.waypoint), canary.weight));
    let reason = service.unbound.as_ref().map_or_else(String::new, ToString::to_string);
    (service.waypoint.map(name), canary, reason)
}

fn meta(labels: &str, weight: &str) -> String {
    let annotations = if weight.is_empty() {
        String::new()
    } else {
        format!(", annotations: {{istio.io/use-waypoint-canary-weight: \"{weight}\"}}")
    };
    format!("labels: {{{labels}}}{annotations}")
}

const W: &str = "istio.io/use-waypoint: w";
const V2: &str = "istio.io/use-waypoint-canary: v2";

#[test]
fn a_canary_takes_its_share() {
    let both = format!("{W}, {V2}");
    let primary = || Some("w".to_owned());
    let weighed = |weight| Some(("v2".to_owned(), weight));
    for (text, weight) in [("", 0), ("0", 0), ("7", 7), ("100", 100)] {
        assert_eq!(shifted(&meta(&both, text), ""), (primary(), weighed(weight), String::new()), "{text:?}");
    }
    for label in ["", "none"] {
        let off = format!("{W}, istio.io/use-waypoint-canary: \"{label}\"");
        assert_eq!(shifted(&meta(&off, "7"), ""), (primary(), None, String::new()));
    }
    let elsewhere = format!("{both}, istio.io/use-waypoint-canary-namespace: shop");
    assert_eq!(shifted(&meta(&elsewhere, "7"), "").1, weighed(7));
    // Without a waypoint there is nothing to be taken from.
    assert_eq!(shifted(&meta(V2, "7"), ""), (None, None, String::new()));
}

#[test]
fn a_namespaces_canary_is_for_services_that_take_their_waypoint_from_it() {
    let home = meta(&format!("{W}, {V2}"), "7");
    let weighed = |weight| Some(("v2".to_owned(), weight));
    assert_eq!(shifted(&meta("", ""), &home).1, weighed(7));
    assert_eq!(shifted(&meta("", "9"), &home).1, weighed(9), "its own weight");
    assert_eq!(shifted(&meta("istio.io/use-waypoint-canary: none", ""), &home).1, None);
    assert_eq!(shifted(&meta(V2, ""), &meta(W, "8")).1, weighed(8));
    assert_eq!(shifted(&meta(W, ""), &home).1, None, "the service names its waypoint itself");
    assert_eq!(
        shifted(&meta(&format!("{W}, {V2}"), ""), &home).1,
        weighed(0),
        "and then its canary's weight"
    );
    assert_eq!(shifted(&meta("istio.io/use-waypoint: none", ""), &home), (None, None, String::new()));
}

#[test]
fn a_canary_that_cannot_be_leaves_all_to_the_waypoint_and_says_why() {
    for weight in ["101", "-1", "7%", "1.5", "many"] {
        let (waypoint, canary, reason) = shifted(&meta(&format!("{W}, {V2}"), weight), "");
        assert_eq!((waypoint.as_deref(), canary), (Some("w"), None), "{weight}");
        assert!(reason.starts_with("CanaryInvalidWeight: canary waypoint \"shop/v2\""), "{weight}: {reason}");
    }
    for (name, says) in [
        ("w", "CanarySameAsPrimary: canary waypoint \"shop/w\""),
        ("gone", "WaypointIsNotReady: waypoint \"shop/gone\""),
        ("pods", "UnsupportedTrafficType: attempting to bind to traffic type \"service\""),
        ("v2, istio.io/use-waypoint-canary-namespace: other", "WaypointIsNotReady: waypoint \"other/v2\""),
    ] {
        let labels = format!("{W}, istio.io/use-waypoint-canary: {name}");
        let (waypoint, canary, reason) = shifted(&meta(&labels, "7"), "");
        assert_eq!((waypoint.as_deref(), canary), (Some("w"), None), "{name}");
        assert!(reason.starts_with(says), "{name}: {reason}");
    }
}

#[test]
fn a_service_says_why_it_has_no_waypoint() {
    for (name, says) in [("gone", "WaypointIsNotReady: "), ("pods", "UnsupportedTrafficType: ")] {
        let (waypoint, _, reason) = shifted(&meta(&format!("istio.io/use-waypoint: {name}"), ""), "");
        assert!(waypoint.is_none() && reason.starts_with(says), "{reason}");
    }
}

#[test]
fn policies_for_waypoints_are_the_same_objects_as_long_as_nothing_changes() {
    let text = gateways("w", "", "---\n")
        + "apiVersion: v1\nkind: Pod\nmetadata: {name: w-0, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: w}}\n\
           status: {podIPs: [{ip: 10.0.0.9}]}\n";
    let read = |text: &str| {
        let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
        read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect::<Vec<_>>()
    };
    let settings = Settings { auto_allow_waypoint: true, ..Settings::default() };
    let mut world = World::default();
    world.apply(read(&text));
    let before = world.resolve(&settings).policies;
    assert_eq!(before[0].full_name(), "shop/istio_allow_waypoint_shop_w");
    world.apply(read(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nstatus: {podIPs: [{ip: 10.0.0.1}]}",
    ));
    let after = world.resolve(&settings).policies;
    assert!(after.len() == 1 && std::sync::Arc::ptr_eq(&before[0], &after[0]), "{after:?}");
    // Another account among its pods: another policy.
    world.apply(read(&text.replace("w-0", "w-1").replace(
        "status: {podIPs: [{ip: 10.0.0.9}]}",
        "spec: {serviceAccountName: x}\nstatus: {podIPs: [{ip: 10.0.0.8}]}",
    )));
    assert_ne!(world.resolve(&settings).policies[0], before[0]);
}

#[test]
fn a_service_is_not_behind_the_waypoint_of_a_service_entry_of_its_name() {
    let text = gateways("w", "", "---\n")
        + "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, labels: {app: x}}, status: {podIPs: [{ip: 10.0.0.1}]}}\n---\n\
           {apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIPs: [10.96.0.1], selector: {app: x}, \
           ports: [{port: 80}]}}\n---\n\
           {apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: s, namespace: shop, labels: {istio.io/use-waypoint: w}}, \
           spec: {hosts: [x.example], addresses: [10.1.0.1], ports: [{number: 80, name: tcp}], resolution: STATIC, SELECTOR}}";
    let behind = |selector: &str| {
        let text = text.replace("SELECTOR", selector);
        let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        let mut world = World::default();
        world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
        let settings = Settings { auto_allow_waypoint: true, ..Settings::default() };
        let mesh = world.resolve(&settings);
        assert!(mesh.services.iter().any(|s| s.waypoint.is_some()));
        mesh.workloads.iter().find(|w| w.name == "p").map(|w| w.behind.len())
    };
    assert_eq!(behind("workloadSelector: {labels: {app: y}}"), Some(0));
    assert_eq!(behind("workloadSelector: {labels: {app: x}}"), Some(1));
}
