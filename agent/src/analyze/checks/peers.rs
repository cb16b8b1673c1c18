//! Whom policies name: whether there is anybody of that name, and whether it can prove it.

use super::super::index::{Callers, Group, Policy};
use super::super::{Code, Index, Message};
use super::{count, few};
use crate::identity::SpiffeId;
use crate::model::workload::MODE_LABEL;
use crate::policy::{Action, ConditionKey, Rule, StringMatch};

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for policy in &index.policies {
        for (n, rule) in policy.object.rules.iter().enumerate() {
            let judge = Judge { index, policy };
            peers(rule, &format!("spec.rules[{n}]"), &mut |field, peer| out.extend(judge.peer(&field, peer)));
        }
    }
}

/// A peer that a rule names exactly.
enum Peer<'a> {
    Account(&'a str, &'a str),
    Namespace(&'a str),
    Principal(&'a str),
}

/// Calls `with` for each peer that a rule names exactly, with its field. What is named to be left out (`not...`) is left
/// out here too: a name that does not exist does no harm there.
fn peers<'a>(rule: &'a Rule, field: &str, with: &mut impl FnMut(String, Peer<'a>)) {
    for (n, source) in rule.from.iter().enumerate() {
        let field = |list: &str, m: usize| format!("{field}.from[{n}].source.{list}[{m}]");
        for (m, text) in exact(&source.principals) {
            with(field("principals", m), Peer::Principal(text));
        }
        for (m, text) in exact(&source.namespaces) {
            with(field("namespaces", m), Peer::Namespace(text));
        }
        for (m, account) in source.service_accounts.iter().enumerate() {
            with(field("serviceAccounts", m), Peer::Account(&account.namespace, &account.name));
        }
    }
    for (n, when) in rule.when.iter().enumerate() {
        let field = |m: usize| format!("{field}.when[{n}].values[{m}]");
        match &when.test {
            ConditionKey::SourceNamespace { values, .. } => {
                exact(values).for_each(|(m, text)| with(field(m), Peer::Namespace(text)));
            }
            ConditionKey::SourcePrincipal { values, .. } => {
                exact(values).for_each(|(m, text)| with(field(m), Peer::Principal(text)));
            }
            _ => {}
        }
    }
}

fn exact(list: &[StringMatch]) -> impl Iterator<Item = (usize, &str)> {
    list.iter().enumerate().filter_map(|(n, text)| match text {
        StringMatch::Exact(text) => Some((n, text.as_str())),
        _ => None,
    })
}

struct Judge<'a> {
    index: &'a Index<'a>,
    policy: &'a Policy<'a>,
}

