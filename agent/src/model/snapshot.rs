//! What readers see: the mesh and its compiled policy at one moment, with look-ups by address and number.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use culvert_common::{BackendKey, Decision, Ip, Reason, ServiceKey, flags};
use serde::Serialize;

use super::{Mesh, Service, Workload};
use crate::bpf::Desired;
use crate::identity::SpiffeId;
use crate::policy::{Compiled, Interner};
use crate::telemetry::flows::Names;

/// The mesh at one moment.
#[derive(Default)]
pub struct Snapshot {
    /// Workloads and services.
    pub mesh: Mesh,
    /// Compiled policy.
    pub compiled: Compiled,
    by_ip: HashMap<IpAddr, usize>,
    by_vip: HashMap<IpAddr, usize>,
}

/// A line of `culvert workloads`.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadRow {
    pub namespace: String,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub node: String,
    pub waypoint: &'static str,
    pub protocol: &'static str,
    pub service_account: String,
    pub identity: String,
}

/// A line of `culvert services`.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceRow {
    pub namespace: String,
    pub name: String,
    pub vips: Vec<IpAddr>,
    pub waypoint: &'static str,
    pub endpoints: String,
}

impl Snapshot {
    /// Indexes the mesh.
    pub fn new(mesh: Mesh, compiled: Compiled) -> Self {
        let mut by_ip = HashMap::new();
        for (index, workload) in mesh.workloads.iter().enumerate().filter(|(_, w)| !w.host_network) {
            by_ip.extend(workload.addresses.iter().map(|ip| (*ip, index)));
        }
        let mut by_vip = HashMap::new();
        for (index, service) in mesh.services.iter().enumerate() {
            by_vip.extend(service.vips.iter().map(|ip| (*ip, index)));
        }
        Self { mesh, compiled, by_ip, by_vip }
    }

    /// The pod with this address; hostNetwork pods share theirs with the node and are not found.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Workload> {
        self.by_ip.get(&ip).map(|index| &self.mesh.workloads[*index])
    }

    /// The service with this virtual address.
    pub fn service_by_vip(&self, vip: IpAddr) -> Option<&Service> {
        self.by_vip.get(&vip).map(|index| &self.mesh.services[*index])
    }

    /// May `peer` connect to `port` of the pod at `destination`?
    pub fn decide(&self, destination: IpAddr, port: u16, peer: Option<&SpiffeId>) -> Decision {
        let class = self.workload_by_ip(destination).and_then(|w| self.compiled.class_of.get(&w.uid));
        match class {
            Some(class) => self.compiled.decide(*class, peer, port),
            None => Decision::refuse(Reason::UnknownDestination),
        }
    }

    /// For `culvert workloads`.
    pub fn workload_rows(&self) -> Vec<WorkloadRow> {
        let row = |w: &Workload| WorkloadRow {
            namespace: w.namespace.clone(),
            name: w.name.clone(),
            addresses: w.addresses.clone(),
            node: w.node.clone(),
            waypoint: "None",
            protocol: if w.enrolled { "HBONE" } else { "TCP" },
            service_account: w.service_account.clone(),
            identity: if w.enrolled { w.identity.to_string() } else { String::new() },
        };
        self.mesh.workloads.iter().map(row).collect()
    }

    /// For `culvert services`.
    pub fn service_rows(&self) -> Vec<ServiceRow> {
        let row = |s: &Service| ServiceRow {
            namespace: s.namespace.clone(),
            name: s.name.clone(),
            vips: s.vips.clone(),
            waypoint: "None",
            endpoints: format!("{}/{}", s.ready, s.members),
        };
        self.mesh.services.iter().map(row).collect()
    }
}

impl Names for Snapshot {
    fn workload(&self, ip: IpAddr) -> Option<String> {
        self.workload_by_ip(ip).map(Workload::full_name)
    }

    fn service(&self, vip: IpAddr) -> Option<String> {
        self.service_by_vip(vip).map(|s| format!("{}/{}", s.namespace, s.name))
    }

    fn identity(&self, id: u32) -> Option<String> {
        self.compiled.past.identity(id).map(ToString::to_string)
    }

    fn policy(&self, index: u32) -> Option<String> {
        self.compiled.past.policy(index).map(str::to_owned)
    }
}

/// The content of the kernel maps for this snapshot. A local pod is named as enrolled only when it is `serving`: its
/// listeners and certificate are in place.
pub fn desired(
    snapshot: &Snapshot,
    node: &str,
    serving: &HashSet<String>,
    interner: &mut Interner,
) -> Desired {
    let compiled = &snapshot.compiled;
    let mut desired = Desired {
        policy: compiled.rows.clone(),
        policy_names: compiled.policy_names.clone(),
        identities: compiled.identities.iter().map(|(id, spiffe)| (*id, spiffe.to_string())).collect(),
        ..Desired::default()
    };
    for workload in snapshot.mesh.workloads.iter().filter(|w| !w.host_network) {
        let value = entry(workload, compiled, node, serving);
        desired.workloads.extend(workload.addresses.iter().map(|ip| (Ip::from(*ip), value)));
    }
    for service in &snapshot.mesh.services {
        add_service(service, interner, &mut desired);
    }
    desired
}

fn entry(
    workload: &Workload,
    compiled: &Compiled,
    node: &str,
    serving: &HashSet<String>,
) -> culvert_common::Workload {
    let local = workload.node == node;
    let class = compiled.class_of.get(&workload.uid).copied().unwrap_or(0);
    if !workload.enrolled || (local && !serving.contains(&workload.uid)) {
        return culvert_common::Workload { identity: 0, class: 0, flags: 0 };
    }
    culvert_common::Workload {
        identity: compiled.number(&workload.identity).unwrap_or(0),
        class,
        flags: flags::ENROLLED | if local { flags::LOCAL } else { 0 },
    }
}

fn add_service(service: &Service, interner: &mut Interner, desired: &mut Desired) {
    let name = format!("{}/{}", service.namespace, service.name);
    for (vip, port) in service.vips.iter().flat_map(|vip| service.ports.iter().map(move |port| (vip, port))) {
        let id = interner.service(&name, port.port, vip.is_ipv4());
        let endpoints = port.endpoints.iter().filter(|e| e.is_ipv4() == vip.is_ipv4());
        let mut backends = 0;
        for endpoint in endpoints {
            desired.backends.insert(BackendKey { service: id, slot: backends }, (*endpoint).into());
            backends += 1;
        }
        let key = ServiceKey { vip: SocketAddr::new(*vip, port.port).into() };
        desired.services.insert(key, culvert_common::Service { id, backends });
    }
}
