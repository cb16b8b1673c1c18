//! The mesh for readers: lookups by address, and the rows that the CLI shows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use culvert_common::{Decision, Reason};
use serde::Serialize;

use super::{Mesh, Service, Waypoint, Workload};
use crate::control::Kind;
use crate::identity::SpiffeId;
use crate::policy::{Action, Compiled, Finding, Scope};

/// One consistent picture: the mesh and its compiled policies. Cheap to share, never changed.
pub struct Snapshot {
    /// The resolved objects.
    pub mesh: Arc<Mesh>,
    /// The compiled policies.
    pub compiled: Arc<Compiled>,
    names: OnceLock<Names>,
}

/// What the numbers stand for; made when somebody asks.
struct Names {
    identities: HashMap<u32, String>,
    policies: HashMap<u32, String>,
}

impl Snapshot {
    /// A mesh and what was compiled from it.
    pub fn new(mesh: Arc<Mesh>, compiled: Arc<Compiled>) -> Self {
        Self { mesh, compiled, names: OnceLock::new() }
    }

    /// The pod with this address. Pods in the node's network namespace are not found.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Workload> {
        self.mesh.addresses.pods.get(&ip).and_then(|n| self.mesh.workloads.get(*n))
    }

    /// The service with this virtual address.
    pub fn service_by_vip(&self, vip: IpAddr) -> Option<&Service> {
        self.mesh.addresses.vips.get(&vip).and_then(|n| self.mesh.services.get(*n))
    }

    /// The policy class of the enrolled pod with this address.
    pub fn class_at(&self, ip: IpAddr) -> Option<u32> {
        self.mesh.addresses.pods.get(&ip).and_then(|n| self.compiled.class_of(*n, ip))
    }

    fn names(&self) -> &Names {
        self.names.get_or_init(|| Names {
            identities: self.compiled.identities.iter().map(|(id, n)| (*n, id.to_string())).collect(),
            policies: self.compiled.policy_names.iter().map(|(name, n)| (*n, name.clone())).collect(),
        })
    }

    /// The SPIFFE id behind an identity's number.
    pub fn identity_text(&self, identity: u32) -> Option<&str> {
        self.names().identities.get(&identity).map(String::as_str)
    }

    /// `namespace/name` of the policy with this index.
    pub fn policy_name(&self, index: u32) -> Option<&str> {
        self.names().policies.get(&index).map(String::as_str)
    }

    /// May `peer` (`None`: it proved no identity), connecting from `source`, have this port of an enrolled pod?
    pub fn decide(&self, destination: SocketAddr, source: IpAddr, peer: Option<&SpiffeId>) -> Decision {
        match self.class_at(destination.ip()) {
            Some(class) => self.compiled.decide(class, peer, source, destination.port()),
            None => Decision::refuse(Reason::UnknownDestination),
        }
    }

    /// Whether the pod that proved `identity` (a number) from this address has it no longer: it is gone, or the address is
    /// another one's. A pod that has left the mesh is still there.
    pub fn client_is_gone(&self, address: IpAddr, identity: u32) -> bool {
        let Some(proven) = self.identity_text(identity) else { return false };
        self.workload_by_ip(address).is_none_or(|owner| owner.identity.to_string() != proven)
    }

    /// A row for every workload.
    pub fn workload_rows(&self) -> Vec<WorkloadRow> {
        let row = |w: &Workload| WorkloadRow::new(w, self.waypoint_shown(w.waypoint, &w.namespace));
        self.mesh.workloads.iter().map(row).collect()
    }

    /// A row for every service.
    pub fn service_rows(&self) -> Vec<ServiceRow> {
        let row = |s: &Service| {
            let note = self.waypoint_note(s);
            ServiceRow::new(s, self.waypoint_shown(s.waypoint, &s.namespace), note)
        };
        self.mesh.services.iter().map(row).collect()
    }

    /// What is notable about a service's waypoint: its canary, or why there is none; mostly empty.
    pub fn waypoint_note(&self, service: &Service) -> String {
        let canary = service.canary.and_then(|c| Some((self.waypoint(Some(c.waypoint))?, c.weight)));
        match (&service.unbound, canary) {
            (Some(reason), _) => reason.to_string(),
            (None, Some((canary, weight))) => {
                format!("{weight} % of connections go to the canary {}", canary.full_name())
            }
            (None, None) => String::new(),
        }
    }

    /// The waypoint at a place of [`Mesh::waypoints`].
    pub fn waypoint(&self, place: Option<usize>) -> Option<&Waypoint> {
        self.mesh.waypoints.get(place?)
    }

    /// As istioctl shows it, with its namespace when that is another one than the object's.
    fn waypoint_shown(&self, place: Option<usize>, namespace: &str) -> String {
        match self.waypoint(place) {
            None => "None".to_owned(),
            Some(waypoint) if waypoint.namespace == namespace => waypoint.name.clone(),
            Some(waypoint) => waypoint.full_name(),
        }
    }

    /// A row for every AuthorizationPolicy.
    pub fn policy_rows(&self) -> Vec<PolicyRow> {
        let root = &self.mesh.settings.root_namespace;
        let mut findings: HashMap<&str, Vec<Finding>> = HashMap::new();
        for finding in &self.compiled.findings {
            findings.entry(&finding.object).or_default().push(finding.clone());
        }
        let row = |policy: &Arc<crate::policy::AuthorizationPolicy>| PolicyRow {
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            action: policy.action,
            scope: policy.scope(root),
            findings: findings
                .remove(format!("AuthorizationPolicy {}", policy.full_name()).as_str())
                .unwrap_or_default(),
        };
        self.mesh.policies.iter().map(row).collect()
    }
}

