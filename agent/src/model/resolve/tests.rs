use std::collections::HashSet;
use std::sync::Arc;

use culvert_common::flags;

use crate::control::{Object, Update, objects};
use crate::model::{Settings, World, desired};
use crate::policy::{Interner, compile};

fn settings() -> Settings {
    Settings { node: "n1".to_owned(), trust_domain: "td".to_owned(), ..Settings::default() }
}

fn pod(json: serde_json::Value) -> Update {
    Update::Upsert(Object::Pod(Arc::new(serde_json::from_value::<objects::Pod>(json).unwrap())))
}

fn world() -> World {
    let mut world = World::default();
    let namespace =
        serde_json::json!({"metadata": {"name": "a", "labels": {"istio.io/dataplane-mode": "ambient"}}});
    let service = serde_json::json!({"metadata": {"name": "s", "namespace": "a"}, "spec": {
        "clusterIPs": ["10.96.0.1", "fd00:96::1"], "selector": {"app": "x"},
        "ports": [{"port": 80, "targetPort": "web"}, {"port": 53, "protocol": "UDP"}]}});
    let with = |name: &str, n: u8, spec: serde_json::Value, ready: &str| {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([{"ports": [{"name": "web", "containerPort": 8080}]}]);
        pod(serde_json::json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "x"}},
            "spec": spec,
            "status": {"podIPs": [{"ip": format!("10.0.0.{n}")}, {"ip": format!("fd00::{n}")}],
                       "conditions": [{"type": "Ready", "status": ready}]}}))
    };
    let updates = vec![
        Update::Upsert(Object::Namespace(Arc::new(serde_json::from_value(namespace).unwrap()))),
        Update::Upsert(Object::Service(Arc::new(serde_json::from_value(service).unwrap()))),
        with("local", 1, serde_json::json!({"nodeName": "n1"}), "True"),
        with("remote", 2, serde_json::json!({"nodeName": "n2"}), "True"),
        with("unready", 3, serde_json::json!({"nodeName": "n2"}), "False"),
        with("host", 4, serde_json::json!({"nodeName": "n2", "hostNetwork": true}), "True"),
        pod(serde_json::json!({"metadata": {"name": "over", "namespace": "a"},
            "status": {"phase": "Succeeded", "podIP": "10.0.0.1"}})),
    ];
    assert!(world.apply(updates.clone()));
    assert!(!world.apply(updates));
    world
}

#[test]
fn services_lead_to_ready_pods_at_their_named_port_in_both_families() {
    let mesh = world().resolve(&settings());
    let service = &mesh.services[0];
    assert_eq!((service.serving, service.backing, service.ports.len()), (3, 4, 1));
    let ends: Vec<_> = service.ports[0].endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(ends[..2], ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(ends[4], "[fd00::2]:8080");
    assert_eq!(mesh.workloads.len(), 4);
    let enrolled: Vec<_> = mesh.workloads.iter().filter(|w| w.enrolled).map(|w| w.name.as_str()).collect();
    assert_eq!(enrolled, ["local", "remote", "unready"]);
}

#[test]
fn a_local_pod_is_enrolled_only_when_it_is_served() {
    let mesh = world().resolve(&settings());
    let mut interner = Interner::new();
    let compiled = compile(&mesh, &mut interner);
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
    let before = desired(&mesh, &compiled, &HashSet::new(), &mut interner);
    assert_eq!(before.workloads[&ip("10.0.0.1")].flags, 0);
    assert_eq!(before.workloads[&ip("fd00::2")].flags, flags::ENROLLED);
    assert!(!before.workloads.contains_key(&ip("10.0.0.4")));
    assert_eq!((before.services.len(), before.backends.len()), (2, 6));
    let serving = HashSet::from(["local".to_owned()]);
    let after = desired(&mesh, &compiled, &serving, &mut interner);
    assert_eq!(after.workloads[&ip("10.0.0.1")].flags, flags::ENROLLED | flags::LOCAL);
    assert!(after.services == before.services);
}

#[test]
fn two_pods_with_one_uid_are_two_workloads() {
    let mut world = World::default();
    for (name, n) in [("a", 1), ("b", 2)] {
        world.apply(vec![pod(serde_json::json!({"metadata": {"name": name, "namespace": "n", "uid": "u"},
            "status": {"podIP": format!("10.0.0.{n}")}}))]);
    }
    let mesh = world.resolve(&settings());
    let uids: Vec<_> = mesh.workloads.iter().map(|w| w.uid.as_str()).collect();
    assert_eq!(uids, ["u", "n/b"]);
}

#[test]
fn an_address_is_that_of_the_pod_that_stays_and_else_of_the_younger() {
    let owner = |created: [&str; 2], ending: bool| {
        let mut world = world();
        let two = created.iter().zip(["older-name", "a-name"]).map(|(created, name)| {
            pod(serde_json::json!({
                "metadata": {"name": name, "namespace": "a", "uid": name, "creationTimestamp": created,
                             "deletionTimestamp": (ending && name == "a-name").then_some("2030-01-01T00:00:00Z")},
                "status": {"podIP": "10.0.0.9"}}))
        });
        world.apply(two.collect());
        let mesh = world.resolve(&settings());
        mesh.workloads[mesh.addresses.pods[&"10.0.0.9".parse().unwrap()]].name.clone()
    };
    let (early, late) = ("2026-01-01T09:59:59Z", "2026-01-01T10:00:00Z");
    assert_eq!(owner([early, late], false), "a-name");
    assert_eq!(owner([late, early], false), "older-name");
    assert_eq!(owner([early, late], true), "older-name");
    assert_eq!(owner([early, early], false), "a-name", "the first by name, whatever the order of events");
}
