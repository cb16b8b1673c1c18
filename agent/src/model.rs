//! The mesh as this node knows it: [`World`] holds the objects, [`Mesh`] what they mean together.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::control::names::Answer;
use crate::control::{Kind, Object, ObjectRef, Report, Update, objects};
use crate::policy::{AuthorizationPolicy, L7Deny, PeerAuthentication};

pub(crate) mod choice;
mod desired;
mod entry;
mod owner;
mod resolve;
mod service;
mod service_entry;
mod snapshot;
pub(crate) mod waypoint;
pub(crate) mod workload;

pub use choice::{Balancing, Choice, Note};
pub use desired::{Desired, desired};
pub(crate) use entry::can_be_reached;
pub use service::{Service, ServicePort};
pub use snapshot::{PolicyRow, ServiceRow, Snapshot, WorkloadRow};
pub use waypoint::{Canary, Unbound, Waypoint};
pub use workload::Workload;

/// What the agent was told about where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// First part of every identity. Istio's default is `cluster.local`.
    pub trust_domain: String,
    /// Whose policies hold for the whole mesh. Istio's default is `istio-system`.
    pub root_namespace: String,
    /// Last part of every service's name, `cluster.local` by default.
    pub cluster_domain: String,
    /// This cluster's name. Istio's default is `Kubernetes`.
    pub cluster: String,
    /// Other names of the trust domain, in policies and in peers' certificates (Istio's `trustDomainAliases`).
    pub trust_domain_aliases: Vec<String>,
    /// What DENY means where L4 cannot see everything.
    pub l7_deny: L7Deny,
    /// Whether a waypoint may have what is behind it without a policy that says so (Istio's
    /// `PILOT_AUTO_ALLOW_WAYPOINT_POLICY`). Default: no.
    pub auto_allow_waypoint: bool,
}

impl Default for Settings {
    /// Istio's defaults, of a node without a name.
    fn default() -> Self {
        Self {
            node: String::new(),
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            cluster: "Kubernetes".to_owned(),
            trust_domain_aliases: Vec::new(),
            l7_deny: L7Deny::default(),
            auto_allow_waypoint: false,
        }
    }
}

impl Settings {
    /// The trust domain and its aliases.
    pub fn trust_domains(&self) -> Vec<String> {
        std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases).cloned().collect()
    }
}

type Objects<T> = BTreeMap<(String, String), Arc<T>>;

/// All objects, as the control source tells of them.
#[derive(Default)]
pub struct World {
    namespaces: Objects<objects::Namespace>,
    nodes: Objects<objects::Node>,
    pods: Objects<objects::Pod>,
    services: Objects<objects::Service>,
    endpoint_slices: Objects<objects::EndpointSlice>,
    gateways: Objects<objects::Gateway>,
    gateway_classes: Objects<objects::GatewayClass>,
    service_accounts: Objects<objects::ServiceAccount>,
    service_entries: Objects<objects::ServiceEntry>,
    workload_entries: Objects<objects::WorkloadEntry>,
    /// What DNS says of the names in the two before.
    names: BTreeMap<String, Answer>,
    policies: Objects<AuthorizationPolicy>,
    peer_authentications: Objects<PeerAuthentication>,
    report: Report,
    synced: bool,
    /// What pods, services and their surroundings mean, until one of them changes.
    topology: Option<(Settings, Topology)>,
    /// Those of the last topology.
    waypoint_policies: Vec<Arc<AuthorizationPolicy>>,
}

impl World {
    /// Takes in a batch; returns whether anything is different now.
    pub fn apply(&mut self, updates: Vec<Update>) -> bool {
        updates.into_iter().fold(false, |changed, update| changed | self.apply_one(update))
    }

    /// Whether the picture was complete once.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// What the source could not use.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What the objects mean together. What has not changed since the last call is shared with its result.
    pub fn resolve(&mut self, settings: &Settings) -> Mesh {
        let topology = match self.topology.take() {
            Some((known, topology)) if known == *settings => topology,
            _ => resolve::topology(self, settings),
        };
        self.topology = Some((settings.clone(), topology.clone()));
        self.waypoint_policies.clone_from(&topology.waypoint_policies);
        let mut policies: Vec<_> =
            self.policies.values().chain(&topology.waypoint_policies).cloned().collect();
        if !topology.waypoint_policies.is_empty() {
            policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        }
        Mesh {
            settings: settings.clone(),
            workloads: topology.workloads,
            services: topology.services,
            waypoints: topology.waypoints,
            addresses: topology.addresses,
            policies,
            peer_authentications: self.peer_authentications.values().cloned().collect(),
            report: self.report.clone(),
        }
    }

