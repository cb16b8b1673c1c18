use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;

use culvert_common::{ServiceKey, flags};

use super::{Balancing, Service};
use crate::control::{Update, manifests};
use crate::model::{Mesh, Settings, World, desired};
use crate::policy::{Interner, compile};

/// Nodes: `n1` and `n2` share zone and subzone a1, `n3` has subzone a2, `n4` zone b, `n5` another region.
const NODES: [(&str, &str, &str, &str); 5] = [
    ("n1", "r1", "a", "a1"),
    ("n2", "r1", "a", "a1"),
    ("n3", "r1", "a", "a2"),
    ("n4", "r1", "b", ""),
    ("n5", "r2", "c", ""),
];

#[derive(Clone, Copy, Default)]
struct Case<'a> {
    spec: &'a str,
    annotation: &'a str,
    namespace: &'a str,
    /// Nodes of pods that are ready, in the order of their addresses 10.0.0.1 and so on.
    ready: &'a [&'a str],
    /// Nodes of pods that end and still answer; their addresses go on.
    draining: &'a [&'a str],
    /// Nodes have no labels.
    unlabelled: bool,
    slices: &'a str,
}

impl Case<'_> {
    fn text(&self) -> String {
        const KEY: &str = "networking.istio.io/traffic-distribution";
        let annotation = |value: &str| match value {
            "" => String::new(),
            value => format!(", annotations: {{{KEY}: {value}}}"),
        };
        let selector = if self.slices.is_empty() { "selector: {app: x}," } else { "" };
        let mut text = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: a{}}}}}\n---\n\
             {{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: a{}}}, spec: {{clusterIPs: [10.96.0.1, 'fd00:96::1'], \
             {selector} ports: [{{port: 80}}], {}}}}}\n---\n{}\n",
            annotation(self.namespace),
            annotation(self.annotation),
            self.spec,
            self.slices,
        );
        for (node, region, zone, subzone) in NODES {
            let labels = format!(
                "topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}, topology.istio.io/subzone: '{subzone}'"
            );
            let labels = if self.unlabelled { "" } else { &labels };
            text += &format!(
                "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {node}, labels: {{{labels}}}}}}}\n"
            );
        }
        let pods =
            self.ready.iter().map(|node| (node, "")).chain(
                self.draining.iter().map(|node| (node, ", deletionTimestamp: '2030-01-01T00:00:00Z'")),
            );
        for (n, (node, ending)) in (1..).zip(pods) {
            text += &format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{n}, namespace: a, labels: {{app: x}}{ending}}}, \
                 spec: {{nodeName: {node}}}, status: {{podIPs: [{{ip: 10.0.0.{n}}}, {{ip: 'fd00::{n}'}}]}}}}\n"
            );
        }
        text
    }

    fn mesh(&self, node: &str) -> Mesh {
        let read = manifests::read_bytes(Path::new("test.yaml"), self.text().as_bytes()).expect("valid YAML");
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        let mut world = World::default();
        world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
        world.resolve(&Settings { node: node.to_owned(), ..Settings::default() })
    }

    fn service(&self, node: &str) -> Service {
        self.mesh(node).services[0].clone()
    }

    /// Which pods `node` uses, by their numbers, in both families alike.
    fn used(&self, node: &str) -> Vec<u8> {
        let service = self.service(node);
        let of = |v4| service.ports[0].preferred(v4).map(last).collect::<Vec<u8>>();
        assert_eq!(of(true), of(false));
        of(true)
    }
}

fn last(end: SocketAddr) -> u8 {
    match end {
        SocketAddr::V4(end) => end.ip().octets()[3],
        SocketAddr::V6(end) => end.ip().octets()[15],
    }
}

const ZONE: &str = "trafficDistribution: PreferSameZone";
const NODE: &str = "trafficDistribution: PreferSameNode";
const LOCAL: &str = "internalTrafficPolicy: Local";

