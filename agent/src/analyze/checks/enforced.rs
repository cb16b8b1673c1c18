//! What the agent's own compiler says about the policies.

use std::collections::HashMap;

use super::super::message::Origin;
use super::super::{Code, Index, Message};
use crate::control::{Object, Update};
use crate::model::World;
use crate::policy::{Finding, Interner, compile};

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    let policies = index.policies.iter().map(|p| (p.origin, Object::AuthorizationPolicy(p.object.clone())));
    let authn =
        index.peer_authentications.iter().map(|p| (p.origin, Object::PeerAuthentication(p.object.clone())));
    let mut origins: HashMap<String, Origin<'_>> = HashMap::new();
    let mut updates = Vec::new();
    for (origin, object) in policies.chain(authn) {
        origins.insert(object.key().to_string(), origin);
        updates.push(Update::Upsert(object));
    }
    for finding in findings(updates, index) {
        if let Some(origin) = origins.get(&finding.object) {
            out.push(message(origin, &finding));
        }
    }
}

/// Findings come from the policies alone; without workloads there are no rows to work out.
fn findings(updates: Vec<Update>, index: &Index<'_>) -> Vec<Finding> {
    let mut world = World::default();
    world.apply(updates);
    let mesh = world.resolve(index.settings);
    compile(&mesh, &mut Interner::new()).findings
}

fn message(origin: &Origin<'_>, finding: &Finding) -> Message {
    let code = Code::from(finding.code);
    let Finding { field, message, .. } = finding;
    let text = match code {
        Code::IneffectivePolicy => format!("The policy has no impact: {field}: {message}."),
        _ => format!("{field}: {message}."),
    };
    origin.message(code, field, text)
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{authn, codes, codes_with, policy, texts};
    use crate::model::Settings;
    use crate::policy::L7Deny;

    #[test]
    fn an_allow_rule_that_l4_cannot_decide_never_matches() {
        let text = policy("{rules: [{to: [{operation: {methods: [GET]}}]}]}");
        let found = texts(&text);
        assert!(
            found[0].starts_with("Warning [CUL0101] (AuthorizationPolicy a/p f.yaml:4) spec.rules[0]: "),
            "{found:?}"
        );
        assert!(found[0].contains("methods"), "{found:?}");
    }

    #[test]
    fn a_deny_rule_that_l4_cannot_decide_is_widened() {
        let rules = "{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}";
        assert_eq!(codes(&policy(rules)), ["CUL0102"]);
    }

    #[test]
    fn a_provider_that_l4_cannot_ask_refuses_and_audit_is_no_news() {
        let custom = policy("{action: CUSTOM, provider: {name: opa}, rules: [{}]}");
        assert_eq!(codes(&custom), ["CUL0113"]);
        let istio = Settings { l7_deny: L7Deny::Istio, ..Settings::default() };
        assert_eq!(codes_with(&custom, &istio), ["IST0167"]);
        assert!(texts(&policy("{action: AUDIT, rules: [{}]}")).is_empty());
    }

    #[test]
    fn principals_have_no_scheme() {
        let rules = "{rules: [{from: [{source: {principals: [\"spiffe://cluster.local/ns/a/sa/b\"]}}]}]}";
        assert_eq!(codes(&policy(rules)), ["CUL0103"]);
    }

    #[test]
    fn a_dry_run_is_told() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a, \
                    annotations: {istio.io/dry-run: \"true\"}}\nspec: {}\n";
        assert_eq!(codes(text), ["CUL0112"]);
    }

    #[test]
    fn disable_is_permissive() {
        assert_eq!(codes(&authn("a", "p", "{mtls: {mode: DISABLE}}")), ["CUL0201"]);
    }

    #[test]
    fn a_selector_in_the_root_namespace_and_ports_without_a_selector_have_no_impact() {
        let selector = "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}";
        assert_eq!(codes(&authn("istio-system", "p", selector)), ["IST0167"]);
        assert_eq!(codes(&authn("a", "p", "{portLevelMtls: {\"80\": {mode: STRICT}}}")), ["IST0167"]);
    }
}
