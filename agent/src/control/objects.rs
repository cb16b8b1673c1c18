//! The Kubernetes and Istio objects that Culvert reads, with the fields that it uses. Unknown fields are ignored, as the
//! API server would have pruned or validated them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Name.
    pub name: String,
    /// Namespace; `default` for namespaced objects that name none.
    pub namespace: String,
    /// UID.
    pub uid: String,
    /// Labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: Labels,
    /// Annotations.
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: Labels,
    /// RFC 3339; the older policy wins where Istio says so.
    pub creation_timestamp: Option<String>,
    /// Set while the object is being deleted.
    pub deletion_timestamp: Option<String>,
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectKey {
    /// Kind.
    pub kind: &'static str,
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// An object with a `metadata` and a `spec`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Resource<S, T = Empty>
where
    S: Default,
    T: Default,
{
    /// Metadata.
    #[serde(default)]
    pub metadata: Meta,
    /// Spec; `spec:` with nothing is the empty spec.
    #[serde(
        default = "Default::default",
        deserialize_with = "null_is_default",
        bound(deserialize = "S: Deserialize<'de> + Default")
    )]
    pub spec: S,
    /// Status.
    #[serde(
        default = "Default::default",
        deserialize_with = "null_is_default",
        bound(deserialize = "T: Deserialize<'de> + Default")
    )]
    pub status: T,
}

/// Every kind that Culvert reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the Kubernetes or Istio kind of its name")]
pub enum Object {
    AuthorizationPolicy(Resource<AuthorizationPolicySpec>),
    EndpointSlice(EndpointSlice),
    Namespace(Resource<Empty>),
    Node(Resource<Empty>),
    PeerAuthentication(Resource<PeerAuthenticationSpec>),
    Pod(Resource<PodSpec, PodStatus>),
    Service(Resource<ServiceSpec>),
    ServiceAccount(Resource<Empty>),
}

impl Object {
    /// Its metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::AuthorizationPolicy(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::Namespace(o) | Self::Node(o) | Self::ServiceAccount(o) => &o.metadata,
            Self::PeerAuthentication(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
        }
    }

    pub(super) fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::AuthorizationPolicy(o) => &mut o.metadata,
            Self::EndpointSlice(o) => &mut o.metadata,
            Self::Namespace(o) | Self::Node(o) | Self::ServiceAccount(o) => &mut o.metadata,
            Self::PeerAuthentication(o) => &mut o.metadata,
            Self::Pod(o) => &mut o.metadata,
            Self::Service(o) => &mut o.metadata,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::Namespace(_) => "Namespace",
            Self::Node(_) => "Node",
            Self::PeerAuthentication(_) => "PeerAuthentication",
            Self::Pod(_) => "Pod",
            Self::Service(_) => "Service",
            Self::ServiceAccount(_) => "ServiceAccount",
        }
    }

    /// Its key.
    pub fn key(&self) -> ObjectKey {
        let meta = self.meta();
        ObjectKey { kind: self.kind(), namespace: meta.namespace.clone(), name: meta.name.clone() }
    }
}

/// A spec that Culvert does not look into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Empty {}

/// Pod spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct PodSpec {
    pub node_name: String,
    pub service_account_name: String,
    pub host_network: bool,
    pub hostname: String,
    pub subdomain: String,
    #[serde(deserialize_with = "null_is_default")]
    pub containers: Vec<Container>,
}

/// A container, for its named ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct Container {
    pub name: String,
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<ContainerPort>,
}

/// A container port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct ContainerPort {
    #[serde(default)]
    pub name: String,
    pub container_port: u16,
    #[serde(default)]
    pub protocol: Protocol,
}

/// L4 protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the protocols' names")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// Pod status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct PodStatus {
    pub phase: String,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs", deserialize_with = "null_is_default")]
    pub pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "null_is_default")]
    pub conditions: Vec<Condition>,
}

/// One of `podIPs`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: IpAddr,
}

/// A status condition.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Condition {
    /// `Ready` is the one that counts.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

/// Service spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_default")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub selector: Labels,
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<ServicePort>,
    pub publish_not_ready_addresses: bool,
}

/// A service port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct ServicePort {
    #[serde(default)]
    pub name: String,
    pub port: u16,
    #[serde(default)]
    pub target_port: Option<PortRef>,
    #[serde(default)]
    pub protocol: Protocol,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// A number.
    Number(u16),
    /// The name of a container port.
    Name(String),
}

/// discovery.k8s.io/v1.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct EndpointSlice {
    #[serde(default)]
    pub metadata: Meta,
    #[serde(default)]
    pub address_type: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub endpoints: Vec<SliceEndpoint>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<SlicePort>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct SliceEndpoint {
    pub addresses: Vec<String>,
    #[serde(default)]
    pub conditions: SliceConditions,
}

/// Conditions of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct SliceConditions {
    /// Unset means ready.
    #[serde(default)]
    pub ready: Option<bool>,
}

/// A port of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the Kubernetes fields of these names")]
pub struct SlicePort {
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    pub port: Option<u16>,
    pub protocol: Protocol,
}

/// `selector` of Istio policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// All must match. Empty selects every workload of the scope.
    #[serde(deserialize_with = "null_is_default")]
    pub match_labels: Labels,
}

/// PeerAuthentication spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Istio fields of these names")]
pub struct PeerAuthenticationSpec {
    pub selector: Option<WorkloadSelector>,
    #[serde(deserialize_with = "null_is_default")]
    pub mtls: Mtls,
    #[serde(deserialize_with = "null_is_default")]
    pub port_level_mtls: BTreeMap<u16, Mtls>,
}

/// An mTLS setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct Mtls {
    /// Mode.
    #[serde(default)]
    pub mode: MtlsMode,
}

/// PeerAuthentication.MutualTLS.Mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the Istio values of these names")]
pub enum MtlsMode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// AuthorizationPolicy spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Istio fields of these names")]
pub struct AuthorizationPolicySpec {
    pub selector: Option<WorkloadSelector>,
    pub target_ref: Option<TargetRef>,
    #[serde(deserialize_with = "null_is_default")]
    pub target_refs: Vec<TargetRef>,
    pub action: Action,
    #[serde(deserialize_with = "null_is_default")]
    pub rules: Vec<Rule>,
}

/// What a policy attaches to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the Istio fields of these names")]
pub struct TargetRef {
    pub group: String,
    pub kind: String,
    pub name: String,
}

/// AuthorizationPolicy.Action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the Istio values of these names")]
pub enum Action {
    #[default]
    Allow,
    Audit,
    Custom,
    Deny,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the Istio fields of these names")]
pub struct Rule {
    #[serde(deserialize_with = "null_is_default")]
    pub from: Vec<From>,
    #[serde(deserialize_with = "null_is_default")]
    pub to: Vec<To>,
    #[serde(deserialize_with = "null_is_default")]
    pub when: Vec<When>,
}

/// `from[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct From {
    /// Source.
    #[serde(default)]
    pub source: Source,
}

/// `to[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct To {
    /// Operation.
    #[serde(default)]
    pub operation: Operation,
}

/// `from[].source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Istio fields of these names")]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Istio fields of these names")]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// `when[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the Istio fields of these names")]
pub struct When {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

/// Kubernetes writes `field:` with nothing for an empty value.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
