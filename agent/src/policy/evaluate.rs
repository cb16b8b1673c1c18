//! The reference: the semantics, read off the policies as they are written, one connection at a time.
//!
//! Slow and plain on purpose. It shares no matching code with the compiler, which is tested against it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{
    Action, Attachment, AuthorizationPolicy, ConditionKey, L7Deny, MtlsMode, Operation, PeerAuthentication,
    Rule, ServiceAccountName, Source, StringMatch,
};
use crate::identity::SpiffeId;
use crate::model::Settings;

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
    /// A CUSTOM policy matched, and nobody can be asked.
    NobodyToAsk(String),
}

impl Answer {
    /// Whether the connection goes on.
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allowed(_) | Self::NoPolicy)
    }

    /// The policy that decided, or the first that did not allow.
    pub fn policy(&self) -> Option<&str> {
        match self {
            Self::NoPolicy => None,
            Self::Allowed(name)
            | Self::Denied(name)
            | Self::NotAllowed(name)
            | Self::Strict(name)
            | Self::NobodyToAsk(name) => Some(name),
        }
    }
}

/// A connection, and where it leads.
#[derive(Clone, Copy, Debug)]
#[expect(
    missing_docs,
    reason = "the destination's namespace, labels, waypoints, address and port; `peer` is `None` for plaintext"
)]
pub struct Question<'a> {
    pub settings: &'a Settings,
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub behind: &'a [Arc<str>],
    pub peer: Option<&'a SpiffeId>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
}

/// Decides one connection.
pub fn evaluate(
    question: &Question<'_>,
    policies: &[AuthorizationPolicy],
    authn: &[PeerAuthentication],
) -> Answer {
    decide(question, policies, authn, &|policy| !policy.dry_run)
}

/// Decides one connection as if dry-run policies were enforced.
pub fn evaluate_dry_run(
    question: &Question<'_>,
    policies: &[AuthorizationPolicy],
    authn: &[PeerAuthentication],
) -> Answer {
    let tried = |p: &AuthorizationPolicy| !p.dry_run || matches!(p.action, Action::Allow | Action::Deny);
    decide(question, policies, authn, &tried)
}

/// The policies of a kind that match: what is recorded besides the verdict. `namespace/name`, in order.
pub fn matching(
    question: &Question<'_>,
    policies: &[AuthorizationPolicy],
    kind: impl Fn(&AuthorizationPolicy) -> bool,
) -> Vec<String> {
    let mut found: Vec<_> = policies
        .iter()
        .filter(|p| applies(question, p) && kind(p))
        .filter(|p| p.rules.iter().any(|rule| rule_matches(question, rule, p.action)))
        .map(|p| (p.namespace.clone(), p.name.clone()))
        .collect();
    found.sort();
    found.into_iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect()
}

fn decide(
    question: &Question<'_>,
    policies: &[AuthorizationPolicy],
    authn: &[PeerAuthentication],
    live: &dyn Fn(&AuthorizationPolicy) -> bool,
) -> Answer {
    if let (None, Some(by)) = (question.peer, strict(question, authn)) {
        return Answer::Strict(by);
    }
    let mut mine: Vec<_> = policies.iter().filter(|p| applies(question, p) && live(p)).collect();
    mine.sort_by(|a, b| a.namespace.cmp(&b.namespace).then(a.name.cmp(&b.name)));
    let full = |p: &AuthorizationPolicy| format!("{}/{}", p.namespace, p.name);
    let istio = question.settings.l7_deny == L7Deny::Istio;
    let matches = |p: &AuthorizationPolicy| p.rules.iter().any(|rule| rule_matches(question, rule, p.action));
    if let Some(policy) = mine.iter().find(|p| p.action == Action::Custom && !istio && matches(p)) {
        return Answer::NobodyToAsk(full(policy));
    }
    if let Some(policy) = mine.iter().find(|p| p.action == Action::Deny && matches(p)) {
        return Answer::Denied(full(policy));
    }
    let mut first = None;
    for policy in mine.iter().filter(|p| p.action == Action::Allow) {
        first.get_or_insert_with(|| full(policy));
        if matches(policy) {
            return Answer::Allowed(full(policy));
        }
    }
    first.map_or(Answer::NoPolicy, Answer::NotAllowed)
}

fn applies(question: &Question<'_>, policy: &AuthorizationPolicy) -> bool {
    let near = policy.namespace == question.namespace || policy.namespace == question.settings.root_namespace;
    let chosen = match &policy.attachment {
        Attachment::All => true,
        Attachment::Selector(wanted) => has(question.labels, wanted),
        Attachment::Behind(waypoint) => return question.behind.iter().any(|name| **name == **waypoint),
        Attachment::Waypoint => false,
    };
    near && chosen
}

fn has(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name).is_some_and(|found| found == value))
}

