//! Which endpoints of a service this node's pods use, and whether a client stays with one.
//!
//! The tiers are Istio's (istiod `ambient/services.go`; ztunnel `state.rs`, `load_balance`): an endpoint's rank is how many of the
//! mode's scopes it shares with the client, the widest first, and the best rank that any endpoint has gets all connections. Istio's
//! widest scope, the network, is left out: there is one. All clients of an agent are on its node, so ranks are the node's.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::{Addresses, Service, ServicePort, Settings, Workload, World};
use crate::control::Kind;
use crate::control::objects::EndpointSlice;

mod place;
mod wish;

use place::{Place, Scope};
pub use wish::Note;
pub(crate) use wish::{notes_of_namespace, notes_of_service};

/// How a service chooses among its endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Balancing {
    /// Each is as good as the others.
    #[default]
    Any,
    /// `PreferSameZone`, formerly `PreferClose`: those of the client's zone, else of its region, else any.
    SameZone,
    /// `PreferSameNode`: those of the client's node, else of its subzone, zone, region, else any.
    SameNode,
    /// `internalTrafficPolicy: Local`: those of the client's node, or none.
    Local,
}

impl Balancing {
    /// In the words of Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "Any",
            Self::SameZone => "PreferSameZone",
            Self::SameNode => "PreferSameNode",
            Self::Local => "Local",
        }
    }

    /// Whether it would rather refuse than go elsewhere.
    pub fn is_strict(self) -> bool {
        self == Self::Local
    }

    fn scopes(self) -> &'static [Scope] {
        match self {
            Self::Any | Self::Local => &[],
            Self::SameZone => &[Scope::Region, Scope::Zone],
            Self::SameNode => &[Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node],
        }
    }
}

/// What a service says about the choice, and what that means on this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// How endpoints are chosen.
    pub balancing: Balancing,
    /// `sessionAffinity: ClientIP`: how long a client that comes back is led to the same endpoint, in seconds since it came last.
    pub affinity: Option<u32>,
    /// Values that have no effect.
    pub notes: Vec<Note>,
    /// What the ranks of [`ServicePort::ranked`] mean, from 0: `elsewhere`, `same region`, `same zone`.
    tiers: Vec<&'static str>,
}

impl ServicePort {
    /// The endpoints of a family with their ranks: the higher, the rather.
    pub fn ranked(&self, v4: bool) -> impl Iterator<Item = (SocketAddr, u8)> {
        let rank = |n| self.ranks.get(n).copied().unwrap_or(0);
        let all = self.endpoints.iter().enumerate().map(move |(n, end)| (*end, rank(n)));
        all.filter(move |(end, _)| end.is_ipv4() == v4)
    }

    /// The endpoints of a family that this node's pods use now: those of the best rank.
    pub fn preferred(&self, v4: bool) -> impl Iterator<Item = SocketAddr> {
        let best = self.ranked(v4).map(|(_, rank)| rank).max();
        self.ranked(v4).filter(move |(_, rank)| Some(*rank) == best).map(|(end, _)| end)
    }
}

impl Service {
    /// Why this node's pods are led to an endpoint of `port`, or are not; empty when nothing tells the endpoints apart.
    pub fn explain_choice(&self, port: &ServicePort, endpoint: SocketAddr) -> String {
        let mut said = Vec::new();
        let found = port.ranked(endpoint.is_ipv4()).find(|(end, _)| *end == endpoint);
        let tier = found.and_then(|(_, rank)| self.choice.tiers.get(usize::from(rank)));
        if let Some(tier) = tier {
            let used = match port.preferred(endpoint.is_ipv4()).any(|end| end == endpoint) {
                true => "preferred",
                false => "not used while a better one is there",
            };
            said.push(format!("{}: {tier}, {used}", self.choice.balancing.as_str()));
        }
        if port.draining.contains(&endpoint) {
            said.push("draining, used because none is ready".to_owned());
        }
        if let Some(seconds) = self.choice.affinity {
            said.push(format!("ClientIP affinity for {seconds} s"));
        }
        said.join("; ")
    }

    /// `1/3 same zone`: how many of the first port's endpoints are used by this node's pods, and what they have in common; `all`
    /// where nothing tells them apart. Of the family of the first virtual address.
    pub fn preference(&self) -> String {
        let v4 = self.vips.first().is_none_or(IpAddr::is_ipv4);
        let (Some(port), false) = (self.ports.first(), self.choice.tiers.is_empty()) else {
            return "all".to_owned();
        };
        let (used, all) = (port.preferred(v4).count(), port.ranked(v4).count());
        let best = port.ranked(v4).map(|(_, rank)| rank).max();
        let tier = best.and_then(|rank| self.choice.tiers.get(usize::from(rank))).copied();
        format!("{used}/{all} {}", tier.unwrap_or("none")).trim_end().to_owned()
    }

