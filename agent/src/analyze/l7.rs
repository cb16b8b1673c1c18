//! Objects that only something with L7 in the path reads: routes and Istio's traffic rules, as far as the checks need them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::control::manifests::Document;
use crate::control::objects::or_default;

macro_rules! spec {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct $name {
            $($(#[$field_meta])* #[serde(default, deserialize_with = "or_default")] pub(super) $field: $type,)*
        }
    };
}

spec! {
    /// HTTPRoute, GRPCRoute, TCPRoute, TLSRoute.
    Route { parent_refs: Vec<Reference>, rules: Vec<RouteRule>, }
}

spec! { RouteRule { backend_refs: Vec<Reference>, } }

spec! {
    /// A parent or a backend of a route.
    Reference { group: Option<String>, kind: Option<String>, name: String, namespace: Option<String>, }
}

spec! { VirtualService { hosts: Vec<String>, gateways: Vec<String>, export_to: Vec<String>, http: Vec<Way>, tcp: Vec<Way>, tls: Vec<Way>, } }

spec! { Way { route: Vec<Weighted>, } }

spec! { Weighted { destination: Destination, } }

spec! { Destination { host: String, } }

spec! { DestinationRule { host: String, subsets: Vec<Subset>, } }

spec! { Subset { name: String, labels: BTreeMap<String, String>, } }

spec! {
    /// What is attached to something, or selects workloads: RequestAuthentication, Telemetry, EnvoyFilter, WasmPlugin.
    Attached { selector: Option<Selector>, workload_selector: Option<Selector>, }
}

spec! { Selector { match_labels: BTreeMap<String, String>, labels: BTreeMap<String, String>, } }

impl Reference {
    /// Whether a Service is meant; `default`: what a reference without a kind means.
    pub(super) fn is_service(&self, default: &str) -> bool {
        let kind = self.kind.as_deref().unwrap_or(default);
        kind == "Service" && matches!(self.group.as_deref(), None | Some("" | "core"))
    }
}

/// The kinds whose objects are in namespaces.
const GROUPS: &[&str] = &[
    "extensions.istio.io",
    "gateway.networking.k8s.io",
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
];

/// The API group of an object.
pub(super) fn group(document: &Document) -> &str {
    document.api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Whether an object is of Istio or the Gateway API; apart from GatewayClass they live in namespaces.
pub(super) fn is_namespaced(document: &Document) -> bool {
    GROUPS.contains(&group(document)) && document.kind != "GatewayClass"
}

/// `spec` of an object of this group and one of these kinds.
pub(super) fn spec_of<T: DeserializeOwned>(document: &Document, of: &str, kinds: &[&str]) -> Option<T> {
    #[derive(Deserialize)]
    struct Object<T> {
        spec: T,
    }
    let is_it = group(document) == of && kinds.contains(&document.kind.as_str());
    is_it.then(|| document.read_as::<Object<T>>())?.map(|object| object.spec)
}
