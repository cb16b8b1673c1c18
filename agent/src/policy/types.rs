//! AuthorizationPolicy, parsed: every field, valid.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

/// An AuthorizationPolicy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AuthorizationPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it does with what matches.
    pub action: Action,
    /// Where it applies.
    pub attachment: Attachment,
    /// Annotation `istio.io/dry-run: "true"`: evaluated and counted, not enforced.
    pub dry_run: bool,
    /// Any of them must match; none at all never matches.
    pub rules: Vec<Rule>,
}

impl AuthorizationPolicy {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Where it applies, given the mesh's root namespace.
    pub fn scope(&self, root_namespace: &str) -> Scope {
        match &self.attachment {
            Attachment::Waypoint => Scope::Waypoint,
            Attachment::Behind(_) | Attachment::Selector(_) => Scope::Workload,
            Attachment::All if self.namespace == root_namespace => Scope::Mesh,
            Attachment::All => Scope::Namespace,
        }
    }
}

/// What a policy does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets in what matches, and nothing else.
    Allow,
    /// Records what matches.
    Audit,
    /// Asks an external authorizer, which L4 cannot.
    Custom,
    /// Refuses what matches.
    Deny,
}

impl Action {
    /// As it is written in a policy.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
            Self::Deny => "DENY",
        }
    }
}

/// What a DENY rule means at L4 when some of its attributes cannot be seen there; and a CUSTOM policy, which asks
/// somebody whom L4 cannot ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum L7Deny {
    /// The attributes count as met, so more is refused, not less; what a CUSTOM policy matches is refused.
    #[default]
    FailSafe,
    /// As Istio's ambient mode has it: a clause that has only such attributes never matches, which may leave the rule
    /// without any effect; CUSTOM policies have none.
    Istio,
}

/// Which workloads a policy is written for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Attachment {
    /// All of its namespace, or of the mesh.
    All,
    /// Those with all of these labels.
    Selector(BTreeMap<String, String>),
    /// Those behind this waypoint (`namespace/name`), wherever they are: made by `--auto-allow-waypoint`, in no manifest.
    Behind(String),
    /// `targetRefs`: waypoints enforce it.
    Waypoint,
}

/// How far a policy reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every workload.
    Mesh,
    /// A namespace's workloads.
    Namespace,
    /// Left to waypoints.
    Waypoint,
    /// Workloads with certain labels.
    Workload,
}

/// One rule: all parts that are there must match.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rule {
    /// Any of these peers; empty: anybody.
    pub from: Vec<Source>,
    /// Any of these operations; empty: anything.
    pub to: Vec<Operation>,
    /// All of these.
    pub when: Vec<Condition>,
}

/// A kind of peer. Fields are AND, values OR.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
#[expect(missing_docs, reason = "Istio's names; the pairs with `not_` must miss")]
pub struct Source {
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountName>,
    pub not_service_accounts: Vec<ServiceAccountName>,
    pub ip_blocks: Vec<IpNet>,
    pub not_ip_blocks: Vec<IpNet>,
    pub remote_ip_blocks: Vec<IpNet>,
    pub not_remote_ip_blocks: Vec<IpNet>,
    pub request_principals: Vec<StringMatch>,
    pub not_request_principals: Vec<StringMatch>,
    pub trust_domains: Vec<StringMatch>,
    pub not_trust_domains: Vec<StringMatch>,
}

/// A kind of operation. Fields are AND, values OR.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
#[expect(missing_docs, reason = "Istio's names; the pairs with `not_` must miss")]
pub struct Operation {
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub hosts: Vec<StringMatch>,
    pub not_hosts: Vec<StringMatch>,
    pub methods: Vec<StringMatch>,
    pub not_methods: Vec<StringMatch>,
    pub paths: Vec<StringMatch>,
    pub not_paths: Vec<StringMatch>,
}

/// An entry of `when`: any value and no not-value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Condition {
    /// As written.
    pub key: String,
    /// What the key is to L4, with its values.
    pub test: ConditionKey,
}

/// What a `when` key asks about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "`values` and `not_values` as in Istio")]
pub enum ConditionKey {
    /// `destination.ip`.
    DestinationIp { values: Vec<IpNet>, not_values: Vec<IpNet> },
    /// `destination.port`.
    DestinationPort { values: Vec<u16>, not_values: Vec<u16> },
    /// `source.ip`.
    SourceIp { values: Vec<IpNet>, not_values: Vec<IpNet> },
    /// `source.namespace`.
    SourceNamespace { values: Vec<StringMatch>, not_values: Vec<StringMatch> },
    /// `source.principal`.
    SourcePrincipal { values: Vec<StringMatch>, not_values: Vec<StringMatch> },
    /// Any other key: L4 cannot see it.
    Other { values: Vec<StringMatch>, not_values: Vec<StringMatch> },
}

/// A service account in a policy: the trust domain does not count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceAccountName {
    /// Its namespace (the policy's, when the text names none).
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A string with at most one wildcard at an end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StringMatch {
    /// `abc`.
    Exact(String),
    /// `abc*`, without the star.
    Prefix(String),
    /// `*`: anything that is not empty.
    Present,
    /// `*abc`, without the star.
    Suffix(String),
}

impl From<&str> for StringMatch {
    fn from(text: &str) -> Self {
        if text == "*" {
            Self::Present
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(text.to_owned())
        }
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Present => f.write_str("*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}