#[test]
fn the_best_tier_that_has_an_endpoint_gets_everything() {
    let from_n1 = |spec, ready| Case { spec, ready, ..Case::default() }.used("n1");
    for (ready, zone, node) in [
        (&["n1", "n2", "n3", "n4", "n5"][..], &[1, 2, 3][..], &[1][..]),
        (&["n5", "n4", "n3", "n2"], &[3, 4], &[4]),
        (&["n5", "n4", "n3"], &[3], &[3]),
        (&["n5", "n4", "n4"], &[2, 3], &[2, 3]),
        (&["n5", "n5"], &[1, 2], &[1, 2]),
        (&[], &[], &[]),
    ] {
        assert_eq!(from_n1(ZONE, ready), zone, "zone of {ready:?}");
        assert_eq!(from_n1("trafficDistribution: PreferClose", ready), zone);
        assert_eq!(from_n1(NODE, ready), node, "node of {ready:?}");
        let all: Vec<u8> = (1..=ready.len() as u8).collect();
        assert_eq!(from_n1("trafficDistribution: ''", ready), all);
    }
}

/// The rule once more, over every set of up to six endpoints: an endpoint is used when none shares more with the node.
#[test]
fn no_endpoint_is_used_while_a_closer_one_is_there() {
    let shared = |a: usize, b: usize, scopes: usize| {
        let (a, b) = (NODES[a], NODES[b]);
        [a.1 == b.1, a.2 == b.2, a.3 == b.3, a.0 == b.0].iter().take(scopes).take_while(|same| **same).count()
    };
    for (spec, scopes) in [(ZONE, 2), (NODE, 4)] {
        for set in 1_usize..32 {
            let places: Vec<usize> = (0..5).filter(|n| set & (1 << n) != 0).chain([set % 5]).collect();
            let ready: Vec<&str> = places.iter().map(|n| NODES[*n].0).collect();
            let case = Case { spec, ready: &ready, ..Case::default() };
            for (client, (name, ..)) in NODES.iter().enumerate() {
                let best = places.iter().map(|n| shared(client, *n, scopes)).max();
                let expected: Vec<u8> = (1..)
                    .zip(&places)
                    .filter(|(_, n)| Some(shared(client, **n, scopes)) == best)
                    .map(|(number, _)| number)
                    .collect();
                assert_eq!(case.used(name), expected, "{spec} from {name} among {ready:?}");
            }
        }
    }
}

#[test]
fn local_means_this_node_or_none() {
    let case = Case { spec: LOCAL, ready: &["n1", "n2", "n1"], ..Case::default() };
    assert_eq!(case.used("n1"), [1, 3]);
    assert_eq!(case.used("n2"), [2]);
    assert_eq!(case.used("n4"), [0; 0]);
    assert!(case.service("n4").ports[0].endpoints.is_empty(), "no retry leaves the node either");
    // It comes before any preference, and an agent that does not know its node has no endpoints.
    let both = "internalTrafficPolicy: Local, trafficDistribution: PreferSameZone";
    assert_eq!(Case { spec: both, ..case }.used("n3"), [0; 0]);
    assert_eq!(case.used(""), [0; 0]);
}

#[test]
fn nodes_without_labels_are_one_zone_and_still_nodes() {
    let ready = &["n1", "n2", "n9"][..];
    let case = Case { unlabelled: true, ready, ..Case::default() };
    assert_eq!(Case { spec: ZONE, ..case }.used("n1"), [1, 2, 3]);
    assert_eq!(Case { spec: NODE, ..case }.used("n1"), [1]);
    assert_eq!(Case { spec: NODE, ..case }.used("n9"), [3], "no Node object is needed");
}

