//! A waypoint's Gateway, as istioctl makes it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::control::Object;
use crate::control::manifests::{self, edit};
use crate::control::objects::Gateway;
use crate::model::waypoint::FOR;

/// The class of Gateways that are waypoints.
pub const CLASS: &str = "istio-waypoint";
/// Label: the revision of the control plane.
pub const REVISION: &str = "istio.io/rev";
pub(super) const API_VERSION: &str = "gateway.networking.k8s.io/v1";
pub(super) const GROUP: &str = "gateway.networking.k8s.io";
/// Where a waypoint takes HBONE in.
pub(super) const PORT: u16 = 15008;

/// What traffic a waypoint takes (label `istio.io/waypoint-for`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the values of the label")]
pub enum TrafficType {
    All,
    None,
    Service,
    Workload,
}

impl TrafficType {
    /// As in the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::None => "none",
            Self::Service => "service",
            Self::Workload => "workload",
        }
    }
}

impl fmt::Display for TrafficType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TrafficType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::All, Self::None, Self::Service, Self::Workload];
        all.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            format!("invalid traffic type: {text}. Valid options are: [all none service workload]")
        })
    }
}

/// A waypoint to be made.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its namespace; `None`: left out, for `kubectl` to fill in.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// What traffic it takes; `None`: the label is left out, which means services.
    pub traffic: Option<TrafficType>,
    /// The revision that it belongs to.
    pub revision: Option<String>,
}

impl Wanted {
    /// The labels that it asks for.
    pub(super) fn labels(&self) -> Vec<(&'static str, &str)> {
        let traffic = self.traffic.map(|traffic| (FOR, traffic.as_str()));
        let revision = self.revision.as_deref().map(|revision| (REVISION, revision));
        traffic.into_iter().chain(revision).collect()
    }

    /// The manifest, as `istioctl waypoint generate` prints it: keys in alphabetical order.
    pub fn manifest(&self) -> String {
        let mut metadata = json!({"name": self.name});
        if let Some(namespace) = &self.namespace {
            metadata["namespace"] = json!(namespace);
        }
        let labels: Value =
            self.labels().into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
        if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
            metadata["labels"] = labels;
        }
        let gateway = json!({
            "apiVersion": API_VERSION,
            "kind": "Gateway",
            "metadata": metadata,
            "spec": {
                "gatewayClassName": CLASS,
                "listeners": [{"name": "mesh", "port": PORT, "protocol": "HBONE"}],
            },
        });
        edit::block(&gateway, 0)
    }
}

impl Wanted {
    /// What agents will read.
    pub(super) fn object(&self, namespace: &str) -> Option<Gateway> {
        let wanted = Self { namespace: Some(namespace.to_owned()), ..self.clone() };
        let read = manifests::read_bytes(Path::new("generated.yaml"), wanted.manifest().as_bytes()).ok()?;
        read.valid.into_iter().find_map(|document| match document.object {
            Some(Object::Gateway(gateway)) => Some(gateway.as_ref().clone()),
            _ => None,
        })
    }
}
