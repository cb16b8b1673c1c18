//! The Kubernetes objects, as far as Culvert reads them. Unknown fields are left alone, as the API server's clients do.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

macro_rules! object {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Debug, Default, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
    };
}

mod entries;

pub use entries::{
    EntryEndpoint, EntryLocation, EntryPort, EntrySelector, HostAddress, Resolution, ServiceEntry,
    ServiceEntrySpec, ServiceEntryStatus, WorkloadEntry,
};

object! {
    /// `metadata`.
    Metadata {
        /// The name.
        name: String,
        /// `default` when a namespaced object does not say; empty for kinds outside namespaces.
        #[serde(default)]
        namespace: String,
        /// Unique id given by the API server.
        #[serde(default)]
        uid: String,
        /// Labels.
        #[serde(default, deserialize_with = "or_default")]
        labels: BTreeMap<String, String>,
        /// Annotations.
        #[serde(default, deserialize_with = "or_default")]
        annotations: BTreeMap<String, String>,
        /// RFC 3339.
        #[serde(default)]
        creation_timestamp: Option<String>,
        /// Set while the object is being deleted.
        #[serde(default)]
        deletion_timestamp: Option<String>,
        /// Who made it.
        #[serde(default, deserialize_with = "or_default")]
        owner_references: Vec<OwnerReference>,
    }
}

object! {
    /// One entry of `metadata.ownerReferences`.
    OwnerReference {
        /// `ReplicaSet`, `Job`, …
        #[serde(default)]
        kind: String,
        /// The owner's name, of the same namespace.
        #[serde(default)]
        name: String,
        /// Whether it manages the object; at most one does.
        #[serde(default)]
        controller: Option<bool>,
    }
}

object! {
    /// A Namespace.
    Namespace {
        /// Its labels say whether its pods are enrolled.
        metadata: Metadata,
    }
}

object! {
    /// A ServiceAccount.
    ServiceAccount {
        /// Only its name counts.
        metadata: Metadata,
    }
}

object! {
    /// A Node.
    Node {
        /// Its labels hold its locality.
        metadata: Metadata,
    }
}

object! {
    /// A Pod.
    Pod {
        /// Who it is.
        metadata: Metadata,
        /// Where it runs.
        #[serde(default, deserialize_with = "or_default")]
        spec: PodSpec,
        /// Its addresses and health.
        #[serde(default, deserialize_with = "or_default")]
        status: PodStatus,
    }
}

object! {
    /// `spec` of a Pod.
    PodSpec {
        /// Empty: not scheduled.
        #[serde(default)]
        node_name: String,
        /// Empty: `default`.
        #[serde(default)]
        service_account_name: String,
        /// It shares the node's network namespace.
        #[serde(default)]
        host_network: bool,
        /// For named ports.
        #[serde(default, deserialize_with = "or_default")]
        containers: Vec<Container>,
        /// For named ports of sidecars that restart always.
        #[serde(default, deserialize_with = "or_default")]
        init_containers: Vec<Container>,
    }
}

object! {
    /// A container, for its ports.
    Container {
        /// `Always` makes an init container a sidecar.
        #[serde(default)]
        restart_policy: Option<String>,
        /// Its ports.
        #[serde(default, deserialize_with = "or_default")]
        ports: Vec<ContainerPort>,
    }
}

object! {
    /// A container's port.
    ContainerPort {
        /// What a Service may call it.
        #[serde(default)]
        name: String,
        /// Its number.
        container_port: u16,
        /// `TCP` when unset.
        #[serde(default)]
        protocol: Protocol,
    }
}

object! {
    /// `status` of a Pod.
    PodStatus {
        /// `Succeeded` and `Failed` pods are gone.
        #[serde(default)]
        phase: Phase,
        /// The first address, from old sources.
        #[serde(default, rename = "podIP")]
        pod_ip: Option<String>,
        /// One address a family.
        #[serde(default, rename = "podIPs", deserialize_with = "or_default")]
        pod_ips: Vec<PodIp>,
        /// None at all counts as ready.
        #[serde(default, deserialize_with = "or_default")]
        conditions: Vec<Condition>,
    }
}

object! {
    /// An entry of `status.podIPs`.
    PodIp {
        /// The address.
        ip: String,
    }
}

object! {
    /// A condition.
    Condition {
        /// `Ready` counts.
        r#type: String,
        /// `True`, `False` or `Unknown`.
        status: String,
    }
}

