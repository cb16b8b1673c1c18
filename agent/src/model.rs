//! The world as the sources tell it, and the mesh as it follows from that: workloads, services, endpoints.

mod resolve;
mod snapshot;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

pub use snapshot::{Snapshot, desired};

use crate::control::objects::Labels;
use crate::control::{Object, ObjectKey, SourceReport, Update};
use crate::identity::SpiffeId;

/// What the resolution depends on besides the objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Istio's root namespace.
    pub root_namespace: String,
}

/// A pod with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct Workload {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub labels: Labels,
    pub host_network: bool,
    /// Ready and not being deleted.
    pub ready: bool,
    /// In the mesh, by its labels.
    pub enrolled: bool,
    pub identity: SpiffeId,
}

impl Workload {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A service with a virtual address or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// `name.namespace.svc.<domain>`.
    pub hostname: String,
    /// Virtual addresses; none for a headless service.
    pub vips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// Pods that the selector matches, ready or not.
    pub members: usize,
    /// Those that take traffic.
    pub ready: usize,
}

/// A TCP port of a service with its endpoints, both families together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Service port.
    pub port: u16,
    /// Pod addresses and ports that take traffic, in a stable order.
    pub endpoints: Vec<SocketAddr>,
}

/// The mesh at one moment.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// All pods with an address, by `namespace/name`.
    pub workloads: Vec<Workload>,
    /// All services.
    pub services: Vec<Service>,
}

/// All objects, as they were last told.
#[derive(Clone, Debug, Default)]
pub struct World {
    objects: BTreeMap<ObjectKey, Object>,
    synced: bool,
    report: SourceReport,
}

impl World {
    /// Applies a batch; true when an object changed.
    pub fn apply(&mut self, updates: Vec<Update>) -> bool {
        let mut changed = false;
        for update in updates {
            match update {
                Update::Upsert(object) => {
                    changed = true;
                    self.objects.insert(object.key(), *object);
                }
                Update::Remove(key) => changed |= self.objects.remove(&key).is_some(),
                Update::Synced => {
                    changed = true;
                    self.synced = true;
                }
                Update::Report(report) => self.report = report,
            }
        }
        changed
    }

    /// Whether the initial state is complete. Until then nothing may be concluded from what is missing.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// What the source could not use.
    pub fn report(&self) -> &SourceReport {
        &self.report
    }

    /// All objects, ordered by kind, namespace and name.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }
}
