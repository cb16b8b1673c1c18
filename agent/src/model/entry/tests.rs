//! Istio's cases: `TestWorkloadEntryWorkloads`, `TestServiceEntryWorkloads`, `TestServiceEntryServices`,
//! `TestSelectWorkloadServices` of `pilot/pkg/serviceregistry/ambient`.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use culvert_common::{Endpoint, ServiceKey, flags};

use crate::control::names::Answer;
use crate::control::{Update, manifests};
use crate::model::{Desired, Mesh, Service, Settings, Workload, World, desired};
use crate::policy::{Interner, compile};

fn world(text: &str) -> World {
    let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    let mut world = World::default();
    world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
    world
}

fn mesh(text: &str) -> Mesh {
    world(text).resolve(&Settings { node: "n1".to_owned(), ..Settings::default() })
}

fn object(kind: &str, meta: &str, spec: &str) -> String {
    let api = if matches!(kind, "Pod" | "Service" | "Namespace") { "v1" } else { "networking.istio.io/v1" };
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{{meta}}}\n{spec}\n---\n")
}

fn machine(meta: &str, spec: &str) -> String {
    object("WorkloadEntry", &format!("namespace: a, {meta}"), &format!("spec: {{{spec}}}"))
}

/// A ServiceEntry `e` of namespace `a`, at 10.1.0.1:80.
fn entry(spec: &str) -> String {
    named("e", "", spec)
}

fn named(name: &str, meta: &str, spec: &str) -> String {
    let spec = format!(
        "spec: {{hosts: [x.example], addresses: [10.1.0.1], ports: [{{number: 80, name: http}}], {spec}}}"
    );
    object("ServiceEntry", &format!("name: {name}, namespace: a, {meta}"), &spec)
}

fn service(spec: &str) -> String {
    object(
        "Service",
        "name: s, namespace: a",
        &format!("spec: {{clusterIPs: [10.96.0.1], selector: {{app: x}}, {spec}}}"),
    )
}

fn pod(meta: &str, status: &str) -> String {
    let spec = "spec: {containers: [{ports: [{name: http, containerPort: 8000}]}]}";
    object("Pod", &format!("namespace: a, {meta}"), &format!("{spec}\nstatus: {{{status}}}"))
}

fn workload<'m>(mesh: &'m Mesh, name: &str) -> &'m Workload {
    mesh.workloads.iter().find(|w| w.name == name).unwrap()
}

fn ends(service: &Service) -> Vec<String> {
    service.ports[0].endpoints.iter().map(ToString::to_string).collect()
}

fn only(mesh: &Mesh) -> &Service {
    assert_eq!(mesh.services.len(), 1, "{:?}", mesh.services);
    &mesh.services[0]
}

fn maps(mesh: &Mesh) -> Desired {
    let mut interner = Interner::new();
    let compiled = compile(mesh, &mut interner);
    desired(mesh, &compiled, &HashSet::new(), &mut interner)
}

fn key(vip: &str, port: u16) -> ServiceKey {
    ServiceKey { vip: Endpoint::new(vip.parse::<IpAddr>().unwrap().into(), port) }
}

#[test]
fn a_workload_entry_is_a_workload() {
    let text = machine(
        "name: m, labels: {app: own}",
        "address: 10.2.0.1, labels: {app: x, version: v1}, serviceAccount: vm",
    );
    let mesh = mesh(&text);
    let found = workload(&mesh, "m");
    assert_eq!(found.uid, "Kubernetes/networking.istio.io/WorkloadEntry/a/m");
    assert_eq!(found.identity.to_string(), "spiffe://cluster.local/ns/a/sa/vm");
    assert_eq!(
        found.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["app=own", "version=v1"]
    );
    assert_eq!((found.app.as_str(), found.version.as_str()), ("own", "v1"));
    assert!(found.ready && !found.enrolled && !found.is_captured());
    let entry = maps(&mesh).workloads[&"10.2.0.1".parse::<IpAddr>().unwrap().into()];
    assert_eq!((entry.identity, entry.flags), (0, 0), "plaintext passes");
}

