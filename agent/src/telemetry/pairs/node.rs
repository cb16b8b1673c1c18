//! What an end of a pair is called.

use clap::ValueEnum;
use serde::Serialize;

use crate::telemetry::flows::End;

/// What counts as one.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The pods of a Deployment, CronJob or Job; a pod that is part of none.
    Workload,
    /// The pods with one identity.
    ServiceAccount,
    /// The pods of a namespace.
    Namespace,
    /// A pod.
    Pod,
}

impl By {
    /// As `--by` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::ServiceAccount => "service-account",
            Self::Namespace => "namespace",
            Self::Pod => "pod",
        }
    }
}

/// What an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What [`By`] says.
    Workload,
    /// A service that a waypoint was asked for.
    Service,
    /// All addresses of no workload that connect.
    Clients,
    /// All addresses of no workload that are connected to.
    Servers,
}

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Empty where there is none.
    pub namespace: String,
    /// Within the namespace; empty: all of it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

impl Node {
    /// Who this is: `identity` as far as it is known, `service` when that was asked for, `outside` when it is no workload.
    pub(super) fn of(end: &End, identity: &str, service: Option<&str>, by: By, outside: Kind) -> Self {
        let (full, kind) = match (end.workload.as_str(), service) {
            ("", Some(service)) if !service.is_empty() => (service, Kind::Service),
            ("", _) => ("", outside),
            (pod, _) if by == By::Pod || end.owner.is_empty() => (pod, Kind::Workload),
            _ => (end.owner.as_str(), Kind::Workload),
        };
        let (namespace, name) = full.split_once('/').unwrap_or(("", full));
        let (namespace, name) = match (by, kind) {
            (By::Namespace, Kind::Workload) => (namespace, ""),
            (By::ServiceAccount, Kind::Workload) => account(identity).unwrap_or((namespace, name)),
            _ => (namespace, name),
        };
        Self { namespace: namespace.to_owned(), name: name.to_owned(), kind }
    }

    /// For tables and documents: `namespace/name`, `namespace/`, or `outside`.
    pub fn full(&self) -> String {
        match self.kind {
            Kind::Clients | Kind::Servers => "outside".to_owned(),
            Kind::Workload | Kind::Service if self.namespace.is_empty() => self.name.clone(),
            Kind::Workload | Kind::Service => format!("{}/{}", self.namespace, self.name),
        }
    }
}

/// Namespace and name of the service account in a SPIFFE id.
fn account(identity: &str) -> Option<(&str, &str)> {
    let (_, rest) = identity.split_once("/ns/")?;
    rest.split_once("/sa/")
}
