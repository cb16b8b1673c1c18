//! Waypoints: which Gateways are some, who serves them, and whose traffic goes to them first. Istio's rules: `waypoints.go` of
//! istiod's ambient index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::{Addresses, Service, Workload, World};
use crate::control::Kind;
use crate::control::objects::{Gateway, Listener, Metadata};
use crate::identity::SpiffeId;
use find::Finder;

pub(super) mod allow;
mod find;

pub use find::Unbound;
pub(crate) use find::{CANARY, CANARY_NAMESPACE, CANARY_WEIGHT, canary_weight, may_attach};

/// Names the waypoint of a Service, a Pod, or all of a Namespace's. `none`: it has none.
pub(crate) const USE: &str = "istio.io/use-waypoint";
/// Where that waypoint is, when not in the same namespace.
pub(crate) const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// What some guides write instead of [`USE`]: `enabled`.
pub(crate) const ALIAS: &str = "istio.io/waypoint";
/// The waypoint that [`ALIAS`] means.
pub(crate) const ALIAS_NAME: &str = "waypoint";
/// What traffic a waypoint takes.
pub(crate) const FOR: &str = "istio.io/waypoint-for";
/// On Services and Pods that istiod's controllers make for a Gateway.
const MANAGED: &str = "gateway.istio.io/managed";
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// What an object's labels say about its waypoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice<'a> {
    /// This one; `label` says so.
    Gateway {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
        /// The label.
        label: &'static str,
    },
    /// None, whatever the namespace says.
    OptOut,
}

/// The choice of an object that lives in `namespace`; `None`: it leaves that to its namespace.
pub(crate) fn chosen<'a>(labels: &'a BTreeMap<String, String>, namespace: &'a str) -> Option<Choice<'a>> {
    let get = |key: &str| labels.get(key).map(String::as_str).filter(|value| !value.is_empty());
    match get(USE) {
        Some("none") => Some(Choice::OptOut),
        Some(name) => {
            let namespace = get(USE_NAMESPACE).unwrap_or(namespace);
            Some(Choice::Gateway { namespace, name, label: USE })
        }
        None if get(ALIAS) == Some("enabled") => {
            Some(Choice::Gateway { namespace, name: ALIAS_NAME, label: ALIAS })
        }
        None => None,
    }
}

/// A Gateway that is a waypoint and has an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waypoint {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who serves it: HBONE listener and identity, in a stable order.
    pub instances: Vec<(SocketAddr, SpiffeId)>,
    /// How much this node prefers those that its Service prefers, as in [`super::ServicePort::ranked`].
    ranks: HashMap<SocketAddr, u8>,
    /// As whom its pods go on to the workloads: of all that bear its name in the label of istiod's deployments, ready or not.
    pub identities: BTreeSet<SpiffeId>,
    /// For connections to virtual addresses of services.
    services: bool,
    /// For connections to addresses of workloads.
    workloads: bool,
}

