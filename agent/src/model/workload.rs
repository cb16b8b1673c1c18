//! Pods, as the mesh sees them; and what else can be a workload.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::owner::owner;
use crate::control::Kind;
use crate::control::objects::{ContainerPort, Metadata, Namespace, Phase, Pod, Protocol};
use crate::identity::SpiffeId;

/// `ambient` and `none` are its values.
pub(crate) const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Its value is `enabled` on pods that istio-cni redirects.
const REDIRECTION_ANNOTATION: &str = "ambient.istio.io/redirection";
const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";
pub(crate) const SIDECAR_ANNOTATION: &str = "sidecar.istio.io/status";
/// Namespaces whose pods are never enrolled, as istio-cni has it by default.
const EXCLUDED_NAMESPACES: &[&str] = &["kube-system"];

/// A pod with an address, a WorkloadEntry, or an endpoint of a ServiceEntry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// `Pod`, `WorkloadEntry` or `ServiceEntry`.
    pub kind: Kind,
    /// The pod's uid, or `namespace/name` when the source gives none; for others, as istiod has it
    /// (`cluster/networking.istio.io/WorkloadEntry/namespace/name`).
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// `default` when the pod names none.
    pub service_account: String,
    /// Empty: not scheduled.
    pub node: String,
    /// Of a pod, at most one of each family, in the order of `status.podIPs`; of others none or more.
    pub addresses: Vec<IpAddr>,
    /// What an entry has in its field `address`; empty for pods.
    pub location: String,
    /// Why an entry's addresses are not all that could be known; empty: they are.
    pub trouble: String,
    /// Its share of a service's connections, beside the others; 1 unless its object says more.
    pub weight: u32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Label `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, else the name.
    pub app: String,
    /// `deployment`, `cronjob`, `job` or `pod`, and its name: what the pod is a part of.
    pub owner: (&'static str, String),
    /// Label `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, else `latest`.
    pub version: String,
    /// It shares the node's network namespace: its address is the node's.
    pub host_network: bool,
    /// It answers, and is not about to end.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// It is being deleted, and still answers.
    pub draining: bool,
    /// `region/zone/subzone` of an entry; empty: that of its node.
    pub locality: String,
    /// `metadata.creationTimestamp` (RFC 3339, UTC: text sorts as time does); empty when the source gives none.
    pub created: String,
    /// Its object says that somebody redirects it already (`ambient.istio.io/redirection: enabled`).
    pub redirected: bool,
    /// It is (to be) in the mesh: it speaks HBONE.
    pub enrolled: bool,
    /// It speaks HBONE by itself (label `networking.istio.io/tunnel: http`): reached by tunnels, never captured, and it judges
    /// its callers itself.
    pub native_tunnel: bool,
    /// Where connections to its own addresses go first: its place in [`super::Mesh::waypoints`].
    pub waypoint: Option<usize>,
    /// The labels that decide on its waypoint, where those are not `labels`.
    pub(super) waypoint_labels: Option<BTreeMap<String, String>>,
    /// The waypoints (`namespace/name`) that may have it in any case, with `--auto-allow-waypoint`: its own, and those of its
    /// services.
    pub behind: Vec<Arc<str>>,
    /// Who it is when it is enrolled.
    pub identity: SpiffeId,
    /// The services that it backs, as `namespace/hostname`.
    pub services: Vec<String>,
    /// TCP ports by their names.
    pub(super) ports: BTreeMap<String, u16>,
}

