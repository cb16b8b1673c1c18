//! What is left of a policy at L4, in one form for every kind of constraint.

use ipnet::IpNet;

use super::{Action, AuthorizationPolicy, Code, Condition, ConditionKey, Finding, L7Deny, Operation};
use super::{Rule, ServiceAccountName, Source, StringMatch};
use crate::model::Settings;

/// A policy that L4 evaluates.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(super) struct L4Policy {
    /// `namespace/name`.
    pub(super) name: String,
    pub(super) action: Action,
    /// Evaluated and counted, not enforced.
    pub(super) dry_run: bool,
    /// OR.
    pub(super) rules: Vec<L4Rule>,
}

/// Clauses are AND; the matches of a clause are OR, and a clause has at least one.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(super) struct L4Rule {
    pub(super) clauses: Vec<Vec<L4Match>>,
}

/// All of it must hold.
#[derive(PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct L4Match {
    pub(super) principals: Test<StringMatch>,
    pub(super) namespaces: Test<StringMatch>,
    pub(super) accounts: Test<ServiceAccountName>,
    pub(super) ports: Test<u16>,
    pub(super) sources: Test<IpNet>,
    pub(super) destinations: Test<IpNet>,
}

/// One of `any` (when there are some), and none of `none`.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(super) struct Test<T> {
    pub(super) any: Vec<T>,
    pub(super) none: Vec<T>,
}

impl<T> Default for Test<T> {
    fn default() -> Self {
        Self { any: Vec::new(), none: Vec::new() }
    }
}

impl<T: Clone + Ord> Test<T> {
    /// Sorted, each once, which [`Test::has`] relies on.
    fn new(any: &[T], none: &[T]) -> Self {
        Self::from_lists(any.to_vec(), none.to_vec())
    }

    fn from_lists(mut any: Vec<T>, mut none: Vec<T>) -> Self {
        for list in [&mut any, &mut none] {
            list.sort_unstable();
            list.dedup();
        }
        Self { any, none }
    }
}

impl<T> Test<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

impl L4Match {
    fn is_empty(&self) -> bool {
        self.principals.is_empty()
            && self.namespaces.is_empty()
            && self.accounts.is_empty()
            && self.ports.is_empty()
            && self.sources.is_empty()
            && self.destinations.is_empty()
    }
}

/// What of `policy` L4 evaluates, if anything, and what it does not.
pub(super) fn lower(policy: &AuthorizationPolicy, settings: &Settings) -> (Option<L4Policy>, Vec<Finding>) {
    let istio = settings.l7_deny == L7Deny::Istio;
    if let Some(finding) = left_out(policy, istio) {
        return (None, vec![finding]);
    }
    let mut findings: Vec<Finding> = notable(policy).into_iter().collect();
    let reader = Reader { trust_domains: settings.trust_domains() };
    let mut rules = Vec::new();
    for (n, rule) in policy.rules.iter().enumerate() {
        let field = format!("spec.rules[{n}]");
        findings.extend(scheme_finding(policy, rule, &field));
        let (clauses, mut unseen) = reader.rule(rule);
        unseen.sort_unstable();
        unseen.dedup();
        match (policy.action, unseen.is_empty()) {
            (_, true) => rules.push(widest(clauses)),
            (Action::Allow, false) => findings.push(never(policy, &field, &unseen)),
            (Action::Deny, false) if istio => {
                let narrowed = narrowest(clauses);
                findings.push(as_istio(policy, &field, &unseen, narrowed.is_some()));
                rules.extend(narrowed);
            }
            (Action::Audit | Action::Custom | Action::Deny, false) => {
                let rule = widest(clauses);
                findings.push(widened(policy, &field, &unseen, &rule));
                rules.push(rule);
            }
        }
    }
    let lowered =
        L4Policy { name: policy.full_name(), action: policy.action, dry_run: policy.dry_run, rules };
    (Some(lowered), findings)
}

fn left_out(policy: &AuthorizationPolicy, istio: bool) -> Option<Finding> {
    let finding =
        |code, field: &str, message: &str| Some(Finding::of(policy, code, field, message.to_owned()));
    match policy.action {
        _ if policy.attachment == super::Attachment::Waypoint => {
            finding(Code::WaypointPolicy, "spec.targetRefs", "enforced by the waypoint, not at L4")
        }
        Action::Custom if istio => finding(
            Code::ActionNotEnforced,
            "spec.action",
            "L4 cannot ask an external authorizer: with --l7-deny=istio the policy has no effect; use targetRefs and \
             a waypoint",
        ),
        Action::Custom | Action::Audit if policy.dry_run => finding(
            Code::DryRun,
            "metadata.annotations",
            "istio.io/dry-run is for ALLOW and DENY: the policy has no effect",
        ),
        _ => None,
    }
}