impl Waypoint {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A second waypoint of a Service, on trial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Canary {
    /// Its place in [`super::Mesh::waypoints`].
    pub waypoint: usize,
    /// How many of a hundred new connections go there, 0 to 100.
    pub weight: u8,
}

/// Finds the waypoints, and tells workloads and services which is theirs.
pub(super) fn resolve(
    world: &World,
    workloads: &mut [Workload],
    services: &mut [Service],
    addresses: &Addresses,
) -> Vec<Waypoint> {
    let mut waypoints = Vec::new();
    let mut places: HashMap<(&str, &str), Vec<(usize, &Listener)>> = HashMap::new();
    for gateway in world.gateways.values() {
        let Some((waypoint, listener)) = Waypoint::new(world, gateway, workloads, services, addresses) else {
            continue;
        };
        let meta = &gateway.metadata;
        places.entry((&meta.namespace, &meta.name)).or_default().push((waypoints.len(), listener));
        waypoints.push(waypoint);
    }
    let finder = Finder { world, places, waypoints: &waypoints };
    let without = |w: &&mut Workload| waypoints.is_empty() || w.labels.contains_key(GATEWAY_NAME);
    for workload in workloads.iter_mut().filter(|w| !without(w)) {
        let labels = workload.waypoint_labels.as_ref().unwrap_or(&workload.labels);
        workload.waypoint = finder.of_workload(labels, &workload.namespace);
    }
    for service in services.iter_mut() {
        let key = (service.namespace.clone(), service.name.clone());
        let meta = match service.kind {
            Kind::ServiceEntry => world.service_entries.get(&key).map(|o| &o.metadata),
            _ => world.services.get(&key).map(|o| &o.metadata),
        };
        let Some(meta) = meta.filter(|meta| !serves_a_gateway(meta)) else { continue };
        finder.bind(service, meta);
    }
    waypoints
}

/// Whether a Service is a waypoint's own (or another Gateway's): it has no waypoint.
fn serves_a_gateway(meta: &Metadata) -> bool {
    meta.labels.contains_key(MANAGED) || meta.labels.contains_key(GATEWAY_NAME)
}

impl Waypoint {
    /// How much an instance is preferred: the higher, the rather.
    pub fn rank(&self, instance: SocketAddr) -> u8 {
        self.ranks.get(&instance).copied().unwrap_or(0)
    }

    fn new<'a>(
        world: &World,
        gateway: &'a Gateway,
        workloads: &[Workload],
        services: &[Service],
        addresses: &Addresses,
    ) -> Option<(Self, &'a Listener)> {
        let listener = gateway.spec.listeners.iter().find(|l| l.protocol.eq_ignore_ascii_case("HBONE"))?;
        if gateway.status.addresses.is_empty() {
            return None; // not ready: whoever names it has no waypoint
        }
        let meta = &gateway.metadata;
        let class = world.gateway_classes.get(&(String::new(), gateway.spec.gateway_class_name.clone()));
        let of_class = || class.and_then(|class| class.metadata.labels.get(FOR));
        let kinds = meta.labels.get(FOR).or_else(of_class).map_or("service", String::as_str);
        let mut waypoint = Self {
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            instances: Vec::new(),
            ranks: HashMap::new(),
            identities: identities(meta, workloads),
            services: matches!(kinds, "service" | "all"),
            workloads: matches!(kinds, "workload" | "all"),
        };
        for address in &gateway.status.addresses {
            waypoint.add_instances(&address.value, listener.port, workloads, services, addresses);
        }
        waypoint.instances.sort();
        waypoint.instances.dedup();
        Some((waypoint, listener))
    }

    /// Those behind an address: of a pod, of a Service, or the name of one.
    fn add_instances(
        &mut self,
        value: &str,
        port: u16,
        workloads: &[Workload],
        services: &[Service],
        addresses: &Addresses,
    ) {
        let ip: Option<IpAddr> = value.parse().ok();
        let instance = |end: SocketAddr| {
            let workload = workloads.get(*addresses.pods.get(&end.ip())?)?;
            Some((end, workload.identity.clone()))
        };
        let direct = ip.and_then(|ip| instance(SocketAddr::new(ip, port)));
        let service = match ip {
            Some(ip) => addresses.vips.get(&ip).and_then(|n| services.get(*n)),
            None => services.iter().find(|s| s.hostname == value),
        };
        let port = service.and_then(|s| s.ports.iter().find(|p| p.port == port));
        let ranked = port.into_iter().flat_map(|port| port.ranked(true).chain(port.ranked(false)));
        let ranked: Vec<_> = ranked.collect();
        let behind = ranked.iter().filter_map(|(end, _)| instance(*end));
        self.instances.extend(direct.into_iter().chain(behind));
        self.ranks.extend(ranked);
    }
}

fn identities(gateway: &Metadata, workloads: &[Workload]) -> BTreeSet<SpiffeId> {
    let is_own = |w: &&Workload| {
        w.namespace == gateway.namespace
            && w.labels.get(GATEWAY_NAME).is_some_and(|name| *name == gateway.name)
    };
    workloads.iter().filter(is_own).map(|w| w.identity.clone()).collect()
}

#[cfg(test)]
mod tests;
