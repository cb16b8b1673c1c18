//! The mesh as this node knows it: [`World`] holds the objects, [`Mesh`] what they mean together.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::{Kind, Object, ObjectRef, Report, Update, objects};
use crate::policy::{AuthorizationPolicy, PeerAuthentication};

mod desired;
mod resolve;
mod service;
mod snapshot;
pub(crate) mod workload;

pub use desired::{Desired, desired};
pub use service::{Service, ServicePort};
pub use snapshot::{PolicyRow, ServiceRow, Snapshot, WorkloadRow};
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
    service_accounts: Objects<objects::ServiceAccount>,
    policies: Objects<AuthorizationPolicy>,
    peer_authentications: Objects<PeerAuthentication>,
    report: Report,
    synced: bool,
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

    /// What the objects mean together.
    pub fn resolve(&self, settings: &Settings) -> Mesh {
        resolve::resolve(self, settings)
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
            Update::Synced => !std::mem::replace(&mut self.synced, true),
        }
    }

    fn upsert(&mut self, object: Object) -> bool {
        let ObjectRef { namespace, name, .. } = object.key();
        let key = (namespace, name);
        match object {
            Object::AuthorizationPolicy(o) => put(&mut self.policies, key, o),
            Object::EndpointSlice(o) => put(&mut self.endpoint_slices, key, o),
            Object::Namespace(o) => put(&mut self.namespaces, key, o),
            Object::Node(o) => put(&mut self.nodes, key, o),
            Object::PeerAuthentication(o) => put(&mut self.peer_authentications, key, o),
            Object::Pod(o) => put(&mut self.pods, key, o),
            Object::Service(o) => put(&mut self.services, key, o),
            Object::ServiceAccount(o) => put(&mut self.service_accounts, key, o),
        }
    }

    fn remove(&mut self, object: ObjectRef) -> bool {
        let key = (object.namespace, object.name);
        match object.kind {
            Kind::AuthorizationPolicy => self.policies.remove(&key).is_some(),
            Kind::EndpointSlice => self.endpoint_slices.remove(&key).is_some(),
            Kind::Namespace => self.namespaces.remove(&key).is_some(),
            Kind::Node => self.nodes.remove(&key).is_some(),
            Kind::PeerAuthentication => self.peer_authentications.remove(&key).is_some(),
            Kind::Pod => self.pods.remove(&key).is_some(),
            Kind::Service => self.services.remove(&key).is_some(),
            Kind::ServiceAccount => self.service_accounts.remove(&key).is_some(),
        }
    }
}

fn put<T: PartialEq>(objects: &mut Objects<T>, key: (String, String), object: Arc<T>) -> bool {
    let changed = objects.get(&key).is_none_or(|old| *old != object);
    objects.insert(key, object);
    changed
}

/// The resolved picture. Immutable; everything in it is ordered by namespace and name.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// What it was resolved with.
    pub settings: Settings,
    /// Pods with an address that are not over.
    pub workloads: Vec<Workload>,
    /// Services with a name in the cluster (not ExternalName).
    pub services: Vec<Service>,
    /// Every AuthorizationPolicy.
    pub policies: Vec<Arc<AuthorizationPolicy>>,
    /// Every PeerAuthentication.
    pub peer_authentications: Vec<Arc<PeerAuthentication>>,
    /// What the source could not use.
    pub report: Report,
}