/// What is evaluated, but not as a reader might think.
fn notable(policy: &AuthorizationPolicy) -> Option<Finding> {
    let finding =
        |code, field: &str, message: &str| Some(Finding::of(policy, code, field, message.to_owned()));
    match policy.action {
        Action::Custom => finding(
            Code::CustomRefuses,
            "spec.action",
            "L4 cannot ask an external authorizer, so every connection that the policy matches is refused; use \
             targetRefs and a waypoint",
        ),
        _ if policy.dry_run => {
            finding(Code::DryRun, "metadata.annotations", "dry run: evaluated and counted, not enforced")
        }
        _ => None,
    }
}

fn never(policy: &AuthorizationPolicy, field: &str, unseen: &[String]) -> Finding {
    let message = format!(
        "L4 cannot decide {}, so this ALLOW rule never matches: connections that only it would allow are \
         refused; enforce it at a waypoint (targetRefs), or leave these attributes out",
        unseen.join(", ")
    );
    Finding::of(policy, Code::AllowRuleNeverMatches, field, message)
}

fn widened(policy: &AuthorizationPolicy, field: &str, unseen: &[String], left: &L4Rule) -> Finding {
    let what = if left.clauses.is_empty() { "every connection" } else { "whatever its other parts match" };
    let does = match policy.action {
        Action::Audit => "is recorded without it and records",
        _ => "is enforced without it and denies",
    };
    let message = format!(
        "L4 cannot decide {}, so this {} rule {does} {what}; enforce it at a waypoint (targetRefs), or leave these \
         attributes out",
        unseen.join(", "),
        policy.action.name(),
    );
    Finding::of(policy, Code::DenyRuleWidened, field, message)
}

fn as_istio(policy: &AuthorizationPolicy, field: &str, unseen: &[String], effective: bool) -> Finding {
    let (code, what) = if effective {
        (Code::DenyRuleWidened, "is enforced without it and denies whatever its other parts match")
    } else {
        (Code::DenyRuleNoEffect, "has no effect (--l7-deny=istio)")
    };
    let message = format!(
        "L4 cannot decide {}, so this DENY rule {what}; enforce it at a waypoint (targetRefs)",
        unseen.join(", ")
    );
    Finding::of(policy, code, field, message)
}

fn scheme_finding(policy: &AuthorizationPolicy, rule: &Rule, field: &str) -> Option<Finding> {
    let text = |m: &StringMatch| matches!(m, StringMatch::Exact(t) | StringMatch::Prefix(t) if t.starts_with("spiffe://"));
    let found = rule.from.iter().any(|s| s.principals.iter().chain(&s.not_principals).any(text));
    found.then(|| {
        let message = "principals are written without `spiffe://`; this one never matches".to_owned();
        Finding::of(policy, Code::PrincipalWithScheme, format!("{field}.from"), message)
    })
}

/// An alternative without constraints makes its whole clause true; so does a clause that was not there.
fn widest(clauses: Vec<Vec<L4Match>>) -> L4Rule {
    let constrains = |clause: &Vec<L4Match>| !clause.is_empty() && !clause.iter().any(L4Match::is_empty);
    L4Rule { clauses: clauses.into_iter().filter(constrains).collect() }
}

/// An alternative without constraints never holds. `None`: a clause has only such.
fn narrowest(clauses: Vec<Vec<L4Match>>) -> Option<L4Rule> {
    let mut kept = Vec::new();
    for mut clause in clauses.into_iter().filter(|clause| !clause.is_empty()) {
        clause.retain(|alternative| !alternative.is_empty());
        if clause.is_empty() {
            return None;
        }
        kept.push(clause);
    }
    Some(L4Rule { clauses: kept })
}

struct Reader {
    /// All names of the mesh's trust domain; a single one is taken literally.
    trust_domains: Vec<String>,
}

