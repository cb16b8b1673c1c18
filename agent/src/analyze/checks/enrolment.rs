//! Labels that put pods into the mesh, or look as if they did.

use super::super::index::{Enrolment, Index, Labelled, Workload};
use super::super::{Code, Message};
use crate::model::waypoint::{ALIAS, USE, USE_NAMESPACE};
use crate::model::workload::MODE_LABEL;

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for object in &index.labelled {
        out.extend(unknown_mode(object));
    }
    for owner in &index.owners {
        for key in [MODE_LABEL, USE, USE_NAMESPACE, ALIAS] {
            out.extend(useless_label(owner, key));
        }
    }
    for workload in &index.workloads {
        out.extend(host_network(index, workload));
    }
}

fn unknown_mode(object: &Labelled<'_>) -> Option<Message> {
    let value =
        object.labels.get(MODE_LABEL).filter(|value| !matches!(value.as_str(), "ambient" | "none"))?;
    let text =
        format!("The label {MODE_LABEL} is {value:?}, which counts as unset; write `ambient` or `none`.");
    Some(object.origin.entry(Code::UnknownDataplaneMode, object.field, MODE_LABEL, text))
}

/// Labels of a Deployment are not those of its pods.
fn useless_label(owner: &Labelled<'_>, key: &str) -> Option<Message> {
    owner.labels.get(key)?;
    let elsewhere = if key == MODE_LABEL { "Namespace" } else { "Service or Namespace" };
    let text = format!(
        "The label {key} does nothing on a {}; put it on the pod template, or on the {elsewhere}.",
        owner.origin.document.kind
    );
    Some(owner.origin.entry(Code::IneffectiveLabel, owner.field, key, text))
}

fn host_network(index: &Index<'_>, workload: &Workload<'_>) -> Option<Message> {
    let ambient = |labels: &std::collections::BTreeMap<String, String>| {
        labels.get(MODE_LABEL).is_some_and(|value| value == "ambient")
    };
    let own = &workload.pod.metadata.labels;
    let namespace = index.namespaces.get(workload.origin.namespace);
    let inherited = !own.contains_key(MODE_LABEL)
        && namespace.is_some_and(|namespace| ambient(&namespace.object.metadata.labels));
    let meant = ambient(own) || inherited;
    if !workload.pod.spec.host_network || !meant || workload.enrolment == Enrolment::Itself {
        return None;
    }
    let text = format!(
        "A pod with hostNetwork is never in the mesh, whatever {MODE_LABEL} says: it proves no identity, and no policy \
         holds for it."
    );
    Some(workload.origin.entry(Code::HostNetworkNotEnrolled, workload.labels_field, MODE_LABEL, text))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, namespace, namespace_with, pod, texts};

    #[test]
    fn an_unknown_mode_is_found() {
        let found = texts(&namespace_with("a", "{istio.io/dataplane-mode: Ambient}"));
        assert!(found[0].starts_with("Warning [CUL0303] (Namespace a f.yaml:"), "{found:?}");
        assert_eq!(codes(&pod("a", "p", "{istio.io/dataplane-mode: \"true\"}")), ["CUL0303"]);
        assert!(codes(&pod("a", "p", "{istio.io/dataplane-mode: none}")).is_empty());
    }

    #[test]
    fn labels_of_a_stateful_set_do_nothing() {
        let text = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: db\n  namespace: a\n  labels:\n    app: db\n    \
                    istio.io/use-waypoint: w\nspec: {template: {metadata: {labels: {app: db}}}}\n";
        let found = texts(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("Warning [CUL0302] (StatefulSet a/db f.yaml:8) "), "{found:?}");
        assert!(found[0].contains("put it on the pod template, or on the Service or Namespace"), "{found:?}");
    }

    #[test]
    fn a_pod_in_the_nodes_network_cannot_be_enrolled() {
        let host = |labels: &str| pod("a", "p", labels).replace("spec: {", "spec: {hostNetwork: true, ");
        assert_eq!(codes(&host("{istio.io/dataplane-mode: ambient}")), ["CUL0304"]);
        assert_eq!(codes(&[namespace("a"), host("{}")].concat()), ["CUL0304"]);
        assert!(codes(&[namespace("a"), host("{istio.io/dataplane-mode: none}")].concat()).is_empty());
    }
}