#[test]
fn a_workload_entry_speaks_hbone_when_it_says_so() {
    let cases = [
        ("name: m", (false, false)),
        ("name: m, labels: {networking.istio.io/tunnel: http}", (true, true)),
        ("name: m, labels: {networking.istio.io/tunnel: other}", (false, false)),
        ("name: m, annotations: {ambient.istio.io/redirection: enabled}", (true, false)),
        ("name: m, labels: {istio.io/dataplane-mode: ambient}", (false, false)),
    ];
    for (meta, expected) in cases {
        let mesh = mesh(&machine(meta, "address: 10.2.0.1"));
        let found = workload(&mesh, "m");
        assert_eq!((found.enrolled, found.native_tunnel), expected, "{meta}");
        assert!(!found.is_captured(), "{meta}: nobody's pod");
        let entry = maps(&mesh).workloads[&"10.2.0.1".parse::<IpAddr>().unwrap().into()];
        assert_eq!(entry.flags, if expected.0 { flags::ENROLLED } else { 0 }, "{meta}");
        assert_eq!(found.identity.to_string(), "spiffe://cluster.local/ns/a/sa/default");
    }
}

#[test]
fn services_select_workload_entries_too() {
    // By the name of the target port, else by the name of the Service's port, else by number.
    for (ports, own, expected) in [
        ("ports: [{port: 80, targetPort: http}]", "ports: {http: 8080}", Some(8080)),
        ("ports: [{port: 80, targetPort: http}]", "ports: {other: 8080}", None),
        ("ports: [{port: 80, targetPort: 8081}]", "ports: {http: 8080}", Some(8081)),
        ("ports: [{port: 80, name: http, targetPort: 8081}]", "ports: {http: 8080}", Some(8080)),
        ("ports: [{port: 80}]", "", Some(80)),
    ] {
        let text = machine("name: m", &format!("address: 10.2.0.1, labels: {{app: x}}, {own}"));
        let mesh = mesh(&[text, service(ports)].concat());
        let expected: Vec<String> = expected.iter().map(|port| format!("10.2.0.1:{port}")).collect();
        assert_eq!(ends(only(&mesh)), expected, "{ports} {own}");
        assert_eq!(workload(&mesh, "m").services, ["a/s.a.svc.cluster.local"]);
    }
}

#[test]
fn a_service_entry_has_the_endpoints_that_it_lists() {
    let endpoints = "resolution: STATIC, endpoints: [{address: 10.2.0.1, labels: {v: one}}, \
                     {address: 10.2.0.2, ports: {http: 8080}, serviceAccount: sa}, {address: \"fd00::2\"}]";
    let mesh = mesh(&named("e", "labels: {app: x}", endpoints));
    let found = only(&mesh);
    assert_eq!((found.hostname.as_str(), found.full_name().as_str()), ("x.example", "a/e"));
    assert_eq!(ends(found), ["10.2.0.1:80", "10.2.0.2:8080", "[fd00::2]:80"]);
    assert_eq!((found.serving, found.backing), (3, 3));
    let uids: Vec<_> = mesh.workloads.iter().map(|w| w.uid.as_str()).collect();
    assert_eq!(uids[0], "Kubernetes/networking.istio.io/ServiceEntry/a/e/10.2.0.1");
    assert_eq!(mesh.workloads[1].identity.to_string(), "spiffe://cluster.local/ns/a/sa/sa");
    assert!(
        mesh.workloads.iter().all(|w| w.labels["app"] == "x" && !w.labels.contains_key("v") && !w.enrolled)
    );
    let maps = maps(&mesh);
    assert_eq!(maps.services[&key("10.1.0.1", 80)].backends, 2, "of its own family");
}

#[test]
fn target_ports_count_unless_the_endpoint_names_its_own() {
    let spec = "hosts: [x.example], addresses: [10.1.0.1], ports: [{number: 80, name: http, targetPort: 8081}, \
                {number: 53, protocol: UDP}], resolution: STATIC, endpoints: [{address: 10.2.0.1}, \
                {address: 10.2.0.2, ports: {http: 8080}}]";
    let mesh = mesh(&object("ServiceEntry", "name: e, namespace: a", &format!("spec: {{{spec}}}")));
    assert_eq!(ends(only(&mesh)), ["10.2.0.1:8081", "10.2.0.2:8080"]);
    assert_eq!(only(&mesh).ports.len(), 1, "UDP is not in the mesh");
}

