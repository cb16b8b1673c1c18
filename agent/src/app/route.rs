//! Where a connection that the kernel handed over goes next: to the waypoint of what was asked for, or to the chosen pod.

use std::net::{IpAddr, SocketAddr};

use culvert_common::Reason;
use rand::seq::SliceRandom;

use crate::model::{Snapshot, Waypoint};
use crate::proxy::Hop;

/// The waypoint of `requested`: of the service whose virtual address it is (or by chance its canary), or of the workload. `None`
/// for the waypoint's own instances, which are past it.
pub(super) fn waypoint_of<'a>(
    snapshot: &'a Snapshot,
    requested: SocketAddr,
    own: &[IpAddr],
) -> Option<&'a Waypoint> {
    let service = snapshot.service_by_vip(requested.ip());
    let (place, canary) = match service {
        Some(service) => (service.waypoint, service.canary),
        None => (snapshot.workload_by_ip(requested.ip()).and_then(|workload| workload.waypoint), None),
    };
    let waypoint = snapshot.waypoint(place)?;
    let on_trial = canary.and_then(|canary| Some((snapshot.waypoint(Some(canary.waypoint))?, canary.weight)));
    let is_own = |waypoint: &Waypoint| waypoint.instances.iter().any(|(end, _)| own.contains(&end.ip()));
    match on_trial {
        _ if is_own(waypoint) => None,
        Some((canary, _)) if is_own(canary) => None,
        Some((canary, weight)) if rand::random_range(0..100) < weight => Some(canary),
        _ => Some(waypoint),
    }
}

/// The instances of a waypoint that the pod can reach, in random order: each is as good as the others.
pub(super) fn to_waypoint(
    waypoint: &Waypoint,
    requested: SocketAddr,
    own: &[IpAddr],
) -> Result<Vec<Hop>, (Reason, String)> {
    let reachable = |ip: IpAddr| own.iter().any(|ip_of_pod| ip_of_pod.is_ipv4() == ip.is_ipv4());
    let mut hops: Vec<Hop> = waypoint
        .instances
        .iter()
        .filter(|(end, _)| reachable(end.ip()))
        .map(|(end, identity)| Hop {
            address: end.ip(),
            port: Some(end.port()),
            identity: identity.clone(),
            authority: requested,
            waypoint: true,
        })
        .collect();
    if hops.is_empty() {
        let name = waypoint.full_name();
        return Err((Reason::NoWaypoint, format!("waypoint {name} has no ready pod that can be reached")));
    }
    hops.shuffle(&mut rand::rng());
    Ok(hops)
}

/// The pod that the kernel has chosen, then the other pods of the service that was asked for, in random order.
pub(super) fn to_workload(
    snapshot: &Snapshot,
    requested: SocketAddr,
    target: SocketAddr,
) -> Result<Vec<Hop>, (Reason, String)> {
    let hop = |end: SocketAddr| {
        let workload = snapshot.workload_by_ip(end.ip()).filter(|w| w.enrolled)?;
        let identity = workload.identity.clone();
        Some(Hop { address: end.ip(), port: None, identity, authority: end, waypoint: false })
    };
    let mut others: Vec<Hop> = match snapshot.service_by_vip(requested.ip()) {
        Some(service) => {
            let port = service.ports.iter().find(|port| port.port == requested.port());
            let ends = port.into_iter().flat_map(|port| &port.endpoints).copied();
            ends.filter(|end| *end != target && end.is_ipv4() == target.is_ipv4()).filter_map(hop).collect()
        }
        None => Vec::new(),
    };
    others.shuffle(&mut rand::rng());
    let hops: Vec<Hop> = hop(target).into_iter().chain(others).collect();
    if hops.is_empty() {
        let error = format!("no enrolled workload has the address {}: it may just have gone", target.ip());
        return Err((Reason::OutsideMesh, error));
    }
    Ok(hops)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::control::{Update, manifests};
    use crate::model::{Settings, World};
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
}
