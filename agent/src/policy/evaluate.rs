//! The reference: the semantics, read off the policies as they are written, one connection at a time.
//!
//! Slow and plain on purpose. It shares no matching code with the compiler, which is tested against it.

use std::collections::BTreeMap;

use super::{
    Action, Attachment, AuthorizationPolicy, ConditionKey, MtlsMode, Operation, PeerAuthentication, Rule,
    ServiceAccountName, Source, StringMatch,
};
use crate::identity::SpiffeId;

/// A verdict, with `namespace/name` of the policy that decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// An ALLOW policy matched.
    Allowed(String),
    /// A DENY policy matched.
    Denied(String),
    /// No ALLOW policy applies.
    NoPolicy,
    /// ALLOW policies apply, this one first, and none matched.
    NotAllowed(String),
    /// The peer must prove an identity there, by this PeerAuthentication.
    Strict(String),
}

/// A connection, and where it leads.
#[derive(Clone, Copy, Debug)]
#[expect(
    missing_docs,
    reason = "the destination's namespace, labels and port; `peer` is `None` for plaintext"
)]
pub struct Question<'a> {
    pub root_namespace: &'a str,
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub peer: Option<&'a SpiffeId>,
    pub port: u16,
}

/// Decides one connection.
pub fn evaluate(
    question: &Question<'_>,
    policies: &[AuthorizationPolicy],
    authn: &[PeerAuthentication],
) -> Answer {
    if let (None, Some(by)) = (question.peer, strict(question, authn)) {
        return Answer::Strict(by);
    }
    let mut mine: Vec<_> = policies.iter().filter(|p| applies(question, p)).collect();
    mine.sort_by(|a, b| a.namespace.cmp(&b.namespace).then(a.name.cmp(&b.name)));
    let full = |p: &AuthorizationPolicy| format!("{}/{}", p.namespace, p.name);
    for policy in mine.iter().filter(|p| p.action == Action::Deny) {
        if policy.rules.iter().any(|rule| rule_matches(question, rule, true)) {
            return Answer::Denied(full(policy));
        }
    }
    let mut first = None;
    for policy in mine.iter().filter(|p| p.action == Action::Allow) {
        first.get_or_insert_with(|| full(policy));
        if policy.rules.iter().any(|rule| rule_matches(question, rule, false)) {
            return Answer::Allowed(full(policy));
        }
    }
    first.map_or(Answer::NoPolicy, Answer::NotAllowed)
}

fn applies(question: &Question<'_>, policy: &AuthorizationPolicy) -> bool {
    let near = policy.namespace == question.namespace || policy.namespace == question.root_namespace;
    let chosen = match &policy.attachment {
        Attachment::All => true,
        Attachment::Selector(wanted) => has(question.labels, wanted),
        Attachment::Waypoint => false,
    };
    near && chosen && !policy.dry_run
}

fn has(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name).is_some_and(|found| found == value))
}

/// `deny`: a part that L4 cannot see counts as met; else the rule cannot match.
pub(super) fn rule_matches(question: &Question<'_>, rule: &Rule, deny: bool) -> bool {
    let blind = rule.from.iter().any(source_is_blind)
        || rule.to.iter().any(operation_is_blind)
        || rule.when.iter().any(|c| condition(question, &c.test).is_none());
    if blind && !deny {
        return false;
    }
    let from = rule.from.is_empty() || rule.from.iter().any(|s| source(question, s));
    let to =
        rule.to.is_empty() || rule.to.iter().any(|o| listed(&o.ports, &o.not_ports, |p| *p == question.port));
    from && to && rule.when.iter().all(|c| condition(question, &c.test).unwrap_or(true))
}

fn source_is_blind(s: &Source) -> bool {
    let blocks = [&s.ip_blocks, &s.not_ip_blocks, &s.remote_ip_blocks, &s.not_remote_ip_blocks];
    let texts = [&s.request_principals, &s.not_request_principals, &s.trust_domains, &s.not_trust_domains];
    blocks.iter().any(|list| !list.is_empty()) || texts.iter().any(|list| !list.is_empty())
}