#[test]
fn a_service_entry_selects_pods_and_workload_entries_of_its_namespace() {
    let others = [
        pod("name: p, labels: {app: x}", "podIP: 10.0.0.1"),
        pod(
            "name: unready, labels: {app: x}",
            "podIP: 10.0.0.2, conditions: [{type: Ready, status: \"False\"}]",
        ),
        pod("name: other, labels: {app: y}", "podIP: 10.0.0.3"),
        machine("name: m", "address: 10.2.0.1, labels: {app: x}, ports: {http: 8080}"),
        object("WorkloadEntry", "name: far, namespace: b", "spec: {address: 10.2.0.2, labels: {app: x}}"),
    ];
    let selecting = |labels: &str| {
        mesh(
            &[others.concat(), entry(&format!("resolution: STATIC, workloadSelector: {{labels: {labels}}}"))]
                .concat(),
        )
    };
    // Pods by the name of their container's port.
    let mesh = selecting("{app: x}");
    assert_eq!(ends(only(&mesh)), ["10.0.0.1:8000", "10.2.0.1:8080"]);
    assert_eq!((only(&mesh).serving, only(&mesh).backing), (2, 3));
    assert_eq!(workload(&mesh, "p").services, ["a/x.example"]);
    assert!(ends(only(&selecting("{}"))).is_empty(), "an empty selector selects nothing");
}

#[test]
fn connections_to_a_service_entry_without_resolution_pass() {
    let mesh = mesh(&entry("resolution: NONE"));
    assert!(only(&mesh).passthrough);
    assert!(maps(&mesh).services.is_empty());
}

#[test]
fn each_host_is_a_service_and_has_its_own_given_address() {
    let status = "status: {addresses: [{host: a.example, value: 240.0.0.1}, {host: b.example, value: 240.0.0.2}, \
                  {host: b.example, value: \"2001:2::2\"}]}";
    let hosts = |spec: &str, labels: &str| {
        let meta = format!("name: e, namespace: a, labels: {{{labels}}}");
        let spec = format!(
            "spec: {{hosts: [a.example, b.example], ports: [{{number: 80, name: http}}], {spec}}}\n{status}"
        );
        mesh(&object("ServiceEntry", &meta, &spec)).services.iter().map(|s| s.vips.len()).collect::<Vec<_>>()
    };
    assert_eq!(hosts("resolution: DNS", ""), [1, 2]);
    assert_eq!(hosts("resolution: NONE", ""), [0, 0]);
    assert_eq!(hosts("resolution: DNS, addresses: [10.1.0.1]", ""), [1, 1], "those of the spec come first");
    assert_eq!(hosts("resolution: DNS", "networking.istio.io/enable-autoallocate-ip: \"false\""), [0, 0]);
}

#[test]
fn what_has_no_address_says_so() {
    let spec = "spec: {hosts: [x.example], ports: [{number: 80, name: http}], resolution: DNS}";
    let found = mesh(&object("ServiceEntry", "name: e, namespace: a", spec));
    assert!(only(&found).notes.iter().any(|n| n.contains("set spec.addresses")), "{:?}", only(&found).notes);
    let block = mesh(&entry("resolution: STATIC").replace("10.1.0.1", "10.1.0.0/24, 10.1.1.1/32"));
    assert_eq!(only(&block).vips, ["10.1.1.1".parse::<IpAddr>().unwrap()]);
    assert!(only(&block).notes[0].contains("10.1.0.0/24 pass untouched"), "{:?}", only(&block).notes);
}

#[test]
fn a_host_has_one_owner_in_a_namespace() {
    let at = |name: &str, created: &str, vip: &str| {
        named(name, &format!("creationTimestamp: {created}"), "resolution: STATIC").replace("10.1.0.1", vip)
    };
    let (early, late) = ("2026-01-01T09:59:59Z", "2026-01-01T10:00:00Z");
    let found = mesh(&[at("a", late, "10.1.0.1"), at("b", early, "10.1.0.2")].concat());
    assert_eq!(only(&found).name, "b", "the oldest");
    assert!(
        only(&found).notes[0].contains("ServiceEntry a/a names this host too"),
        "{:?}",
        only(&found).notes
    );
    let own = at("e", early, "10.1.0.1").replace("x.example", "s.a.svc.cluster.local");
    let found = mesh(&[own.clone(), service("ports: [{port: 80}]")].concat());
    assert_eq!(only(&found).name, "s", "a Service comes first");
    assert!(only(&found).notes[0].contains("ServiceEntry a/e"), "{:?}", only(&found).notes);
    let elsewhere = own.replace("namespace: a", "namespace: b");
    assert_eq!(mesh(&[elsewhere, service("ports: [{port: 80}]")].concat()).services.len(), 2);
    // Endpoints of one that owns nothing are nobody.
    let loser = own.replace("resolution: STATIC", "resolution: STATIC, endpoints: [{address: 10.2.0.1}]");
    assert!(mesh(&[loser, service("ports: [{port: 80}]")].concat()).workloads.is_empty());
}

