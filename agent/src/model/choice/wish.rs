//! What Services and Namespaces write about the choice of an endpoint. A value that nobody knows has no effect, as in Kubernetes,
//! and is told.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Balancing, Choice};
use crate::control::objects::{Namespace, Service, ServiceEntry};

/// On a Service, or on its Namespace for all of its Services.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const ANNOTATIONS: &str = "metadata.annotations";
/// `sessionAffinityConfig.clientIP.timeoutSeconds`: the default and the limits of Kubernetes.
const DEFAULT_TIMEOUT: u32 = 10_800;
const LONGEST_TIMEOUT: u32 = 86_400;

/// A value that has no effect.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Note {
    /// `Kind namespace/name`.
    pub object: String,
    /// The field, such as `spec.trafficDistribution`; an annotation is `metadata.annotations[name]`.
    pub field: String,
    /// What is wrong, what holds instead, and what to write.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.message)
    }
}

/// The wishes of a Service in its Namespace.
pub(super) fn choice(service: &Service, home: Option<&Namespace>) -> Choice {
    let mut reader = Reader::of_service(service);
    let balancing = match reader.local(service) {
        true => Balancing::Local,
        false => reader.distribution(service).unwrap_or_else(|| {
            let (inherited, notes) = inherited(home);
            reader.notes.extend(notes);
            inherited.unwrap_or_default()
        }),
    };
    let affinity = reader.affinity(service);
    Choice { balancing, affinity, notes: reader.notes, ..Choice::default() }
}

/// The wishes of a ServiceEntry in its Namespace: annotations only, as istiod has it.
pub(super) fn of_entry(entry: &ServiceEntry, home: Option<&Namespace>) -> Choice {
    let ServiceEntry { metadata, .. } = entry;
    let object = format!("ServiceEntry {}/{}", metadata.namespace, metadata.name);
    let mut reader = Reader { object, notes: Vec::new() };
    let balancing = reader.annotation(&metadata.annotations).or_else(|| {
        let (inherited, notes) = inherited(home);
        reader.notes.extend(notes);
        inherited
    });
    Choice { balancing: balancing.unwrap_or_default(), notes: reader.notes, ..Choice::default() }
}

/// What the Namespace says for all in it.
fn inherited(home: Option<&Namespace>) -> (Option<Balancing>, Vec<Note>) {
    let Some(home) = home else { return (None, Vec::new()) };
    let mut reader = Reader::of_namespace(home);
    (reader.annotation(&home.metadata.annotations), reader.notes)
}

/// What has no effect in a Service by itself.
pub(crate) fn notes_of_service(service: &Service) -> Vec<Note> {
    choice(service, None).notes
}

/// What has no effect in a Namespace.
pub(crate) fn notes_of_namespace(namespace: &Namespace) -> Vec<Note> {
    let mut reader = Reader::of_namespace(namespace);
    reader.annotation(&namespace.metadata.annotations);
    reader.notes
}

/// Reads the fields of one object.
struct Reader {
    object: String,
    notes: Vec<Note>,
}

impl Reader {
    fn of_service(service: &Service) -> Self {
        let meta = &service.metadata;
        Self { object: format!("Service {}/{}", meta.namespace, meta.name), notes: Vec::new() }
    }

    fn of_namespace(namespace: &Namespace) -> Self {
        Self { object: format!("Namespace {}", namespace.metadata.name), notes: Vec::new() }
    }

    fn note(&mut self, field: impl Into<String>, message: String) {
        self.notes.push(Note { object: self.object.clone(), field: field.into(), message });
    }

    fn local(&mut self, service: &Service) -> bool {
        match service.spec.internal_traffic_policy.as_deref() {
            Some("Local") => return true,
            None | Some("Cluster" | "") => {}
            Some(other) => self.note(
                "spec.internalTrafficPolicy",
                format!("{other:?} is not known and counts as Cluster; write Cluster or Local"),
            ),
        }
        false
    }

    /// The field, else the annotation, as istiod has it; `None`: neither says anything.
    fn distribution(&mut self, service: &Service) -> Option<Balancing> {
        match service.spec.traffic_distribution.as_deref() {
            None | Some("") => {}
            Some("PreferClose" | "PreferSameZone") => return Some(Balancing::SameZone),
            Some("PreferSameNode") => return Some(Balancing::SameNode),
            Some(other) => self.unknown("spec.trafficDistribution".to_owned(), other),
        }
        self.annotation(&service.metadata.annotations)
    }

    /// Case does not count here. One that is not known is a word too: what the Namespace says does not come in its place.
    fn annotation(&mut self, annotations: &BTreeMap<String, String>) -> Option<Balancing> {
        let value = annotations.get(DISTRIBUTION).filter(|value| !value.is_empty())?;
        Some(match value.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Balancing::SameZone,
            "prefersamenode" => Balancing::SameNode,
            "any" => Balancing::Any,
            _ => {
                self.unknown(format!("{ANNOTATIONS}[{DISTRIBUTION}]"), value);
                Balancing::Any
            }
        })
    }

    fn unknown(&mut self, field: String, value: &str) {
        self.note(
            field,
            format!(
                "{value:?} is not known and has no effect; write PreferSameZone, PreferSameNode or PreferClose"
            ),
        );
    }

    fn affinity(&mut self, service: &Service) -> Option<u32> {
        match service.spec.session_affinity.as_deref() {
            None | Some("None" | "") => return None,
            Some("ClientIP") => {}
            Some(other) => {
                let message = format!("{other:?} is not known and counts as None; write None or ClientIP");
                self.note("spec.sessionAffinity", message);
                return None;
            }
        }
        let Some(seconds) = service.spec.session_affinity_config.client_ip.timeout_seconds else {
            return Some(DEFAULT_TIMEOUT);
        };
        let known = u32::try_from(seconds).ok().filter(|seconds| (1..=LONGEST_TIMEOUT).contains(seconds));
        if known.is_none() {
            let message = format!(
                "{seconds} is not from 1 to {LONGEST_TIMEOUT}: {DEFAULT_TIMEOUT} counts instead; write a number in between"
            );
            self.note("spec.sessionAffinityConfig.clientIP.timeoutSeconds", message);
        }
        Some(known.unwrap_or(DEFAULT_TIMEOUT))
    }
}