/// `culvert workloads`.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadRow {
    /// Its namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// `Pod`, `WorkloadEntry` or `ServiceEntry`.
    pub kind: Kind,
    /// Its addresses; the name that DNS is asked for, where it has none yet.
    pub addresses: Vec<String>,
    /// Its node; empty when it has none in this cluster.
    pub node: String,
    /// The waypoint of its own addresses (`namespace/name` when in another namespace), or `None`.
    pub waypoint: String,
    /// `HBONE` when it is enrolled, else `TCP`.
    pub protocol: &'static str,
    /// In the words of Istio's annotation `ambient.istio.io/redirection`: `disabled` when it is not to be in the mesh; else
    /// `enabled` or `pending` on this node, and empty on others, whose agents know.
    pub redirection: &'static str,
    /// Its service account.
    pub service_account: String,
    /// Its SPIFFE id; empty when it is not enrolled.
    pub identity: String,
}

impl WorkloadRow {
    fn new(workload: &Workload, waypoint: String) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            kind: workload.kind,
            addresses: shown(workload),
            node: workload.node.clone(),
            waypoint,
            protocol: if workload.enrolled { "HBONE" } else { "TCP" },
            redirection: if workload.is_captured() { "" } else { "disabled" },
            service_account: workload.service_account.clone(),
            identity: if workload.enrolled { workload.identity.to_string() } else { String::new() },
        }
    }
}

fn shown(workload: &Workload) -> Vec<String> {
    match workload.addresses.is_empty() && !workload.location.is_empty() {
        true => vec![workload.location.clone()],
        false => workload.addresses.iter().map(ToString::to_string).collect(),
    }
}

/// `culvert services`.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Its virtual addresses.
    pub vips: Vec<IpAddr>,
    /// The waypoint of its virtual addresses (`namespace/name` when in another namespace), or `None`.
    pub waypoint: String,
    /// Those that serve, of those that could: `2/2`.
    pub endpoints: String,
    /// The name that it is known by.
    pub hostname: String,
    /// `Service` or `ServiceEntry`.
    pub kind: Kind,
    /// How endpoints are chosen: `Any`, `PreferSameZone`, `PreferSameNode` or `Local`.
    pub load_balancing: &'static str,
    /// How many of the endpoints this node's pods use, and why: `1/3 same zone`; `all`.
    pub preferred: String,
    /// Which ones; none where nothing tells them apart.
    pub preferred_endpoints: Vec<SocketAddr>,
    /// `None`, or `ClientIP` and for how long: `ClientIP 10800s`.
    pub affinity: String,
    /// What of it is not as it was meant to be, values that have no effect, and its waypoint's canary.
    pub notes: Vec<String>,
}

impl ServiceRow {
    fn new(service: &Service, waypoint: String, of_waypoint: String) -> Self {
        let of_choice = service.choice.notes.iter().map(ToString::to_string);
        let of_waypoint = Some(of_waypoint).filter(|note| !note.is_empty());
        let notes = service.notes.iter().cloned().chain(of_choice).chain(of_waypoint);
        Self {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            vips: service.vips.clone(),
            waypoint,
            endpoints: format!("{}/{}", service.serving, service.backing),
            hostname: service.hostname.clone(),
            kind: service.kind,
            load_balancing: service.choice.balancing.as_str(),
            preferred: service.preference(),
            preferred_endpoints: service.preferred_endpoints(),
            affinity: service
                .choice
                .affinity
                .map_or_else(|| "None".to_owned(), |seconds| format!("ClientIP {seconds}s")),
            notes: notes.collect(),
        }
    }
}

/// `culvert policies`.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Where.
    pub scope: Scope,
    /// What of it is not enforced as written.
    pub findings: Vec<Finding>,
}
