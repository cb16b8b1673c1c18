//! One rule against one peer and port.

use crate::control::objects::{Action, Rule, Source, To};
use crate::identity::SpiffeId;

/// Who connects: an identity, or nobody that could prove one.
pub(crate) type Peer<'a> = Option<&'a SpiffeId>;

/// The parts of a rule that L4 can decide, ready to match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct L4Rule {
    sources: Vec<L4Source>,
    operations: Vec<L4Operation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct L4Source {
    principals: List<Text>,
    namespaces: List<Text>,
    accounts: List<Account>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct L4Operation {
    ports: List<u16>,
}

/// `values` (any must match, when there are some) and `not_values` (none may match).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct List<T> {
    values: Vec<T>,
    not_values: Vec<T>,
}

impl<T> List<T> {
    fn matches(&self, test: impl Fn(&T) -> bool) -> bool {
        (self.values.is_empty() || self.values.iter().any(&test)) && !self.not_values.iter().any(test)
    }
}

/// A string match of Istio.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Present,
}

impl Text {
    fn parse(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Present,
            (Some(rest), _) => Self::Suffix(rest.to_owned()),
            (None, Some(rest)) => Self::Prefix(rest.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
        }
    }

    /// Without an identity the value is empty and no positive form matches it.
    fn matches(&self, value: &str) -> bool {
        !value.is_empty()
            && match self {
                Self::Exact(text) => value == text,
                Self::Prefix(text) => value.starts_with(text.as_str()),
                Self::Suffix(text) => value.ends_with(text.as_str()),
                Self::Present => true,
            }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Account {
    namespace: String,
    name: String,
}

impl Account {
    /// `ns/sa`, or `sa` in the policy's namespace.
    fn parse(text: &str, policy_namespace: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or((policy_namespace, text));
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// What a rule became at L4, and which of its parts L4 cannot decide.
pub(crate) struct Translated {
    /// `None`: the rule never matches.
    pub(crate) rule: Option<L4Rule>,
    /// The attributes that L4 cannot decide, sorted, without doubles.
    pub(crate) beyond_l4: Vec<String>,
}

/// Keeps what L4 can decide of a rule. An ALLOW rule with more than that never matches; a DENY rule matches on the rest.
pub(crate) fn translate(rule: &Rule, action: Action, namespace: &str) -> Translated {
    let mut beyond_l4 = Vec::new();
    let sources = rule.from.iter().map(|from| source(&from.source, namespace, &mut beyond_l4)).collect();
    let operations = rule.to.iter().map(|to| operation(to, &mut beyond_l4)).collect();
    beyond_l4.extend(rule.when.iter().map(|when| when.key.clone()));
    beyond_l4.sort();
    beyond_l4.dedup();
    let kept = beyond_l4.is_empty() || action == Action::Deny;
    Translated { rule: kept.then_some(L4Rule { sources, operations }), beyond_l4 }
}

fn source(source: &Source, namespace: &str, beyond: &mut Vec<String>) -> L4Source {
    let later = [
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    note(&later, beyond);
    let texts = |values: &[String]| values.iter().map(|v| Text::parse(v)).collect();
    let accounts = |values: &[String]| values.iter().map(|v| Account::parse(v, namespace)).collect();
    L4Source {
        principals: List { values: texts(&source.principals), not_values: texts(&source.not_principals) },
        namespaces: List { values: texts(&source.namespaces), not_values: texts(&source.not_namespaces) },
        accounts: List {
            values: accounts(&source.service_accounts),
            not_values: accounts(&source.not_service_accounts),
        },
    }
}

fn operation(to: &To, beyond: &mut Vec<String>) -> L4Operation {
    let operation = &to.operation;
    let later = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    note(&later, beyond);
    // Validated when the manifest was read.
    let ports = |values: &[String]| values.iter().filter_map(|v| v.parse().ok()).collect();
    L4Operation { ports: List { values: ports(&operation.ports), not_values: ports(&operation.not_ports) } }
}

fn note(fields: &[(&str, &Vec<String>)], beyond: &mut Vec<String>) {
    beyond
        .extend(fields.iter().filter(|(_, values)| !values.is_empty()).map(|(field, _)| (*field).to_owned()));
}

impl L4Rule {
    /// Whether the rule matches. `port` is `None` for any port that no policy names.
    pub(crate) fn matches(&self, peer: Peer<'_>, port: Option<u16>) -> bool {
        (self.sources.is_empty() || self.sources.iter().any(|source| source.matches(peer)))
            && (self.operations.is_empty()
                || self.operations.iter().any(|op| op.ports.matches(|p| Some(*p) == port)))
    }

    /// The ports that the rule names.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.operations.iter().flat_map(|op| op.ports.values.iter().chain(&op.ports.not_values)).copied()
    }
}

impl L4Source {
    fn matches(&self, peer: Peer<'_>) -> bool {
        let principal = peer.map(SpiffeId::principal).unwrap_or_default();
        let namespace = peer.map_or("", SpiffeId::namespace);
        let account = peer.map_or("", SpiffeId::service_account);
        self.principals.matches(|text| text.matches(&principal))
            && self.namespaces.matches(|text| text.matches(namespace))
            && self.accounts.matches(|a| peer.is_some() && a.namespace == namespace && a.name == account)
    }
}