fn operation_is_blind(o: &Operation) -> bool {
    let lists = [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths];
    lists.iter().any(|list| !list.is_empty())
}

fn listed<T>(yes: &[T], no: &[T], is: impl Fn(&T) -> bool) -> bool {
    (yes.is_empty() || yes.iter().any(&is)) && no.iter().all(|item| !is(item))
}

fn source(question: &Question<'_>, s: &Source) -> bool {
    let account = |wanted: &ServiceAccountName| {
        question.peer.is_some_and(|p| p.namespace() == wanted.namespace && p.service_account() == wanted.name)
    };
    listed(&s.principals, &s.not_principals, |p| fits(p, &principal(question)))
        && listed(&s.namespaces, &s.not_namespaces, |n| fits(n, namespace(question)))
        && listed(&s.service_accounts, &s.not_service_accounts, account)
}

/// `None`: L4 cannot see it.
fn condition(question: &Question<'_>, test: &ConditionKey) -> Option<bool> {
    match test {
        ConditionKey::DestinationPort { values, not_values } => {
            Some(listed(values, not_values, |p| *p == question.port))
        }
        ConditionKey::SourceNamespace { values, not_values } => {
            Some(listed(values, not_values, |n| fits(n, namespace(question))))
        }
        ConditionKey::SourcePrincipal { values, not_values } => {
            Some(listed(values, not_values, |p| fits(p, &principal(question))))
        }
        ConditionKey::DestinationIp { .. } | ConditionKey::SourceIp { .. } | ConditionKey::Other { .. } => {
            None
        }
    }
}

/// Without an identity there is no principal: nothing matches, not even a lone star.
fn principal(question: &Question<'_>) -> String {
    question.peer.map(SpiffeId::principal).unwrap_or_default()
}

fn namespace<'a>(question: &Question<'a>) -> &'a str {
    question.peer.map_or("", SpiffeId::namespace)
}

fn fits(pattern: &StringMatch, text: &str) -> bool {
    let written = pattern.to_string();
    match (written.strip_prefix('*'), written.strip_suffix('*')) {
        _ if text.is_empty() => false,
        (Some(""), _) => true,
        (Some(end), _) => text.len() >= end.len() && text[text.len() - end.len()..] == *end,
        (None, Some(start)) => text.get(..start.len()) == Some(start),
        (None, None) => text == written,
    }
}

/// Who makes the port STRICT, if somebody does.
fn strict(question: &Question<'_>, authn: &[PeerAuthentication]) -> Option<String> {
    let oldest = |chosen: &dyn Fn(&PeerAuthentication) -> bool| {
        let mut found: Vec<_> = authn.iter().filter(|p| chosen(p)).collect();
        found.sort_by_key(|p| (p.created.clone().unwrap_or_else(|| "~".to_owned()), p.name.clone()));
        found.first().copied()
    };
    let rooted = question.namespace == question.root_namespace;
    let own = oldest(&|p| {
        let selected = p.selector.as_ref().is_some_and(|wanted| has(question.labels, wanted));
        selected && p.namespace == question.namespace && !rooted
    });
    let local = oldest(&|p| p.selector.is_none() && p.namespace == question.namespace);
    let mesh = oldest(&|p| p.selector.is_none() && p.namespace == question.root_namespace);
    // From the nearest to the farthest: the first that says something is obeyed.
    let at_port = own.map(|p| (p, p.port_modes.get(&question.port).copied().unwrap_or(MtlsMode::Unset)));
    let whole = [own, local, mesh].into_iter().flatten().map(|p| (p, p.mode));
    let (policy, mode) = at_port.into_iter().chain(whole).find(|(_, mode)| *mode != MtlsMode::Unset)?;
    (mode == MtlsMode::Strict).then(|| format!("{}/{}", policy.namespace, policy.name))
}
