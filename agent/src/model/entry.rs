//! WorkloadEntries and the endpoints of ServiceEntries: workloads that are no pods of this cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::workload::{self, Workload};
use super::{Settings, World, waypoint};
use crate::control::Kind;
use crate::control::names::{UNIX, name_of};
use crate::control::objects::{EntryEndpoint, Metadata, ServiceEntry, WorkloadEntry};
use crate::identity::SpiffeId;

/// On the root namespace: the name of the mesh's own network.
const NETWORK_LABEL: &str = "topology.istio.io/network";

/// What entries are resolved with.
pub(super) struct Entries<'a> {
    world: &'a World,
    settings: &'a Settings,
    network: &'a str,
}

impl<'a> Entries<'a> {
    pub(super) fn new(world: &'a World, settings: &'a Settings) -> Self {
        let root = world.namespaces.get(&(String::new(), settings.root_namespace.clone()));
        let network = root.and_then(|root| root.metadata.labels.get(NETWORK_LABEL));
        Self { world, settings, network: network.map_or("", String::as_str) }
    }

    /// Metadata's labels come before those of the spec.
    pub(super) fn workload(&self, entry: &WorkloadEntry) -> Workload {
        let mut meta = entry.metadata.clone();
        for (key, value) in &entry.spec.labels {
            meta.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let uid = self.uid(Kind::WorkloadEntry, &meta, "");
        self.resolve(Kind::WorkloadEntry, uid, meta, &entry.spec)
    }

    /// The endpoints of a ServiceEntry that lists them, or that has a name in their place; `hosts` are those of its hosts that
    /// are its own.
    ///
    /// As in istiod, an endpoint has the name and the labels of the ServiceEntry; its own decide only on its waypoint.
    pub(super) fn endpoints(&self, entry: &ServiceEntry, hosts: &[&str]) -> Vec<Workload> {
        let meta = &entry.metadata;
        let workload = |endpoint: &EntryEndpoint, labels: BTreeMap<String, String>| {
            let uid = self.uid(Kind::ServiceEntry, meta, &endpoint.address);
            let workload = self.resolve(Kind::ServiceEntry, uid, meta.clone(), endpoint);
            Workload { waypoint_labels: Some(labels), ..workload }
        };
        if entry.serves_hosts() {
            let none = || BTreeMap::from([(waypoint::USE.to_owned(), "none".to_owned())]);
            let host =
                |host: &&str| EntryEndpoint { address: (*host).to_owned(), ..EntryEndpoint::default() };
            return hosts.iter().map(|name| workload(&host(name), none())).collect();
        }
        entry.spec.endpoints.iter().map(|endpoint| workload(endpoint, endpoint.labels.clone())).collect()
    }

    /// As istiod names it.
    fn uid(&self, kind: Kind, meta: &Metadata, address: &str) -> String {
        let Metadata { namespace, name, .. } = meta;
        let slash = if address.is_empty() { "" } else { "/" };
        let cluster = &self.settings.cluster;
        format!("{cluster}/networking.istio.io/{kind:?}/{namespace}/{name}{slash}{address}")
    }

    fn resolve(&self, kind: Kind, uid: String, meta: Metadata, endpoint: &EntryEndpoint) -> Workload {
        let account = match endpoint.service_account.as_str() {
            "" => "default",
            account => account,
        };
        let (addresses, trouble) = self.addresses(endpoint);
        let (app, version) = workload::canonical(&meta);
        let native_tunnel = workload::has_tunnel_label(&meta);
        let redirected = workload::is_redirected(&meta);
        Workload {
            kind,
            uid,
            identity: SpiffeId::new(&self.settings.trust_domain, &meta.namespace, account),
            service_account: account.to_owned(),
            node: String::new(),
            addresses,
            location: endpoint.address.clone(),
            trouble,
            weight: endpoint.weight.max(1),
            owner: ("pod", meta.name.clone()), // as istiod tells it
            app,
            version,
            host_network: false,
            ready: true,
            terminating: false,
            draining: false,
            locality: endpoint.locality.clone(),
            created: meta.creation_timestamp.unwrap_or_default(),
            redirected,
            enrolled: native_tunnel || redirected,
            native_tunnel,
            waypoint: None,
            waypoint_labels: None,
            behind: Vec::new(),
            services: Vec::new(),
            ports: endpoint.ports.clone(),
            namespace: meta.namespace,
            name: meta.name,
            labels: meta.labels,
        }
    }

    /// Where it is, and why that is not all that could be known.
    fn addresses(&self, endpoint: &EntryEndpoint) -> (Vec<IpAddr>, String) {
        let address = endpoint.address.as_str();
        let nowhere = |why: String| (Vec::new(), why);
        if !endpoint.network.is_empty() && endpoint.network != self.network {
            let network = &endpoint.network;
            return nowhere(format!(
                "{address} is in network {network}, to which this node knows no gateway"
            ));
        }
        if address.starts_with(UNIX) {
            return nowhere(format!("{address} is a unix socket, which no other machine can reach"));
        }
        if let Ok(ip) = address.parse::<IpAddr>() {
            return match can_be_reached(&ip) {
                true => (vec![ip], String::new()),
                false => nowhere(format!("{address} is no address that another machine can have")),
            };
        }
        let Some(name) = name_of(address) else {
            return nowhere(format!("{address:?} is no name that DNS can be asked for"));
        };
        let Some(answer) = self.world.names.get(&name) else {
            return nowhere(format!("{name}: DNS has not answered yet"));
        };
        let mut addresses = answer.addresses.clone();
        addresses.retain(can_be_reached);
        let trouble = match (answer.problem.as_str(), addresses.is_empty()) {
            ("", false) => String::new(),
            ("", true) => format!("{name}: DNS has only addresses that no other machine can have"),
            (problem, true) => format!("{name}: {problem}"),
            (problem, false) => format!("{name}: {problem}; what DNS said before stays in force"),
        };
        (addresses, trouble)
    }
}

/// A connection that is led to such an address would end in the client's own pod, or nowhere. DNS must not be able to do that.
pub(crate) fn can_be_reached(ip: &IpAddr) -> bool {
    let ip = ip.to_canonical();
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests;