object! {
    /// A Service.
    Service {
        /// Who it is.
        metadata: Metadata,
        /// What it offers.
        #[serde(default, deserialize_with = "or_default")]
        spec: ServiceSpec,
    }
}

object! {
    /// `spec` of a Service.
    ServiceSpec {
        /// ExternalName services are left out.
        #[serde(default)]
        r#type: ServiceType,
        /// The first virtual address, from old sources; `None` is headless.
        #[serde(default, rename = "clusterIP")]
        cluster_ip: Option<String>,
        /// One virtual address a family.
        #[serde(default, rename = "clusterIPs", deserialize_with = "or_default")]
        cluster_ips: Vec<String>,
        /// Which pods serve it; none: EndpointSlices say.
        #[serde(default, deserialize_with = "or_default")]
        selector: BTreeMap<String, String>,
        /// Its ports.
        #[serde(default, deserialize_with = "or_default")]
        ports: Vec<ServicePort>,
        /// Pods that are not ready count too.
        #[serde(default)]
        publish_not_ready_addresses: bool,
        /// `Local`: endpoints of the client's node only. `Cluster` when unset.
        #[serde(default)]
        internal_traffic_policy: Option<String>,
        /// `PreferSameZone` (`PreferClose`) or `PreferSameNode`; unset: no preference.
        #[serde(default)]
        traffic_distribution: Option<String>,
        /// `ClientIP`: a client stays with its endpoint. `None` when unset.
        #[serde(default)]
        session_affinity: Option<String>,
        /// For how long.
        #[serde(default, deserialize_with = "or_default")]
        session_affinity_config: SessionAffinityConfig,
    }
}

object! {
    /// `sessionAffinityConfig` of a Service.
    SessionAffinityConfig {
        /// For `ClientIP`.
        #[serde(default, rename = "clientIP", deserialize_with = "or_default")]
        client_ip: ClientIpConfig,
    }
}

object! {
    /// `sessionAffinityConfig.clientIP` of a Service.
    ClientIpConfig {
        /// Seconds since the client came last, from 1 to 86400; 10800 when unset.
        #[serde(default)]
        timeout_seconds: Option<i64>,
    }
}

object! {
    /// A Service's port.
    ServicePort {
        /// May be empty when it is the only one.
        #[serde(default)]
        name: String,
        /// Its number.
        port: u16,
        /// The pod's port; `port` when unset.
        #[serde(default)]
        target_port: Option<TargetPort>,
        /// `TCP` when unset; only TCP is in the mesh.
        #[serde(default)]
        protocol: Protocol,
    }
}

object! {
    /// An EndpointSlice.
    EndpointSlice {
        /// Label `kubernetes.io/service-name` names the Service.
        metadata: Metadata,
        /// Names are no addresses: FQDN slices are left out.
        address_type: AddressType,
        /// Its endpoints.
        #[serde(default, deserialize_with = "or_default")]
        endpoints: Vec<SliceEndpoint>,
        /// Its ports.
        #[serde(default, deserialize_with = "or_default")]
        ports: Vec<SlicePort>,
    }
}

object! {
    /// An endpoint of a slice.
    SliceEndpoint {
        /// All of them lead to the same place.
        #[serde(default, deserialize_with = "or_default")]
        addresses: Vec<String>,
        /// Unset counts as ready.
        #[serde(default, deserialize_with = "or_default")]
        conditions: SliceConditions,
        /// The node that it is on.
        #[serde(default)]
        node_name: Option<String>,
    }
}

object! {
    /// `conditions` of a slice's endpoint.
    SliceConditions {
        /// Unset counts as ready.
        #[serde(default)]
        ready: Option<bool>,
        /// It answers, whether or not it ends. Unset counts as serving.
        #[serde(default)]
        serving: Option<bool>,
        /// It ends. Unset counts as staying.
        #[serde(default)]
        terminating: Option<bool>,
    }
}

object! {
    /// A port of a slice.
    SlicePort {
        /// Matches the Service port's name.
        #[serde(default)]
        name: Option<String>,
        /// Unset: all ports, which the mesh leaves out.
        #[serde(default)]
        port: Option<u16>,
        /// `TCP` when unset.
        #[serde(default)]
        protocol: Protocol,
    }
}

