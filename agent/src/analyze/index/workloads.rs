//! The pods of the input, those that its Deployments and the like would make, and its WorkloadEntries.

use std::collections::{BTreeMap, HashMap};

use super::{Item, Labelled, Origin};
use crate::control::objects::{Namespace, Pod};
use crate::model::workload::{self, MODE_LABEL, SIDECAR_ANNOTATION};

/// Labels of pods that prove an identity without the node's help: gateways and waypoints.
const GATEWAY_LABELS: &[&str] =
    &["gateway.networking.k8s.io/gateway-name", "gateway.istio.io/managed", "istio.io/gateway-name"];

/// A pod, or the template of some.
pub(in crate::analyze) struct Workload<'a> {
    pub(in crate::analyze) pod: &'a Pod,
    pub(in crate::analyze) origin: Origin<'a>,
    /// The field of its labels.
    pub(in crate::analyze) labels_field: &'static str,
    pub(in crate::analyze) enrolment: Enrolment,
    /// Of the services of the input, those that it backs.
    pub(super) services: Vec<(&'a str, &'a str)>,
    /// Of the PeerAuthentications with a selector, the one that counts, by its place.
    pub(in crate::analyze) authn: Option<usize>,
    /// The PeerAuthentication that makes it STRICT.
    pub(in crate::analyze) strict: Option<String>,
}

/// Whether a workload is in the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::analyze) enum Enrolment {
    /// Its node proves its identity.
    Enrolled,
    /// It does so itself: a sidecar or a gateway.
    Itself,
    /// It proves none.
    Outside,
    /// Its namespace's labels would say so, and are not in the input.
    Unknown,
}

pub(super) fn all<'a>(
    pods: &[(&'a Pod, Labelled<'a>)],
    namespaces: &HashMap<&'a str, Item<'a, Namespace>>,
) -> Vec<Workload<'a>> {
    let workload = |(pod, labelled): &(&'a Pod, Labelled<'a>)| Workload {
        pod,
        origin: labelled.origin,
        labels_field: labelled.field,
        enrolment: match labelled.origin.document.kind.as_str() {
            "WorkloadEntry" if speaks_hbone(pod) => Enrolment::Itself,
            "WorkloadEntry" => Enrolment::Outside,
            _ => enrolment(pod, namespaces.get(labelled.namespace).map(|item| item.object)),
        },
        services: Vec::new(),
        authn: None,
        strict: None,
    };
    pods.iter().map(workload).collect()
}

fn speaks_hbone(pod: &Pod) -> bool {
    workload::has_tunnel_label(&pod.metadata) || workload::is_redirected(&pod.metadata)
}

fn enrolment(pod: &Pod, namespace: Option<&Namespace>) -> Enrolment {
    let labels = &pod.metadata.labels;
    let says_so = matches!(labels.get(MODE_LABEL).map(String::as_str), Some("ambient" | "none"));
    if proves_itself(pod, namespace) {
        Enrolment::Itself
    } else if workload::enrolled(pod, namespace) {
        Enrolment::Enrolled
    } else if namespace.is_none() && !says_so && !pod.spec.host_network {
        Enrolment::Unknown
    } else {
        Enrolment::Outside
    }
}

fn proves_itself(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    let has = |labels: &BTreeMap<String, String>, key: &str, value: &str| {
        labels.get(key).is_some_and(|found| found == value)
    };
    let labels = &pod.metadata.labels;
    let inject = "sidecar.istio.io/inject";
    let injected = namespace.is_some_and(|n| has(&n.metadata.labels, "istio-injection", "enabled"));
    pod.metadata.annotations.contains_key(SIDECAR_ANNOTATION)
        || GATEWAY_LABELS.iter().any(|key| labels.contains_key(*key))
        || has(labels, inject, "true")
        || (injected && !has(labels, inject, "false"))
}
