//! STRICT mTLS, and who of the input cannot speak it.

use super::super::index::{Authn, Enrolment};
use super::super::{Code, Index, Message};
use super::{count, few};
use crate::model::workload::MODE_LABEL;
use crate::policy::MtlsMode;

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for authn in &index.peer_authentications {
        out.extend(keeps_out(index, authn));
    }
}

/// Whoever is outside the mesh and as near as the policy reaches: in its namespace, or anywhere for the root namespace's.
fn keeps_out(index: &Index<'_>, authn: &Authn<'_>) -> Option<Message> {
    let object = authn.object;
    let name = format!("{}/{}", object.namespace, object.name);
    let counts = authn.target.strict.as_deref() == Some(&name) && authn.target.enrolled > 0;
    if object.mode != MtlsMode::Strict || !counts {
        return None;
    }
    let everywhere = object.namespace == index.settings.root_namespace && object.selector.is_none();
    let near = |namespace: &str| everywhere || namespace == object.namespace;
    let outside =
        index.workloads.iter().filter(|w| w.enrolment == Enrolment::Outside && near(w.origin.namespace));
    let outside: Vec<String> = outside.map(|workload| workload.origin.object()).collect();
    if outside.is_empty() {
        return None;
    }
    let text = format!(
        "STRICT refuses {} of {}, not in the mesh: {}. Label the namespace (or the pods) {MODE_LABEL}=ambient if they are to reach what \
         it protects.",
        count(outside.len(), "workload"),
        if everywhere { "the input".to_owned() } else { format!("namespace {}", object.namespace) },
        few(outside.iter().map(String::as_str))
    );
    Some(authn.origin.message(Code::StrictKeepsOut, "spec.mtls.mode", text))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{authn, codes, namespace, namespace_with, pod, texts};

    const STRICT: &str = "{mtls: {mode: STRICT}}";

    #[test]
    fn those_outside_the_mesh_are_told() {
        let mesh =
            [namespace("a"), pod("a", "p", "{}"), namespace_with("b", "{}"), pod("b", "q", "{}")].concat();
        let found = texts(&[mesh.clone(), authn("istio-system", "default", STRICT)].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("Info [CUL0204] (PeerAuthentication istio-system/default "),
            "{found:?}"
        );
        assert!(found[0].contains("refuses 1 workload of the input, not in the mesh: Pod b/q."), "{found:?}");
        // Of another namespace nobody knows whether it wants to come in.
        assert!(codes(&[mesh.clone(), authn("a", "default", STRICT)].concat()).is_empty());
        let out = pod("a", "r", "{istio.io/dataplane-mode: none}");
        assert_eq!(codes(&[mesh.clone(), out, authn("a", "default", STRICT)].concat()), ["CUL0204"]);
        assert!(
            codes(&[mesh, authn("istio-system", "default", "{mtls: {mode: PERMISSIVE}}")].concat())
                .is_empty()
        );
    }

    #[test]
    fn a_mesh_without_anybody_outside_is_fine() {
        let mesh = [namespace("a"), pod("a", "p", "{}"), authn("a", "default", STRICT)].concat();
        assert!(codes(&mesh).is_empty());
    }
}
