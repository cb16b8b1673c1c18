//! Which policies were considered for a connection, and what each had to say.

use serde::Serialize;

use super::evaluate::{Question, rule_matches};
use super::{Action, AuthorizationPolicy, L7Deny, Strictness};

/// One policy that applies to the destination.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Considered {
    /// `namespace/name`.
    pub policy: String,
    /// What it does.
    pub action: Action,
    /// The first rule that matches, from 0 as in `spec.rules[0]`.
    pub rule: Option<usize>,
    /// Whether L4 enforces it at all.
    pub enforced: bool,
    /// That in words.
    pub says: String,
}

/// What `policy` says to the connection.
pub fn consider(question: &Question<'_>, policy: &AuthorizationPolicy) -> Considered {
    let rule = policy.rules.iter().position(|rule| rule_matches(question, rule, policy.action));
    let istio = question.settings.l7_deny == L7Deny::Istio;
    let enforced = !policy.dry_run
        && match policy.action {
            Action::Allow | Action::Deny => true,
            Action::Custom => !istio,
            Action::Audit => false,
        };
    let hit = match rule {
        Some(rule) => format!("spec.rules[{rule}] matches"),
        None if policy.rules.is_empty() => "has no rules: allows nothing".to_owned(),
        None => "no rule matches".to_owned(),
    };
    let says = match policy.action {
        Action::Custom if istio => "not enforced at L4 (--l7-deny=istio)".to_owned(),
        Action::Custom | Action::Audit if policy.dry_run => {
            "a dry run of this action: not evaluated".to_owned()
        }
        Action::Allow | Action::Deny if policy.dry_run => format!("a dry run, not enforced: {hit}"),
        Action::Audit => format!("only recorded: {hit}"),
        Action::Custom => format!("{hit}; L4 cannot ask its provider, so a match refuses"),
        Action::Allow | Action::Deny => hit,
    };
    Considered { policy: policy.full_name(), action: policy.action, rule, enforced, says }
}

/// The PeerAuthentication that demands mTLS on `port`, in words; empty when none does.
pub fn demands_mtls(strictness: &Strictness, port: u16) -> String {
    strictness.at(port).map_or_else(String::new, |by| format!("PeerAuthentication {} demands mTLS", by.0))
}
