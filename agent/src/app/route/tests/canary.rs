use std::path::Path;
use std::sync::Arc;

use crate::app::route::waypoint_of;
use crate::control::{Update, manifests};
use crate::model::{Settings, Snapshot, World};
use crate::policy::Compiled;

/// A service whose canary has this weight; `w` and `v2` are served by 10.0.0.1 and 10.0.0.2.
fn snapshot(weight: u8) -> Snapshot {
    let waypoint = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-0, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: \
             {name}, networking.istio.io/tunnel: http}}}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n---\napiVersion: \
             gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a}}\nspec: {{listeners: [{{port: \
             15008, protocol: HBONE}}]}}\nstatus: {{addresses: [{{value: {ip}}}]}}\n---\n"
        )
    };
    let text = waypoint("w", "10.0.0.1")
        + &waypoint("v2", "10.0.0.2")
        + &format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\n  namespace: a\n  labels: {{istio.io/use-waypoint: w, \
             istio.io/use-waypoint-canary: v2}}\n  annotations: {{istio.io/use-waypoint-canary-weight: \"{weight}\"}}\nspec: \
             {{clusterIPs: [10.96.0.1], ports: [{{port: 80}}]}}\n"
        );
    let read = manifests::read_bytes(Path::new("test.yaml"), text.as_bytes()).expect("valid YAML");
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    let mut world = World::default();
    world.apply(read.valid.into_iter().filter_map(|d| d.object).map(Update::Upsert).collect());
    Snapshot::new(Arc::new(world.resolve(&Settings::default())), Arc::new(Compiled::default()))
}

/// How many of 2000 connections go to the canary.
fn to_canary(weight: u8) -> usize {
    let snapshot = snapshot(weight);
    let own = ["10.0.0.9".parse().unwrap()];
    let chosen = || waypoint_of(&snapshot, "10.96.0.1:80".parse().unwrap(), &own).unwrap().name.clone();
    (0..2000).filter(|_| chosen() == "v2").count()
}

#[test]
fn a_canary_gets_its_share_of_connections_and_no_more() {
    assert_eq!((to_canary(0), to_canary(100)), (0, 2000));
    let some = to_canary(30);
    assert!((500..700).contains(&some), "{some} of 2000 at 30 %"); // five standard deviations are 102
}

#[test]
fn neither_waypoint_of_a_service_goes_to_one() {
    let snapshot = snapshot(50);
    for own in ["10.0.0.1", "10.0.0.2"] {
        let own = [own.parse().unwrap()];
        for _ in 0..50 {
            assert!(waypoint_of(&snapshot, "10.96.0.1:80".parse().unwrap(), &own).is_none());
        }
    }
}
