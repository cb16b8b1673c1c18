//! From objects to what they mean together.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Addresses, Service, Settings, Topology, Workload, World, waypoint, workload};
use crate::control::objects::{EndpointSlice, ServiceType};
use crate::identity::SpiffeId;

const SLICE_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn topology(world: &World, settings: &Settings) -> Topology {
    let mut workloads = workloads(world, settings);
    let mut services = services(world, settings, &mut workloads);
    let addresses = Addresses { pods: by_address(&workloads), vips: by_vip(&services) };
    let waypoints = waypoint::resolve(world, &mut workloads, &mut services, &addresses);
    let mut allowed = Vec::new();
    if settings.auto_allow_waypoint {
        waypoint::allow::attach(&mut workloads, &services, &waypoints);
        allowed = waypoint::allow::policies(&waypoints, &world.waypoint_policies);
    }
    Topology {
        waypoint_policies: allowed,
        workloads: Arc::new(workloads),
        services: Arc::new(services),
        waypoints: Arc::new(waypoints),
        addresses: Arc::new(addresses),
    }
}

/// While a pod ends its successor may have its address already: the one that stays wins, and else the younger one, since an
/// address is given again only when its last owner's network is gone. Pods in the node's network namespace have no address of
/// their own.
fn by_address(workloads: &[Workload]) -> HashMap<IpAddr, usize> {
    let mut index: HashMap<IpAddr, usize> = HashMap::with_capacity(workloads.len());
    for (n, workload) in workloads.iter().enumerate().filter(|(_, w)| !w.host_network) {
        for ip in &workload.addresses {
            let taken = index.get(ip).and_then(|old| workloads.get(*old));
            if taken.is_none_or(|old| claim(workload) > claim(old)) {
                index.insert(*ip, n);
            }
        }
    }
    index
}

fn claim(workload: &Workload) -> (bool, &str) {
    (!workload.terminating, &workload.created)
}

fn by_vip(services: &[Service]) -> HashMap<IpAddr, usize> {
    let mut index = HashMap::with_capacity(services.len());
    for (n, service) in services.iter().enumerate() {
        for vip in &service.vips {
            index.entry(*vip).or_insert(n);
        }
    }
    index
}

fn workloads(world: &World, settings: &Settings) -> Vec<Workload> {
    let mut identities: HashMap<(&str, &str), SpiffeId> = HashMap::new();
    let resolved = world.pods.values().filter_map(|pod| {
        let namespace = pod.metadata.namespace.as_str();
        let account = workload::service_account(pod);
        let identity = identities
            .entry((namespace, account))
            .or_insert_with(|| SpiffeId::new(&settings.trust_domain, namespace, account));
        let labels = world.namespaces.get(&(String::new(), namespace.to_owned()));
        Workload::new(pod, labels.map(AsRef::as_ref), identity.clone())
    });
    // Two pods with one uid can only be a mistake in a file; neither may get the other's policies.
    let mut uids = HashSet::new();
    let unique = |mut workload: Workload| {
        if !uids.insert(workload.uid.clone()) {
            workload.uid = workload.full_name();
        }
        workload
    };
    resolved.map(unique).collect()
}

fn services(world: &World, settings: &Settings, workloads: &mut [Workload]) -> Vec<Service> {
    let mut pods: HashMap<String, Vec<&mut Workload>> = HashMap::new();
    for pod in workloads {
        pods.entry(pod.namespace.clone()).or_default().push(pod);
    }
    let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in world.endpoint_slices.values() {
        if let Some(service) = slice.metadata.labels.get(SLICE_LABEL) {
            slices.entry((&slice.metadata.namespace, service)).or_default().push(slice);
        }
    }
    let named = world.services.values().filter(|s| s.spec.r#type != ServiceType::ExternalName);
    named
        .map(|service| {
            let meta = &service.metadata;
            let pods = pods.get_mut(&meta.namespace).map_or(&mut [][..], |pods| &mut pods[..]);
            let slices =
                slices.get(&(meta.namespace.as_str(), meta.name.as_str())).map_or(&[][..], |s| &s[..]);
            Service::new(service, &settings.cluster_domain, pods, slices)
        })
        .collect()
}

#[cfg(test)]
mod tests;