impl Judge<'_> {
    fn say(&self, code: Code, field: &str, text: String) -> Option<Message> {
        Some(self.policy.origin.message(code, field, format!("{field}: {text}")))
    }

    fn peer(&self, field: &str, peer: Peer<'_>) -> Option<Message> {
        match peer {
            Peer::Account(namespace, name) => self.account(field, namespace, name),
            Peer::Namespace(name) => self.namespace(field, name),
            Peer::Principal(text) => self.principal(field, text),
        }
    }

    fn principal(&self, field: &str, text: &str) -> Option<Message> {
        if text.starts_with("spiffe://") {
            // The compiler reports it.
            return None;
        }
        let Ok(id) = format!("spiffe://{text}").parse::<SpiffeId>() else {
            let text = format!(
                "{text:?} is not <trust domain>/ns/<namespace>/sa/<service account>, so it never matches."
            );
            return self.say(Code::PrincipalNeverMatches, field, text);
        };
        if !self.index.trusts(id.trust_domain()) {
            let text = format!(
                "{text:?} is of trust domain {}; the workloads of this mesh are of {}. Correct it, or name the other one \
                 with --trust-domain or --trust-domain-aliases.",
                id.trust_domain(),
                self.index.settings.trust_domain
            );
            return self.say(Code::ForeignTrustDomain, field, text);
        }
        self.account(field, id.namespace(), id.service_account())
    }

    fn account(&self, field: &str, namespace: &str, name: &str) -> Option<Message> {
        if self.index.lacks_namespace(namespace) {
            return self.no_namespace(field, namespace);
        }
        let callers = &self.index.callers;
        // Of a namespace of which the input shows nothing, nothing is known.
        let known = callers.accounts(namespace)?;
        if !known.contains(name) {
            let text = format!(
                "no pod of namespace {namespace} runs as service account {name:?}; those of the input are: {}.",
                few(known.iter().copied())
            );
            return self.say(Code::ServiceAccountNotFound, field, text);
        }
        self.without_identity(field, &|c| c.of_account(namespace, name), namespace)
    }

    fn namespace(&self, field: &str, name: &str) -> Option<Message> {
        if self.index.lacks_namespace(name) {
            return self.no_namespace(field, name);
        }
        self.without_identity(field, &|c| c.of_namespace(name), name)
    }

    fn no_namespace(&self, field: &str, name: &str) -> Option<Message> {
        let text = format!("namespace {name:?} is not in the input; correct the name, or add the Namespace.");
        self.say(Code::NamespaceNotFound, field, text)
    }

    /// An ALLOW policy cannot let in who proves no identity.
    fn without_identity(
        &self,
        field: &str,
        group: &dyn Fn(&Callers<'_>) -> Group,
        namespace: &str,
    ) -> Option<Message> {
        let enforced = self.policy.target.as_ref().is_none_or(|target| target.enrolled > 0);
        if self.policy.object.action != Action::Allow || !enforced {
            return None;
        }
        let group = group(&self.index.callers);
        let example = self.index.workloads.get(group.example).filter(|_| group.outside > 0)?.origin.object();
        let who = if group.outside == group.all {
            let (them, are) =
                if group.all == 1 { ("the one workload", "is") } else { ("the workloads", "are") };
            format!("{them} meant here ({example}) {are}")
        } else {
            let are = if group.outside == 1 { "is" } else { "are" };
            format!("{} of the {} meant here ({example}) {are}", group.outside, count(group.all, "workload"))
        };
        let strict = self.policy.target.as_ref().and_then(|target| target.strict.as_deref());
        let why = match strict {
            Some(by) => format!("mTLS is STRICT (PeerAuthentication {by}), so their calls are refused"),
            None => "without one this rule never matches them, so their calls are refused".to_owned(),
        };
        let text = format!(
            "{who} not in the mesh and cannot prove an identity: {why}; label namespace {namespace} {MODE_LABEL}=ambient."
        );
        self.say(Code::CallerWithoutIdentity, field, text)
    }
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{authn, codes, codes_with, namespace, namespace_with, pod, policy, texts};
    use crate::analyze::{Settings, tests::principals};

    fn account(text: String, name: &str) -> String {
        text.replace("spec: {", &format!("spec: {{serviceAccountName: {name}, "))
    }

    #[test]
    fn a_service_account_that_nobody_runs_as_is_found() {
        let pods = [namespace("a"), namespace("b"), account(pod("b", "c", "{}"), "curl")].concat();
        let found = texts(&[pods.clone(), principals("cluster.local/ns/b/sa/default")].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("[CUL0104]") && found[0].contains("those of the input are: curl."),
            "{found:?}"
        );
        let by_account = policy("{rules: [{from: [{source: {serviceAccounts: [b/web]}}]}]}");
        assert_eq!(codes(&[pods.clone(), by_account].concat()), ["CUL0104"]);
        assert!(codes(&[pods.clone(), principals("cluster.local/ns/b/sa/curl")].concat()).is_empty());
        let object =
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: b}\n---\n".to_owned();
        assert!(codes(&[pods, object, principals("cluster.local/ns/b/sa/web")].concat()).is_empty());
    }

    #[test]
    fn a_namespace_that_is_not_there_is_found() {
        let named =
            |name: &str| policy(&format!("{{rules: [{{from: [{{source: {{namespaces: [{name}]}}}}]}}]}}"));
        assert_eq!(codes(&[namespace("a"), named("b")].concat()), ["CUL0105"]);
        assert_eq!(codes(&[namespace("a"), principals("cluster.local/ns/b/sa/x")].concat()), ["CUL0105"]);
        assert!(codes(&[namespace("a"), named("istio-system")].concat()).is_empty());
        assert!(codes(&[namespace("a"), named("\"b*\"")].concat()).is_empty());
        assert!(codes(&named("b")).is_empty());
        let when = policy("{rules: [{when: [{key: source.namespace, values: [b]}]}]}");
        assert_eq!(codes(&[namespace("a"), when].concat()), ["CUL0105"]);
    }

    #[test]
    fn a_principal_of_another_trust_domain_or_form_is_found() {
        assert_eq!(codes(&principals("cluster.local/ns/b/x")), ["CUL0103"]);
        let other = principals("other.example/ns/b/sa/x");
        assert_eq!(codes(&other), ["CUL0106"]);
        let aliases = vec!["other.example".to_owned()];
        let settings = Settings { trust_domain_aliases: aliases, ..Settings::default() };
        assert!(codes_with(&other, &settings).is_empty());
    }

    #[test]
    fn callers_outside_the_mesh_cannot_prove_what_the_policy_asks_for() {
        let mesh = [
            namespace("a"),
            pod("a", "server", "{}"),
            namespace_with("b", "{}"),
            pod("b", "c", "{}"),
            principals("cluster.local/ns/b/sa/default"),
        ]
        .concat();
        let found = texts(&mesh);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("[CUL0107]") && found[0].contains("(Pod b/c) is not in the mesh"),
            "{found:?}"
        );
        let found =
            texts(&[mesh.clone(), authn("istio-system", "default", "{mtls: {mode: STRICT}}")].concat());
        assert!(found[0].contains("mTLS is STRICT (PeerAuthentication istio-system/default)"), "{found:?}");
        let half = pod("b", "d", "{istio.io/dataplane-mode: ambient}");
        let found = texts(&[mesh.clone(), half].concat());
        assert!(found[0].contains("1 of the 2 workloads meant here"), "{found:?}");
        assert!(
            codes(&mesh.replace("name: b, labels: {}", "name: b, labels: {istio-injection: enabled}"))
                .is_empty()
        );
        assert!(codes(&mesh.replace("spec: {rules", "spec: {action: DENY, rules")).is_empty());
    }
}
