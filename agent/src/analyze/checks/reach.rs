//! Policies that reach no workload.

use super::super::index::{Policy, Target};
use super::super::message::Origin;
use super::super::{Code, Index, Message};
use super::count;
use crate::model::workload::MODE_LABEL;
use crate::policy::Attachment;

type Labels = std::collections::BTreeMap<String, String>;

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for policy in &index.policies {
        if let (Attachment::Selector(selector), Some(target)) = (&policy.object.attachment, &policy.target) {
            out.extend(unmatched(&policy.origin, selector, target));
        }
        out.extend(nobody_enrolled(policy));
        out.extend(namespace(index, &policy.origin));
    }
    for authn in &index.peer_authentications {
        let in_root = authn.object.namespace == index.settings.root_namespace;
        if let (Some(selector), false) = (&authn.object.selector, in_root) {
            out.extend(unmatched(&authn.origin, selector, &authn.target));
        }
        out.extend(namespace(index, &authn.origin));
    }
}

fn unmatched(origin: &Origin<'_>, selector: &Labels, target: &Target) -> Option<Message> {
    if !target.workloads.is_empty() {
        return None;
    }
    let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let text = format!(
        "No matching workloads for this resource with the following labels: {}; compare them with the labels of the \
         pods (of the pod template, for a Deployment).",
        labels.join(",")
    );
    Some(origin.message(Code::NoMatchingWorkloadsFound, "spec.selector.matchLabels", text))
}

fn nobody_enrolled(policy: &Policy<'_>) -> Option<Message> {
    let target = policy.target.as_ref().filter(|t| !t.workloads.is_empty() && t.enrolled == 0)?;
    let text = format!(
        "The policy has no impact: of the {} that it applies to, none is in the mesh; label the namespace (or the \
         pods) {MODE_LABEL}=ambient.",
        count(target.workloads.len(), "workload")
    );
    policy.is_enforced().then(|| policy.origin.message(Code::IneffectivePolicy, "", text))
}

fn namespace(index: &Index<'_>, origin: &Origin<'_>) -> Option<Message> {
    let text = || {
        format!(
            "The policy's own namespace {} is not in the input; correct metadata.namespace, or add the Namespace.",
            origin.namespace
        )
    };
    index
        .lacks_namespace(origin.namespace)
        .then(|| origin.message(Code::NamespaceNotFound, "metadata.namespace", text()))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{authn, codes, namespace, pod, policy, texts};

    const SELECTS_X: &str = "{selector: {matchLabels: {app: x, tier: web}}}";

    #[test]
    fn a_selector_that_selects_nothing_is_found() {
        let found = texts(&[namespace("a"), pod("a", "q", "{app: x}"), policy(SELECTS_X)].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("Warning [IST0127] (AuthorizationPolicy a/p "), "{found:?}");
        assert!(found[0].contains("labels: app=x,tier=web;"), "{found:?}");
        let strict = "{selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}";
        assert_eq!(codes(&authn("a", "p", strict)), ["IST0127"]);
    }

    #[test]
    fn a_selector_that_selects_a_pod_or_a_template_is_fine() {
        let labels = "{app: x, tier: web}";
        assert!(codes(&[namespace("a"), pod("a", "q", labels), policy(SELECTS_X)].concat()).is_empty());
        let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: a}\n\
                          spec: {template: {metadata: {labels: {app: x, tier: web}}}}\n---\n";
        assert!(codes(&[namespace("a"), deployment.to_owned(), policy(SELECTS_X)].concat()).is_empty());
    }

    #[test]
    fn a_policy_for_workloads_outside_the_mesh_has_no_impact() {
        let outside = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n".to_owned();
        let found = texts(&[outside, pod("a", "q", "{app: x}"), policy("{}")].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("of the 1 workload that it applies to, none is in the mesh"), "{found:?}");
    }

    #[test]
    fn a_policy_whose_namespace_is_missing_is_found_once_there_are_namespaces() {
        assert_eq!(codes(&[namespace("b"), policy("{}")].concat()), ["CUL0105"]);
        assert!(codes(&policy("{}")).is_empty());
        assert!(codes(&[namespace("b"), authn("istio-system", "p", "{}")].concat()).is_empty());
    }
}