#[test]
fn the_field_comes_before_the_annotation_and_that_before_the_namespaces() {
    for (spec, annotation, namespace, expected) in [
        ("", "", "", Balancing::Any),
        ("", "", "PreferClose", Balancing::SameZone),
        ("", "prefersamenode", "PreferClose", Balancing::SameNode),
        (ZONE, "PreferSameNode", "PreferSameNode", Balancing::SameZone),
        ("", "Any", "PreferClose", Balancing::Any),
        // Words that nobody knows.
        ("trafficDistribution: preferclose", "", "", Balancing::Any),
        ("trafficDistribution: Nearby", "PreferSameNode", "", Balancing::SameNode),
        ("", "Nearby", "PreferClose", Balancing::Any),
        ("", "", "Nearby", Balancing::Any),
        ("internalTrafficPolicy: local", "", "", Balancing::Any),
    ] {
        let case = Case { spec, annotation, namespace, ..Case::default() };
        let choice = case.service("n1").choice;
        assert_eq!(choice.balancing, expected, "{spec:?} {annotation:?} {namespace:?}");
        let unknown = [spec, annotation, namespace].iter().any(|text| {
            text.contains("Nearby") || text.contains(": preferclose") || text.contains(": local")
        });
        assert_eq!(choice.notes.len(), usize::from(unknown), "{spec:?} {annotation:?} {namespace:?}");
    }
}

#[test]
fn what_has_no_effect_is_told_with_object_field_and_remedy() {
    let notes = |case: Case<'_>| -> Vec<String> {
        case.service("n1").choice.notes.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        notes(Case { namespace: "Nearby", ..Case::default() }),
        [
            "Namespace a: metadata.annotations[networking.istio.io/traffic-distribution]: \"Nearby\" is not known and has no effect; \
             write PreferSameZone, PreferSameNode or PreferClose"
        ]
    );
    let spec = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}";
    assert_eq!(
        notes(Case { spec, ..Case::default() }),
        [
            "Service a/s: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not from 1 to 86400: 10800 counts instead; \
             write a number in between"
        ]
    );
}

#[test]
fn affinity_has_the_default_and_the_limits_of_kubernetes() {
    for (seconds, expected) in [("1", 1), ("86400", 86_400), ("0", 10_800), ("-5", 10_800), ("null", 10_800)]
    {
        let spec = format!(
            "sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"
        );
        assert_eq!(Case { spec: &spec, ..Case::default() }.service("n1").choice.affinity, Some(expected));
    }
    for (spec, expected) in [
        ("sessionAffinity: ClientIP", Some(10_800)),
        ("sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}", None),
        ("sessionAffinity: clientip", None),
        ("", None),
    ] {
        assert_eq!(Case { spec, ..Case::default() }.service("n1").choice.affinity, expected, "{spec}");
    }
}

#[test]
fn endpoints_that_end_are_used_when_none_is_ready() {
    let case = Case { ready: &["n1"], draining: &["n2", "n4"], ..Case::default() };
    assert_eq!(case.used("n1"), [1]);
    let case = Case { ready: &[], draining: &["n2", "n4"], ..case };
    assert_eq!(case.used("n1"), [1, 2]);
    assert_eq!((case.service("n1").serving, case.service("n1").backing), (0, 2));
    // Tiers hold among them, and one that is ready elsewhere comes before a close one that ends.
    assert_eq!(Case { spec: ZONE, ..case }.used("n1"), [1]);
    assert_eq!(Case { spec: ZONE, ready: &["n5"], draining: &["n1"], ..case }.used("n1"), [1]);
    // For `Local` the node is asked by itself.
    let local = Case { spec: LOCAL, ready: &["n2"], draining: &["n1"], ..case };
    assert_eq!((local.used("n1"), local.used("n2"), local.used("n3")), (vec![2], vec![1], vec![]));
    // publishNotReadyAddresses: all of them are as good as ready.
    let spec = "publishNotReadyAddresses: true";
    assert_eq!(Case { spec, ready: &["n1"], draining: &["n2"], ..case }.used("n1"), [1, 2]);
}

#[test]
fn a_pod_that_ends_and_does_not_answer_is_not_used() {
    let text = "status: {conditions: [{type: Ready, status: 'False'}], podIPs: [{ip: 10.0.0.9}]}";
    for (ending, publish, expected) in [("", false, 0), ("x", false, 0), ("x", true, 1), ("", true, 1)] {
        let ending = if ending.is_empty() { "" } else { ", deletionTimestamp: '2030-01-01T00:00:00Z'" };
        let slices = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: a, labels: {{app: x}}{ending}}}, spec: {{nodeName: n1}}, {text}}}"
        );
        let spec = format!("selector: {{app: x}}, publishNotReadyAddresses: {publish}");
        let case = Case { spec: &spec, slices: &slices, ..Case::default() };
        assert_eq!(case.service("n1").ports[0].endpoints.len(), expected, "{ending:?} {publish}");
    }
}

