//! Where a connection that the kernel handed over goes next: to the waypoint of what was asked for, or to the chosen pod.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};

use culvert_common::Reason;
use rand::seq::SliceRandom;

use crate::identity::Expected;
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

/// The instances of a waypoint that the pod can reach: the preferred ones first, and in random order those that are as good.
pub(super) fn to_waypoint(
    waypoint: &Waypoint,
    requested: SocketAddr,
    own: &[IpAddr],
) -> Result<Vec<Hop>, (Reason, String)> {
    let reachable = |ip: IpAddr| own.iter().any(|ip_of_pod| ip_of_pod.is_ipv4() == ip.is_ipv4());
    let instances = waypoint.instances.iter().filter(|(end, _)| reachable(end.ip()));
    let hops = instances.map(|(end, identity)| {
        let hop = Hop {
            address: end.ip(),
            port: Some(end.port()),
            expected: identity.into(),
            authority: requested,
            waypoint: true,
        };
        (hop, waypoint.rank(*end))
    });
    let hops = by_rank(hops.collect());
    if hops.is_empty() {
        let name = waypoint.full_name();
        return Err((Reason::NoWaypoint, format!("waypoint {name} has no ready pod that can be reached")));
    }
    Ok(hops)
}

/// The highest rank first; among equals in random order.
fn by_rank(mut hops: Vec<(Hop, u8)>) -> Vec<Hop> {
    hops.shuffle(&mut rand::rng());
    hops.sort_by_key(|(_, rank)| Reverse(*rank));
    hops.into_iter().map(|(hop, _)| hop).collect()
}

/// The pod that the kernel has chosen, then the other pods of the service that was asked for: those that this node prefers, and
/// after them the others, which a service that keeps to the node does not have.
pub(super) fn to_workload(
    snapshot: &Snapshot,
    requested: SocketAddr,
    target: SocketAddr,
) -> Result<Vec<Hop>, (Reason, String)> {
    let service = snapshot.service_by_vip(requested.ip());
    let hop = |end: SocketAddr| {
        let workload = snapshot.workload_by_ip(end.ip()).filter(|w| w.enrolled)?;
        let expected = Expected::any(workload.identity.clone(), service.and_then(|s| s.answerers.clone()));
        Some(Hop { address: end.ip(), port: None, expected, authority: end, waypoint: false })
    };
    let others: Vec<(Hop, u8)> = match service {
        Some(service) => {
            let port = service.ports.iter().find(|port| port.port == requested.port());
            let ends = port.into_iter().flat_map(|port| port.ranked(target.is_ipv4()));
            ends.filter(|(end, _)| *end != target).filter_map(|(end, rank)| Some((hop(end)?, rank))).collect()
        }
        None => Vec::new(),
    };
    let hops: Vec<Hop> = hop(target).into_iter().chain(by_rank(others)).collect();
    if hops.is_empty() {
        let error = format!("no enrolled workload has the address {}: it may just have gone", target.ip());
        return Err((Reason::OutsideMesh, error));
    }
    Ok(hops)
}

#[cfg(test)]
mod tests;