#[test]
fn an_address_that_two_claim_is_the_services() {
    let meta = "creationTimestamp: 2020-01-01T00:00:00Z";
    let spec = "resolution: STATIC, endpoints: [{address: 10.2.0.1}]";
    let text = [
        named("e", meta, spec).replace("10.1.0.1", "10.96.0.1"),
        pod("name: p, labels: {app: x}", "podIP: 10.0.0.1"),
        service("ports: [{port: 80}]"),
    ];
    let mesh = mesh(&text.concat());
    assert_eq!(mesh.services[mesh.addresses.vips[&"10.96.0.1".parse().unwrap()]].name, "s");
    let maps = maps(&mesh);
    let led = maps.services[&key("10.96.0.1", 80)];
    let backend = maps.backends[&led.pick(0).unwrap()];
    assert_eq!(SocketAddr::from(backend).to_string(), "10.0.0.1:80");
}

#[test]
fn an_endpoint_with_a_pods_address_is_that_pod() {
    let text = [
        object("Namespace", "name: a, labels: {istio.io/dataplane-mode: ambient}", ""),
        entry("resolution: STATIC, endpoints: [{address: 10.0.0.1}]"),
        machine("name: z", "address: 10.0.0.1"),
        pod("name: p", "podIP: 10.0.0.1"),
    ];
    let mesh = mesh(&text.concat());
    assert_eq!(mesh.workloads[mesh.addresses.pods[&"10.0.0.1".parse().unwrap()]].name, "p");
    assert_eq!(ends(only(&mesh)), ["10.0.0.1:80"]);
    assert_eq!(maps(&mesh).workloads[&"10.0.0.1".parse::<IpAddr>().unwrap().into()].flags, flags::ENROLLED);
    // Whatever an entry says of it; where there is no pod, the one that speaks HBONE.
    let hbone = machine("name: z, labels: {networking.istio.io/tunnel: http}", "address: 10.0.0.1");
    let owner = |text: &str| {
        let mesh = self::mesh(text);
        mesh.workloads[mesh.addresses.pods[&"10.0.0.1".parse().unwrap()]].name.clone()
    };
    let plain = machine("name: a", "address: 10.0.0.1");
    let outside = pod("name: p", "podIP: 10.0.0.1");
    assert_eq!(owner(&[hbone.as_str(), &plain, &outside].concat()), "p");
    assert_eq!(owner(&[hbone.as_str(), &plain].concat()), "z");
}

#[test]
fn what_cannot_be_reached_is_no_endpoint() {
    for (endpoint, says) in [
        ("address: 127.0.0.1", "no address that another machine can have"),
        ("address: \"::ffff:127.0.0.1\"", "no address that another machine can have"),
        ("address: 224.0.0.1", "no address that another machine can have"),
        ("address: \"unix:///run/x\"", "is a unix socket"),
        ("address: 10.2.0.1, network: other", "is in network other"),
    ] {
        let mesh = mesh(&entry(&format!("resolution: STATIC, endpoints: [{{{endpoint}}}]")));
        let found = only(&mesh);
        assert!(ends(found).is_empty() && found.serving == 0 && found.backing == 1, "{endpoint}");
        assert!(found.notes.iter().any(|note| note.contains(says)), "{endpoint}: {:?}", found.notes);
        assert_eq!(maps(&mesh).services[&key("10.1.0.1", 80)].backends, 0, "{endpoint}: refused");
    }
    let own = object("Namespace", "name: istio-system, labels: {topology.istio.io/network: here}", "");
    let listed = entry("resolution: STATIC, endpoints: [{address: 10.2.0.1, network: here}]");
    assert_eq!(ends(only(&mesh(&[own, listed].concat()))), ["10.2.0.1:80"]);
}