impl Reader {
    /// The rule's clauses without what L4 cannot see, and the names of what was left out.
    fn rule(&self, rule: &Rule) -> (Vec<Vec<L4Match>>, Vec<String>) {
        let mut unseen = Vec::new();
        let from = rule.from.iter().map(|s| self.source(s, &mut unseen)).collect();
        let to = rule.to.iter().map(|o| operation(o, &mut unseen)).collect();
        let when = rule.when.iter().map(|c| vec![self.condition(c, &mut unseen)]);
        ([from, to].into_iter().chain(when).collect(), unseen)
    }

    fn source(&self, source: &Source, unseen: &mut Vec<String>) -> L4Match {
        note(
            unseen,
            &[
                ("remoteIpBlocks", !source.remote_ip_blocks.is_empty()),
                ("notRemoteIpBlocks", !source.not_remote_ip_blocks.is_empty()),
                ("requestPrincipals", !source.request_principals.is_empty()),
                ("notRequestPrincipals", !source.not_request_principals.is_empty()),
                ("trustDomains", !source.trust_domains.is_empty()),
                ("notTrustDomains", !source.not_trust_domains.is_empty()),
            ],
        );
        L4Match {
            principals: self.principals(&source.principals, &source.not_principals),
            namespaces: Test::new(&source.namespaces, &source.not_namespaces),
            accounts: Test::new(&source.service_accounts, &source.not_service_accounts),
            sources: Test::new(&source.ip_blocks, &source.not_ip_blocks),
            ..L4Match::default()
        }
    }

    fn condition(&self, condition: &Condition, unseen: &mut Vec<String>) -> L4Match {
        let mut lowered = L4Match::default();
        match &condition.test {
            ConditionKey::DestinationIp { values, not_values } => {
                lowered.destinations = Test::new(values, not_values);
            }
            ConditionKey::DestinationPort { values, not_values } => {
                lowered.ports = Test::new(values, not_values);
            }
            ConditionKey::SourceIp { values, not_values } => lowered.sources = Test::new(values, not_values),
            ConditionKey::SourceNamespace { values, not_values } => {
                lowered.namespaces = Test::new(values, not_values);
            }
            ConditionKey::SourcePrincipal { values, not_values } => {
                lowered.principals = self.principals(values, not_values);
            }
            ConditionKey::Other { .. } => unseen.push(condition.key.clone()),
        }
        lowered
    }

    fn principals(&self, any: &[StringMatch], none: &[StringMatch]) -> Test<StringMatch> {
        let all = |list: &[StringMatch]| list.iter().flat_map(|p| self.aliases(p)).collect();
        Test::from_lists(all(any), all(none))
    }

    /// The pattern in each of the mesh's trust domains, when it names one of them in full. `cluster.local` in a policy
    /// stands for the mesh's own, whatever that is called. (istio: `pilot/pkg/security/trustdomain/bundle.go`.)
    fn aliases(&self, pattern: &StringMatch) -> Vec<StringMatch> {
        let (text, wrap): (&str, fn(String) -> StringMatch) = match pattern {
            StringMatch::Exact(text) => (text, StringMatch::Exact),
            StringMatch::Prefix(text) => (text, StringMatch::Prefix),
            StringMatch::Present | StringMatch::Suffix(_) => return vec![pattern.clone()],
        };
        match text.split_once('/') {
            Some((domain, rest)) if self.stands_for_all(domain) => {
                self.trust_domains.iter().map(|domain| wrap(format!("{domain}/{rest}"))).collect()
            }
            _ => vec![pattern.clone()],
        }
    }

    fn stands_for_all(&self, domain: &str) -> bool {
        self.trust_domains.len() > 1
            && (domain == "cluster.local" || self.trust_domains.iter().any(|known| known == domain))
    }
}

fn note(unseen: &mut Vec<String>, present: &[(&str, bool)]) {
    unseen.extend(present.iter().filter(|(_, there)| *there).map(|(name, _)| (*name).to_owned()));
}

fn operation(operation: &Operation, unseen: &mut Vec<String>) -> L4Match {
    note(
        unseen,
        &[
            ("hosts", !operation.hosts.is_empty()),
            ("notHosts", !operation.not_hosts.is_empty()),
            ("methods", !operation.methods.is_empty()),
            ("notMethods", !operation.not_methods.is_empty()),
            ("paths", !operation.paths.is_empty()),
            ("notPaths", !operation.not_paths.is_empty()),
        ],
    );
    L4Match { ports: Test::new(&operation.ports, &operation.not_ports), ..L4Match::default() }
}