    /// The endpoints that this node's pods use rather than others; none where nothing tells them apart.
    pub fn preferred_endpoints(&self) -> Vec<SocketAddr> {
        let ports = self.ports.iter().filter(|_| !self.choice.tiers.is_empty());
        ports.flat_map(|port| port.preferred(true).chain(port.preferred(false))).collect()
    }
}

/// Decides for each service which of its endpoints can be used now, and ranks them.
pub(super) fn resolve(
    world: &World,
    settings: &Settings,
    workloads: &[Workload],
    addresses: &Addresses,
    services: &mut [Service],
) {
    let mut surroundings = None;
    for service in services {
        let key = (service.namespace.clone(), service.name.clone());
        let home = world.namespaces.get(&(String::new(), service.namespace.clone())).map(AsRef::as_ref);
        service.choice = match service.kind {
            Kind::ServiceEntry => world.service_entries.get(&key).map(|entry| wish::of_entry(entry, home)),
            _ => world.services.get(&key).map(|object| wish::choice(object, home)),
        }
        .unwrap_or_default();
        let draining = service.ports.iter().any(|port| !port.draining.is_empty());
        if service.choice.balancing == Balancing::Any && !draining {
            continue;
        }
        let surroundings =
            surroundings.get_or_insert_with(|| Surroundings::new(world, settings, workloads, addresses));
        surroundings.settle(service);
    }
}

/// Where everything is.
struct Surroundings<'a> {
    own: Place<'a>,
    endpoints: HashMap<IpAddr, Place<'a>>,
}

impl<'a> Surroundings<'a> {
    fn new(
        world: &'a World,
        settings: &'a Settings,
        workloads: &'a [Workload],
        addresses: &Addresses,
    ) -> Self {
        let nodes = world.nodes.values().map(|node| (node.metadata.name.as_str(), Place::of(node)));
        let nodes: HashMap<_, _> = nodes.collect();
        let unknown = Place { node: &settings.node, ..Place::default() };
        let own = nodes.get(settings.node.as_str()).copied().unwrap_or(unknown);
        let slices = world.endpoint_slices.values().map(AsRef::as_ref);
        Self { own, endpoints: whereabouts(&nodes, slices, workloads, addresses) }
    }

    fn place(&self, end: &SocketAddr) -> Place<'a> {
        self.endpoints.get(&end.ip()).copied().unwrap_or_default()
    }

    fn settle(&self, service: &mut Service) {
        let Service { ports, choice, .. } = service;
        if choice.balancing.is_strict() {
            let here = |end: &SocketAddr| !self.own.node.is_empty() && self.place(end).node == self.own.node;
            for port in &mut *ports {
                port.endpoints.retain(here);
                port.draining.retain(here);
            }
            choice.tiers = vec!["same node"];
        }
        let scopes = choice.balancing.scopes();
        if !scopes.is_empty() {
            choice.tiers = (0..=scopes.len()).map(|rank| self.own.shared(scopes, rank)).collect();
        }
        for port in ports {
            use_draining(port);
            if !scopes.is_empty() {
                port.ranks =
                    port.endpoints.iter().map(|end| self.own.rank(&self.place(end), scopes)).collect();
            }
        }
    }
}

/// Endpoints that end but still answer are used when none is ready: kube-proxy's rule (`pkg/proxy/topology.go`,
/// `CategorizeEndpoints`; KEP-1669), for each family, and for `Local` for the endpoints of the node.
fn use_draining(port: &mut ServicePort) {
    for v4 in [true, false] {
        if !port.endpoints.iter().any(|end| end.is_ipv4() == v4) {
            port.endpoints.extend(port.draining.iter().filter(|end| end.is_ipv4() == v4));
        }
    }
    port.endpoints.sort_unstable();
    port.endpoints.dedup();
}

/// Where each address is: at the node of the pod that has it, where its entry says, else where a slice says.
fn whereabouts<'a>(
    nodes: &HashMap<&'a str, Place<'a>>,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    workloads: &'a [Workload],
    addresses: &Addresses,
) -> HashMap<IpAddr, Place<'a>> {
    let mut found = HashMap::new();
    let at = |node: &'a str| nodes.get(node).copied().unwrap_or(Place { node, ..Place::default() });
    let of = |workload: &'a Workload| match workload.locality.as_str() {
        "" => at(&workload.node),
        locality => Place::at(locality),
    };
    for workload in workloads {
        found.extend(workload.addresses.iter().map(|ip| (*ip, of(workload))));
    }
    for (ip, n) in &addresses.pods {
        found.extend(workloads.get(*n).map(|workload| (*ip, of(workload))));
    }
    for endpoint in slices.flat_map(|slice| &slice.endpoints) {
        let Some(node) = endpoint.node_name.as_deref() else { continue };
        for ip in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
            found.entry(ip).or_insert_with(|| at(node));
        }
    }
    found
}

#[cfg(test)]
mod tests;
