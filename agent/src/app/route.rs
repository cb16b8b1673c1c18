//! Where a connection that the kernel handed over goes next: to the waypoint of what was asked for, or to the chosen pod.

use std::net::{IpAddr, SocketAddr};

use culvert_common::Reason;
use rand::seq::SliceRandom;

use crate::model::{Snapshot, Waypoint};
use crate::proxy::Hop;

/// The waypoint of `requested`: of the service whose virtual address it is, or of the workload. `None` for the waypoint's own
/// instances, which are past it.
pub(super) fn waypoint_of<'a>(
    snapshot: &'a Snapshot,
    requested: SocketAddr,
    own: &[IpAddr],
) -> Option<&'a Waypoint> {
    let place = match snapshot.service_by_vip(requested.ip()) {
        Some(service) => service.waypoint,
        None => snapshot.workload_by_ip(requested.ip()).and_then(|workload| workload.waypoint),
    };
    let waypoint = snapshot.waypoint(place)?;
    let is_own = waypoint.instances.iter().any(|(end, _)| own.contains(&end.ip()));
    (!is_own).then_some(waypoint)
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