    fn apply_one(&mut self, update: Update) -> bool {
        match update {
            Update::Upsert(object) => self.upsert(object),
            Update::Remove(object) => self.remove(object),
            Update::Report(report) => {
                let changed = self.report != report;
                self.report = report;
                changed
            }
            Update::Name(name, answer) => {
                let changed = self.names.get(&name) != answer.as_ref();
                match answer {
                    Some(answer) => drop(self.names.insert(name, answer)),
                    None => drop(self.names.remove(&name)),
                }
                self.topology.take_if(|_| changed);
                changed
            }
            Update::Synced => !std::mem::replace(&mut self.synced, true),
        }
    }

    fn upsert(&mut self, object: Object) -> bool {
        let ObjectRef { kind, namespace, name } = object.key();
        let key = (namespace, name);
        let changed = match object {
            Object::AuthorizationPolicy(o) => put(&mut self.policies, key, o),
            Object::EndpointSlice(o) => put(&mut self.endpoint_slices, key, o),
            Object::Gateway(o) => put(&mut self.gateways, key, o),
            Object::GatewayClass(o) => put(&mut self.gateway_classes, key, o),
            Object::Namespace(o) => put(&mut self.namespaces, key, o),
            Object::Node(o) => put(&mut self.nodes, key, o),
            Object::PeerAuthentication(o) => put(&mut self.peer_authentications, key, o),
            Object::Pod(o) => put(&mut self.pods, key, o),
            Object::Service(o) => put(&mut self.services, key, o),
            Object::ServiceAccount(o) => put(&mut self.service_accounts, key, o),
            Object::ServiceEntry(o) => put(&mut self.service_entries, key, o),
            Object::WorkloadEntry(o) => put(&mut self.workload_entries, key, o),
        };
        self.outdated(kind, changed)
    }

    fn outdated(&mut self, kind: Kind, changed: bool) -> bool {
        if changed && !matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication) {
            self.topology = None;
        }
        changed
    }

    fn remove(&mut self, object: ObjectRef) -> bool {
        let key = (object.namespace, object.name);
        let gone = match object.kind {
            Kind::AuthorizationPolicy => self.policies.remove(&key).is_some(),
            Kind::EndpointSlice => self.endpoint_slices.remove(&key).is_some(),
            Kind::Gateway => self.gateways.remove(&key).is_some(),
            Kind::GatewayClass => self.gateway_classes.remove(&key).is_some(),
            Kind::Namespace => self.namespaces.remove(&key).is_some(),
            Kind::Node => self.nodes.remove(&key).is_some(),
            Kind::PeerAuthentication => self.peer_authentications.remove(&key).is_some(),
            Kind::Pod => self.pods.remove(&key).is_some(),
            Kind::Service => self.services.remove(&key).is_some(),
            Kind::ServiceAccount => self.service_accounts.remove(&key).is_some(),
            Kind::ServiceEntry => self.service_entries.remove(&key).is_some(),
            Kind::WorkloadEntry => self.workload_entries.remove(&key).is_some(),
        };
        self.outdated(object.kind, gone)
    }
}

fn put<T: PartialEq>(objects: &mut Objects<T>, key: (String, String), object: Arc<T>) -> bool {
    // An equal one leaves the old in its place: what was derived from it stays valid.
    let changed = objects.get(&key).is_none_or(|old| *old != object);
    if changed {
        objects.insert(key, object);
    }
    changed
}

/// The part of a [`Mesh`] that policies have no say in.
#[derive(Clone)]
struct Topology {
    workloads: Arc<Vec<Workload>>,
    services: Arc<Vec<Service>>,
    waypoints: Arc<Vec<Waypoint>>,
    addresses: Arc<Addresses>,
    /// That let waypoints in, with `--auto-allow-waypoint`.
    waypoint_policies: Vec<Arc<AuthorizationPolicy>>,
}

/// Who has which address: places in [`Mesh::workloads`] and [`Mesh::services`].
#[derive(Default, Debug)]
pub struct Addresses {
    pub(crate) pods: HashMap<IpAddr, usize>,
    pub(crate) vips: HashMap<IpAddr, usize>,
}

/// The resolved picture. Immutable; everything in it is ordered by namespace and name.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// What it was resolved with.
    pub settings: Settings,
    /// Pods with an address that are not over, WorkloadEntries, and endpoints of ServiceEntries.
    pub workloads: Arc<Vec<Workload>>,
    /// Services with a name in the cluster (not ExternalName), and the hosts of ServiceEntries.
    pub services: Arc<Vec<Service>>,
    /// Gateways that are waypoints and have an address.
    pub waypoints: Arc<Vec<Waypoint>>,
    /// Workloads and services by address.
    pub addresses: Arc<Addresses>,
    /// Every AuthorizationPolicy, and those of `--auto-allow-waypoint`.
    pub policies: Vec<Arc<AuthorizationPolicy>>,
    /// Every PeerAuthentication.
    pub peer_authentications: Vec<Arc<PeerAuthentication>>,
    /// What the source could not use.
    pub report: Report,
}