#[test]
fn names_are_what_dns_says() {
    let settings = Settings::default();
    for (text, name) in [
        (entry("resolution: DNS"), "x.example"),
        (entry("resolution: DYNAMIC_DNS"), "x.example"),
        (entry("resolution: DNS_ROUND_ROBIN, endpoints: [{address: Db.Example.}]"), "db.example"),
        (
            [
                entry("resolution: STATIC, workloadSelector: {labels: {app: x}}"),
                machine("name: m", "address: vm.example, labels: {app: x}"),
            ]
            .concat(),
            "vm.example",
        ),
    ] {
        let mut world = world(&text);
        let mut told = |addresses: &[&str], problem: &str| {
            let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            let answer = Answer { addresses, problem: problem.to_owned() };
            assert!(world.apply(vec![Update::Name(name.to_owned(), Some(answer.clone()))]));
            assert!(!world.apply(vec![Update::Name(name.to_owned(), Some(answer))]), "nothing new");
            world.resolve(&settings)
        };
        let before = mesh(&text);
        assert!(
            ends(only(&before)).is_empty() && only(&before).notes[0].contains("not answered yet"),
            "{text}"
        );
        let found = told(&["10.3.0.1", "127.0.0.1", "fd00::3"], "");
        assert_eq!(ends(only(&found)), ["10.3.0.1:80", "[fd00::3]:80"], "{text}");
        assert!(only(&found).notes.is_empty(), "{:?}", only(&found).notes);
        let stale = told(&["10.3.0.1"], "DNS does not answer");
        assert_eq!(ends(only(&stale)), ["10.3.0.1:80"]);
        assert!(only(&stale).notes[0].contains("what DNS said before stays in force"));
        assert!(ends(only(&told(&[], "DNS knows no such name"))).is_empty());
        assert!(world.apply(vec![Update::Name(name.to_owned(), None)]));
    }
    let mesh = mesh(&entry("resolution: DYNAMIC_DNS").replace("x.example", "\"*.example\""));
    assert!(only(&mesh).notes.iter().any(|note| note.contains("no name that DNS can be asked for")));
}

#[test]
fn weights_are_shares_of_the_slots() {
    let slots = |one: u32, two: u32| {
        let spec = format!(
            "resolution: STATIC, endpoints: [{{address: 10.2.0.1, weight: {one}}}, {{address: 10.2.0.2, weight: {two}}}]"
        );
        let mesh = mesh(&entry(&spec));
        let all: Vec<SocketAddr> = only(&mesh).ports[0].slots(true).collect();
        assert_eq!(maps(&mesh).services[&key("10.1.0.1", 80)].backends as usize, all.len());
        let of_one = all.iter().filter(|end| end.ip().to_string() == "10.2.0.1").count();
        (of_one, all.len() - of_one)
    };
    assert_eq!(slots(0, 0), (1, 1));
    assert_eq!(slots(80, 20), (4, 1));
    assert_eq!(slots(100_000, 1), (255, 1), "bounded, and none is left out");
    assert_eq!(slots(3, 0), (3, 1));
}

const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
                        metadata: {name: w, namespace: a, labels: {istio.io/waypoint-for: all}}\n\
                        spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n\
                        status: {addresses: [{value: 10.0.0.9}]}\n---\n";

#[test]
fn waypoints_are_for_entries_too() {
    let home = |labels: &str| object("Namespace", &format!("name: a, labels: {{{labels}}}"), "");
    let using = "istio.io/use-waypoint: w";
    let twin = service("ports: [{port: 80}]").replace("name: s", "name: e");
    let bound = |namespace: &str, labels: &str, endpoint: &str, resolution: &str| {
        let endpoints =
            format!("resolution: {resolution}, endpoints: [{{address: 10.2.0.1, labels: {{{endpoint}}}}}]");
        let endpoints = if resolution == "STATIC" { endpoints } else { format!("resolution: {resolution}") };
        let listed = named("e", &format!("labels: {{{labels}}}"), &endpoints);
        // A Service of the same name has its own labels.
        let mesh = mesh(&[WAYPOINT.to_owned(), home(namespace), listed, twin.clone()].concat());
        let service = mesh.services.iter().find(|s| s.hostname == "x.example").unwrap().waypoint.is_some();
        let led = maps(&mesh).services.get(&key("10.1.0.1", 80)).map_or(0, |s| s.flags);
        assert_eq!(led == flags::WAYPOINT, service, "{namespace} {labels} {resolution}");
        (service, mesh.workloads.iter().find(|w| w.name == "e").is_some_and(|w| w.waypoint.is_some()))
    };
    assert_eq!(bound("", "", "", "STATIC"), (false, false));
    assert_eq!(bound("", using, "", "STATIC"), (true, false));
    assert_eq!(
        bound("", "", using, "STATIC"),
        (false, true),
        "an endpoint's own label is for its own address"
    );
    assert_eq!(bound(using, "", "", "STATIC"), (true, true));
    assert_eq!(bound(using, "istio.io/use-waypoint: none", "", "STATIC"), (false, true));
    assert_eq!(
        bound(using, "", "", "DNS"),
        (true, false),
        "nothing was said of a host that is its own endpoint"
    );
    assert_eq!(bound("", using, "", "NONE"), (true, false));
    let machine = machine("name: m, labels: {istio.io/use-waypoint: w}", "address: 10.2.0.1");
    assert!(workload(&mesh(&[WAYPOINT.to_owned(), machine].concat()), "m").waypoint.is_some());
}