object! {
    /// A Gateway of the Gateway API: a waypoint, when a listener of it speaks HBONE.
    Gateway {
        /// Label `istio.io/waypoint-for` says for what traffic.
        metadata: Metadata,
        /// Its listeners.
        #[serde(default, deserialize_with = "or_default")]
        spec: GatewaySpec,
        /// Its addresses, once it has any.
        #[serde(default, deserialize_with = "or_default")]
        status: GatewayStatus,
    }
}

object! {
    /// A GatewayClass of the Gateway API.
    GatewayClass {
        /// Label `istio.io/waypoint-for` is for its Gateways that have none.
        metadata: Metadata,
    }
}

object! {
    /// `spec` of a Gateway.
    GatewaySpec {
        /// `istio-waypoint`.
        #[serde(default)]
        gateway_class_name: String,
        /// Its listeners.
        #[serde(default, deserialize_with = "or_default")]
        listeners: Vec<Listener>,
    }
}

object! {
    /// A listener of a Gateway.
    Listener {
        /// Its port.
        port: u16,
        /// `HBONE` is a waypoint's.
        #[serde(default)]
        protocol: String,
        /// Who may attach to it.
        #[serde(default, deserialize_with = "or_default")]
        allowed_routes: AllowedRoutes,
    }
}

object! {
    /// `allowedRoutes` of a listener.
    AllowedRoutes {
        /// From which namespaces.
        #[serde(default, deserialize_with = "or_default")]
        namespaces: RouteNamespaces,
    }
}

object! {
    /// `allowedRoutes.namespaces` of a listener.
    RouteNamespaces {
        /// `Same` when unset.
        #[serde(default)]
        from: Option<FromNamespaces>,
        /// With `Selector`: the labels of the namespaces.
        #[serde(default)]
        selector: Option<LabelSelector>,
    }
}

/// Which namespaces may attach to a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[expect(missing_docs, reason = "the values of the Gateway API")]
pub enum FromNamespaces {
    All,
    #[default]
    Same,
    Selector,
    None,
}

object! {
    /// A label selector.
    LabelSelector {
        /// All of them must be there.
        #[serde(default, deserialize_with = "or_default")]
        match_labels: BTreeMap<String, String>,
        /// And all of these must hold.
        #[serde(default, deserialize_with = "or_default")]
        match_expressions: Vec<LabelRequirement>,
    }
}

object! {
    /// An entry of `matchExpressions`.
    LabelRequirement {
        /// The label.
        key: String,
        /// What must be so.
        operator: LabelOperator,
        /// For `In` and `NotIn`.
        #[serde(default, deserialize_with = "or_default")]
        values: Vec<String>,
    }
}

/// The operators of a [`LabelRequirement`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[expect(missing_docs, reason = "the operators of Kubernetes")]
pub enum LabelOperator {
    #[default]
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// Whether `labels` fit. A selector without requirements fits everything.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |requirement: &LabelRequirement| {
            let value = labels.get(&requirement.key);
            let among = value.is_some_and(|value| requirement.values.contains(value));
            match requirement.operator {
                LabelOperator::In => among,
                LabelOperator::NotIn => !among,
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(holds)
    }
}

object! {
    /// `status` of a Gateway.
    GatewayStatus {
        /// Where it is reached; none: it is not ready.
        #[serde(default, deserialize_with = "or_default")]
        addresses: Vec<GatewayAddress>,
    }
}

object! {
    /// An entry of `status.addresses`.
    GatewayAddress {
        /// An IP address, or the host name of a Service.
        value: String,
    }
}

/// A port's protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the protocols of Kubernetes")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// A Pod's phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[expect(missing_docs, reason = "the phases of Kubernetes")]
pub enum Phase {
    Pending,
    #[default]
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// A Service's type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[expect(missing_docs, reason = "the types of Kubernetes")]
pub enum ServiceType {
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    ExternalName,
    LoadBalancer,
    NodePort,
}

/// What the addresses of an EndpointSlice are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[expect(missing_docs, reason = "the address types of Kubernetes")]
pub enum AddressType {
    #[default]
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// The pod's port behind a Service's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the container port's name.
    Name(String),
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = TargetPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or a port's name")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<TargetPort, E> {
                u16::try_from(number)
                    .map(TargetPort::Number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<TargetPort, E> {
                u64::try_from(number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
                    .and_then(|number| self.visit_u64(number))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<TargetPort, E> {
                Ok(name.parse().map_or_else(|_| TargetPort::Name(name.to_owned()), TargetPort::Number))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// `null` and a missing field are the same in Kubernetes.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}