/// In an ALLOW rule a part that L4 cannot see is never met. In the others it counts as met; in Istio's reading of DENY
/// what consists of such parts alone is not.
pub(super) fn rule_matches(question: &Question<'_>, rule: &Rule, action: Action) -> bool {
    let blind = rule.from.iter().any(source_is_blind)
        || rule.to.iter().any(operation_is_blind)
        || rule.when.iter().any(|c| condition(question, &c.test).is_none());
    let allow = action == Action::Allow;
    if blind && allow {
        return false;
    }
    let istio = action == Action::Deny && question.settings.l7_deny == L7Deny::Istio;
    let from = rule.from.is_empty()
        || rule.from.iter().any(|s| source(question, s) && !(istio && source_is_only_blind(s)));
    let to = rule.to.is_empty()
        || rule.to.iter().any(|o| {
            listed(&o.ports, &o.not_ports, |p| *p == question.port)
                && !(istio && o.ports.is_empty() && o.not_ports.is_empty())
        });
    from && to && rule.when.iter().all(|c| condition(question, &c.test).unwrap_or(!istio))
}

fn source_is_only_blind(s: &Source) -> bool {
    let texts = [&s.principals, &s.not_principals, &s.namespaces, &s.not_namespaces];
    let accounts = [&s.service_accounts, &s.not_service_accounts];
    texts.iter().all(|list| list.is_empty())
        && accounts.iter().all(|list| list.is_empty())
        && s.ip_blocks.is_empty()
        && s.not_ip_blocks.is_empty()
}

fn source_is_blind(s: &Source) -> bool {
    let blocks = [&s.remote_ip_blocks, &s.not_remote_ip_blocks];
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
    listed(&s.principals, &s.not_principals, |p| principal_fits(question, p))
        && listed(&s.namespaces, &s.not_namespaces, |n| fits(n, namespace(question)))
        && listed(&s.service_accounts, &s.not_service_accounts, account)
        && listed(&s.ip_blocks, &s.not_ip_blocks, |block| within(block, question.source))
}

/// The first bits of the address are the block's; the families are apart.
fn within(block: &IpNet, ip: IpAddr) -> bool {
    let shift = |bits: u8, of: u8| u32::from(of - bits);
    match (block, ip) {
        (IpNet::V4(b), IpAddr::V4(ip)) => {
            let differ = u64::from(b.addr().to_bits() ^ ip.to_bits());
            differ >> shift(b.prefix_len(), 32) == 0
        }
        (IpNet::V6(b), IpAddr::V6(ip)) => {
            let differ = b.addr().to_bits() ^ ip.to_bits();
            b.prefix_len() == 0 || differ >> shift(b.prefix_len(), 128) == 0
        }
        _ => false,
    }
}

/// With aliases every name of the mesh's trust domain is as good as another.
fn principal_fits(question: &Question<'_>, pattern: &StringMatch) -> bool {
    let own = question.settings.trust_domains();
    let ours = |domain: &str| own.iter().any(|known| known == domain);
    let text = principal(question);
    if own.len() > 1
        && let StringMatch::Exact(wanted) | StringMatch::Prefix(wanted) = pattern
        && let Some((domain, wanted)) = wanted.split_once('/')
        && (ours(domain) || domain == "cluster.local")
    {
        let Some((domain, rest)) = text.split_once('/') else { return false };
        let exact = matches!(pattern, StringMatch::Exact(_));
        return ours(domain) && if exact { rest == wanted } else { rest.starts_with(wanted) };
    }
    fits(pattern, &text)
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
            Some(listed(values, not_values, |p| principal_fits(question, p)))
        }
        ConditionKey::DestinationIp { values, not_values } => {
            Some(listed(values, not_values, |block| within(block, question.destination)))
        }
        ConditionKey::SourceIp { values, not_values } => {
            Some(listed(values, not_values, |block| within(block, question.source)))
        }
        ConditionKey::Other { .. } => None,
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
        (Some(end), _) => text.bytes().rev().take(end.len()).eq(end.bytes().rev()),
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
    let rooted = question.namespace == question.settings.root_namespace;
    let own = oldest(&|p| {
        let selected = p.selector.as_ref().is_some_and(|wanted| has(question.labels, wanted));
        selected && p.namespace == question.namespace && !rooted
    });
    let local = oldest(&|p| p.selector.is_none() && p.namespace == question.namespace);
    let mesh = oldest(&|p| p.selector.is_none() && p.namespace == question.settings.root_namespace);
    // From the nearest to the farthest: the first that says something is obeyed.
    let at_port = own.map(|p| (p, p.port_modes.get(&question.port).copied().unwrap_or(MtlsMode::Unset)));
    let whole = [own, local, mesh].into_iter().flatten().map(|p| (p, p.mode));
    let (policy, mode) = at_port.into_iter().chain(whole).find(|(_, mode)| *mode != MtlsMode::Unset)?;
    (mode == MtlsMode::Strict).then(|| format!("{}/{}", policy.namespace, policy.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_ends_inside_a_character_of_the_text_does_not_match() {
        assert!(!fits(&StringMatch::from("*x"), "é"));
        assert!(!fits(&StringMatch::from("*xx"), "éa"));
        assert!(!fits(&StringMatch::from("x*"), "é"));
        assert!(fits(&StringMatch::from("*é"), "éé"));
    }
}