impl Workload {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The TCP port with this name.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.ports.get(name).copied()
    }

    /// Whether its node's agent is to lead its connections through the mesh.
    pub fn is_captured(&self) -> bool {
        self.enrolled && !self.native_tunnel && self.kind == Kind::Pod
    }

    /// `None` for pods without an address and those that are over.
    pub(super) fn new(pod: &Pod, namespace: Option<&Namespace>, identity: SpiffeId) -> Option<Self> {
        let meta = &pod.metadata;
        let addresses = addresses(pod);
        if addresses.is_empty() || matches!(pod.status.phase, Phase::Succeeded | Phase::Failed) {
            return None;
        }
        let uid =
            if meta.uid.is_empty() { format!("{}/{}", meta.namespace, meta.name) } else { meta.uid.clone() };
        let (app, version) = canonical(meta);
        let terminating = meta.deletion_timestamp.is_some();
        Some(Self {
            kind: Kind::Pod,
            uid,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            service_account: service_account(pod).to_owned(),
            node: pod.spec.node_name.clone(),
            addresses,
            location: String::new(),
            trouble: String::new(),
            weight: 1,
            owner: owner(pod),
            app,
            version,
            labels: meta.labels.clone(),
            host_network: pod.spec.host_network,
            ready: ready(pod) && !terminating,
            terminating,
            draining: ready(pod) && terminating,
            locality: String::new(),
            created: meta.creation_timestamp.clone().unwrap_or_default(),
            redirected: is_redirected(meta),
            enrolled: enrolled(pod, namespace) || native_tunnel(pod),
            native_tunnel: native_tunnel(pod),
            waypoint: None,
            waypoint_labels: None,
            behind: Vec::new(),
            identity,
            services: Vec::new(),
            ports: named_ports(pod),
        })
    }
}

pub(crate) fn service_account(pod: &Pod) -> &str {
    let name = pod.spec.service_account_name.as_str();
    if name.is_empty() { "default" } else { name }
}

/// Whether the pod is to be in the mesh.
///
/// istio-cni's default: the pod's label, else the namespace's (`cni/pkg/util/podutil.go`).
pub(crate) fn enrolled(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    let never = pod.spec.host_network
        || pod.metadata.annotations.contains_key(SIDECAR_ANNOTATION)
        || EXCLUDED_NAMESPACES.contains(&pod.metadata.namespace.as_str());
    let mode = |labels: &BTreeMap<String, String>| labels.get(MODE_LABEL).cloned();
    let ambient = match mode(&pod.metadata.labels).as_deref() {
        Some("ambient") => true,
        Some("none") => false,
        _ => namespace.and_then(|n| mode(&n.metadata.labels)).as_deref() == Some("ambient"),
    };
    ambient && !never
}

/// istiod's `tunnel_protocol` and `native_tunnel`.
fn native_tunnel(pod: &Pod) -> bool {
    !pod.spec.host_network && has_tunnel_label(&pod.metadata)
}

/// Whether the object says that it speaks HBONE by itself.
pub(crate) fn has_tunnel_label(meta: &Metadata) -> bool {
    meta.labels.get(TUNNEL_LABEL).is_some_and(|value| value == "http")
}

/// Whether the object says that somebody leads its connections through the mesh.
pub(crate) fn is_redirected(meta: &Metadata) -> bool {
    meta.annotations.get(REDIRECTION_ANNOTATION).is_some_and(|value| value == "enabled")
}

/// The app that an object is a part of, and its version (istiod's `CanonicalService`).
pub(super) fn canonical(meta: &Metadata) -> (String, String) {
    let label = |keys: [&str; 3], other: &str| {
        keys.iter().find_map(|key| meta.labels.get(*key)).map_or(other, String::as_str).to_owned()
    };
    (
        label(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], &meta.name),
        label(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"], "latest"),
    )
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = &pod.status;
    let listed = status.pod_ips.iter().map(|ip| ip.ip.as_str());
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in listed.chain(status.pod_ip.as_deref()).filter_map(|text| text.parse::<IpAddr>().ok()) {
        if !found.iter().any(|known| known.is_ipv4() == ip.is_ipv4()) {
            found.push(ip);
        }
    }
    found
}

fn ready(pod: &Pod) -> bool {
    let conditions = &pod.status.conditions;
    conditions.is_empty() || conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True")
}

fn named_ports(pod: &Pod) -> BTreeMap<String, u16> {
    let mut named = BTreeMap::new();
    for port in tcp_ports(pod).filter(|p| !p.name.is_empty()) {
        named.entry(port.name.clone()).or_insert(port.container_port);
    }
    named
}

/// The TCP ports that the pod's containers declare.
pub(crate) fn tcp_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
    ports.filter(|p| p.protocol == Protocol::Tcp)
}
