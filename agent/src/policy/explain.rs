//! Which policies were considered for a connection, and what each had to say.

use serde::Serialize;

use super::evaluate::{Question, rule_matches};
use super::{Action, AuthorizationPolicy, Strictness};

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
    let deny = policy.action == Action::Deny;
    let rule = policy.rules.iter().position(|rule| rule_matches(question, rule, deny));
    let enforced = !policy.dry_run && matches!(policy.action, Action::Allow | Action::Deny);
    let says = match (enforced, rule) {
        (false, _) if policy.dry_run => "a dry run: not enforced".to_owned(),
        (false, _) => "not enforced at L4".to_owned(),
        (true, Some(rule)) => format!("spec.rules[{rule}] matches"),
        (true, None) if policy.rules.is_empty() => "has no rules: allows nothing".to_owned(),
        (true, None) => "no rule matches".to_owned(),
    };
    Considered { policy: policy.full_name(), action: policy.action, rule, enforced, says }
}

/// The PeerAuthentication that demands mTLS on `port`, in words; empty when none does.
pub fn demands_mtls(strictness: &Strictness, port: u16) -> String {
    strictness.at(port).map_or_else(String::new, |by| format!("PeerAuthentication {} demands mTLS", by.0))
}