fn slice(endpoints: &[(&str, u8)]) -> String {
    let endpoints: Vec<String> =
        endpoints.iter().map(|(rest, n)| format!("{{addresses: [10.0.0.{n}], {rest}}}")).collect();
    let six: Vec<String> =
        endpoints.iter().map(|text| text.replace("10.0.0.", "'fd00::").replace("],", "'],")).collect();
    let one = |name: &str, kind: &str, endpoints: &[String]| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: a, labels: \
             {{kubernetes.io/service-name: s}}}}, addressType: {kind}, ports: [{{port: 80}}], endpoints: [{}]}}",
            endpoints.join(", ")
        )
    };
    format!("{}\n---\n{}", one("s4", "IPv4", &endpoints), one("s6", "IPv6", &six))
}

#[test]
fn conditions_of_slices_mean_what_they_mean_to_kube_proxy() {
    let used = |conditions: &[&str], spec: &str| {
        let endpoints: Vec<_> = conditions.iter().map(|c| format!("conditions: {{{c}}}")).collect();
        let endpoints: Vec<_> = endpoints.iter().map(String::as_str).zip(1..).collect();
        Case { slices: &slice(&endpoints), spec, ..Case::default() }.used("n1")
    };
    let ending = "ready: false, serving: true, terminating: true";
    assert_eq!(used(&["ready: true", "", "ready: false", ending], ""), [1, 2]);
    assert_eq!(used(&["ready: false", ending], ""), [2]);
    assert_eq!(used(&["ready: false, terminating: true"], ""), [1], "serving: not told");
    assert_eq!(used(&["ready: false, serving: false, terminating: true"], ""), [0; 0]);
    assert_eq!(used(&["ready: false, serving: true, terminating: false"], ""), [0; 0]);
    assert_eq!(used(&["ready: false", ending], "publishNotReadyAddresses: true"), [1, 2]);
}

#[test]
fn endpoints_of_slices_are_where_their_pod_is_or_where_the_slice_says() {
    let slices = slice(&[("nodeName: n4", 1), ("nodeName: n2", 7), ("", 8)]);
    // The pod with address 1 is on n1, whatever the slice says.
    let case = Case { slices: &slices, ready: &["n1"], ..Case::default() };
    assert_eq!(Case { spec: NODE, ..case }.used("n1"), [1]);
    assert_eq!(Case { spec: NODE, ..case }.used("n2"), [7]);
    assert_eq!(Case { spec: LOCAL, ..case }.used("n4"), [0; 0]);
    assert_eq!(Case { spec: LOCAL, ..case }.used("n2"), [7]);
}

#[test]
fn the_tables_hold_what_is_preferred_and_members_only_with_affinity() {
    let tables = |spec: &str| {
        let mesh = Case { spec, ready: &["n1", "n2", "n4"], ..Case::default() }.mesh("n1");
        let mut interner = Interner::new();
        let compiled = compile(&mesh, &mut interner);
        desired(&mesh, &compiled, &HashSet::new(), &mut interner)
    };
    let vip = ServiceKey { vip: SocketAddr::from(([10, 96, 0, 1], 80)).into() };
    let zone = tables(ZONE);
    assert_eq!(
        (zone.services[&vip].backends, zone.services[&vip].flags, zone.services[&vip].affinity),
        (2, 0, 0)
    );
    assert_eq!((zone.backends.len(), zone.members.len()), (4, 0));
    let sticky = tables("trafficDistribution: PreferSameZone, sessionAffinity: ClientIP");
    assert_eq!((sticky.services[&vip].affinity, sticky.members.len()), (10_800, 4));
    assert!(sticky.backends.values().all(|end| sticky.members.keys().any(|member| member.backend == *end)));
    assert_eq!(tables(LOCAL).services[&vip].flags, flags::NODE_ONLY);
}

