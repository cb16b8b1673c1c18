//! From objects to what they mean together.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::entry::Entries;
use super::service_entry::{self, Owned};
use super::{Addresses, Service, Settings, Topology, Workload, World, choice, waypoint, workload};
use crate::control::Kind;
use crate::control::objects::{EndpointSlice, ServiceType};
use crate::identity::SpiffeId;

const SLICE_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn topology(world: &World, settings: &Settings) -> Topology {
    let mut workloads = workloads(world, settings);
    let mut services = services(world, settings, &mut workloads);
    add_service_entries(world, settings, &mut workloads, &mut services);
    let addresses = Addresses { pods: by_address(&workloads), vips: by_vip(&services) };
    choice::resolve(world, settings, &workloads, &addresses, &mut services);
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
/// their own. An entry that has a pod's address is the pod.
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

fn claim(workload: &Workload) -> (bool, bool, bool, &str) {
    let pod = workload.kind == Kind::Pod;
    (pod, !pod && workload.enrolled, !workload.terminating, &workload.created)
}

fn by_vip(services: &[Service]) -> HashMap<IpAddr, usize> {
    let mut index: HashMap<IpAddr, usize> = HashMap::with_capacity(services.len());
    for (n, service) in services.iter().enumerate() {
        for vip in &service.vips {
            let taken = index.get(vip).and_then(|old| services.get(*old));
            if taken.is_none_or(|old| service.precedence() < old.precedence()) {
                index.insert(*vip, n);
            }
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
    let entries = Entries::new(world, settings);
    let others = world.workload_entries.values().map(|entry| entries.workload(entry));
    in_order(resolved.chain(others).map(unique).collect(), !world.workload_entries.is_empty())
}

/// By namespace and name. Pods alone are in order already.
fn in_order(mut workloads: Vec<Workload>, mixed: bool) -> Vec<Workload> {
    if mixed {
        workloads.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    }
    workloads
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

/// The services that are ServiceEntries, and their endpoints.
fn add_service_entries(
    world: &World,
    settings: &Settings,
    workloads: &mut Vec<Workload>,
    services: &mut Vec<Service>,
) {
    if world.service_entries.is_empty() {
        return;
    }
    let (owned, mut notes) = service_entry::owners(world, services);
    let entries = Entries::new(world, settings);
    let mut endpoints: Vec<Vec<Workload>> =
        owned.iter().map(|Owned { entry, hosts }| entries.endpoints(entry, hosts)).collect();
    let mut members: HashMap<String, Vec<&mut Workload>> = HashMap::new();
    for workload in workloads.iter_mut() {
        members.entry(workload.namespace.clone()).or_default().push(workload);
    }
    for (owned, own) in owned.iter().zip(&mut endpoints) {
        let namespace = owned.entry.metadata.namespace.as_str();
        let mut own: Vec<&mut Workload> = own.iter_mut().collect();
        let members = match service_entry::selects(owned.entry) {
            true => members.get_mut(namespace).map_or(&mut [][..], |members| &mut members[..]),
            false => &mut own[..],
        };
        for host in &owned.hosts {
            let mut service = Service::of_entry(owned, host, members);
            service.notes.extend(notes.remove(&(namespace, *host)).unwrap_or_default());
            services.push(service);
        }
    }
    drop(members);
    workloads.extend(endpoints.into_iter().flatten());
    *workloads = in_order(std::mem::take(workloads), true);
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
}

#[cfg(test)]
mod tests;