#[test]
fn what_a_port_speaks_changes_nothing() {
    let tables = |port: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: a}}, spec: {{clusterIPs: [10.96.0.1], \
             selector: {{app: x}}, ports: [{{port: 80, {port}}}]}}}}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: a, labels: {{app: x}}}}, status: {{podIP: 10.0.0.1}}}}\n"
        );
        let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        let mut world = World::default();
        world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
        let mesh = world.resolve(&Settings::default());
        let mut interner = Interner::new();
        let compiled = compile(&mesh, &mut interner);
        desired(&mesh, &compiled, &HashSet::new(), &mut interner)
    };
    let plain = tables("");
    assert_eq!(plain.backends.len(), 1);
    for port in [
        "name: http",
        "name: grpc-x",
        "appProtocol: kubernetes.io/h2c",
        "name: tcp, appProtocol: https",
        "appProtocol: '?'",
    ] {
        assert!(tables(port) == plain, "{port}");
    }
}

#[test]
fn the_reason_is_told_for_each_endpoint() {
    let case = Case { spec: ZONE, ready: &["n2", "n4"], ..Case::default() };
    let service = case.service("n1");
    let says = |n: u8| service.explain_choice(&service.ports[0], SocketAddr::from(([10, 0, 0, n], 80)));
    assert_eq!(says(1), "PreferSameZone: same zone, preferred");
    assert_eq!(says(2), "PreferSameZone: same region, not used while a better one is there");
    assert_eq!(service.preference(), "1/2 same zone");
    let ends: Vec<String> = service.preferred_endpoints().iter().map(ToString::to_string).collect();
    assert_eq!(ends, ["10.0.0.1:80", "[fd00::1]:80"]);
    let spec = "sessionAffinity: ClientIP";
    let service = Case { spec, ready: &[], draining: &["n2"], ..case }.service("n1");
    let end = service.ports[0].endpoints[0];
    assert_eq!(
        service.explain_choice(&service.ports[0], end),
        "draining, used because none is ready; ClientIP affinity for 10800 s"
    );
    assert_eq!(service.preference(), "all");
    let local = Case { spec: LOCAL, ready: &["n2"], ..Case::default() };
    assert_eq!(
        (local.service("n1").preference(), local.service("n2").preference()),
        ("0/0 none".into(), "1/1 same node".into())
    );
    assert_eq!(
        Case { spec: ZONE, ready: &["n2"], unlabelled: true, ..case }.service("n1").preference(),
        "1/1 place not known"
    );
}

#[test]
fn entries_are_where_their_locality_says() {
    let text = "
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: a}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: a, annotations: {networking.istio.io/traffic-distribution: PreferClose}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: s, namespace: a}
spec:
  hosts: [s.example.com]
  addresses: [10.96.0.1]
  ports: [{number: 80, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, locality: r1/a/x, weight: 2}
  - {address: 10.0.0.2, locality: r1/a}
  - {address: 10.0.0.3, locality: r1/b}
  - {address: 10.0.0.4}
";
    let service = |text: &str| {
        let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        let mut world = World::default();
        world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
        world.resolve(&Settings { node: "n1".to_owned(), ..Settings::default() }).services[0].clone()
    };
    let slots = |service: &Service| service.ports[0].slots(true).map(last).collect::<Vec<u8>>();
    let near = service(text);
    assert_eq!(slots(&near), [1, 1, 2]);
    assert_eq!(
        near.explain_choice(&near.ports[0], near.ports[0].endpoints[2]),
        "PreferSameZone: same region, not used while a better one is there"
    );
    assert_eq!(
        slots(&service(
            &text.replace(
                "name: s,",
                "name: s, annotations: {networking.istio.io/traffic-distribution: Any},"
            )
        )),
        [1, 1, 2, 3, 4]
    );
    assert_eq!(slots(&service(&text.replace("zone: a}", "zone: c}"))), [1, 1, 2, 3], "the region");
}
