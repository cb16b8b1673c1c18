//! What is left of a policy at L4, in one form for every kind of constraint.

use super::{Action, AuthorizationPolicy, Code, Condition, ConditionKey, Finding, Operation};
use super::{Rule, ServiceAccountName, Source, StringMatch};

/// An enforceable policy.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(super) struct L4Policy {
    /// `namespace/name`.
    pub(super) name: String,
    /// DENY, else ALLOW.
    pub(super) deny: bool,
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

impl<T: Clone> Test<T> {
    fn new(any: &[T], none: &[T]) -> Self {
        Self { any: any.to_vec(), none: none.to_vec() }
    }

    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

impl L4Match {
    fn is_empty(&self) -> bool {
        self.principals.is_empty()
            && self.namespaces.is_empty()
            && self.accounts.is_empty()
            && self.ports.is_empty()
    }
}

/// What of `policy` is enforced, if anything, and what is not.
pub(super) fn lower(policy: &AuthorizationPolicy) -> (Option<L4Policy>, Vec<Finding>) {
    let mut findings = Vec::new();
    if let Some(finding) = left_out(policy) {
        return (None, vec![finding]);
    }
    let deny = policy.action == Action::Deny;
    let mut rules = Vec::new();
    for (n, rule) in policy.rules.iter().enumerate() {
        let field = format!("spec.rules[{n}]");
        findings.extend(scheme_finding(policy, rule, &field));
        let (lowered, mut unseen) = lower_rule(rule);
        unseen.sort_unstable();
        unseen.dedup();
        if unseen.is_empty() {
            rules.push(lowered);
        } else if deny {
            findings.push(widened(policy, &field, &unseen, &lowered));
            rules.push(lowered);
        } else {
            findings.push(never(policy, &field, &unseen));
        }
    }
    (Some(L4Policy { name: policy.full_name(), deny, rules }), findings)
}

fn left_out(policy: &AuthorizationPolicy) -> Option<Finding> {
    let finding =
        |code, field: &str, message: &str| Some(Finding::of(policy, code, field, message.to_owned()));
    match policy.action {
        _ if policy.attachment == super::Attachment::Waypoint => {
            finding(Code::WaypointPolicy, "spec.targetRefs", "enforced by the waypoint, not at L4")
        }
        _ if policy.dry_run => {
            finding(Code::DryRun, "metadata.annotations", "dry run: the policy is not enforced")
        }
        Action::Audit | Action::Custom => finding(
            Code::ActionNotEnforced,
            "spec.action",
            "AUDIT and CUSTOM have no effect at L4; use targetRefs and a waypoint",
        ),
        Action::Allow | Action::Deny => None,
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
    let message = format!(
        "L4 cannot decide {}, so this DENY rule is enforced without it and denies {what}; enforce it at a \
         waypoint (targetRefs), or leave these attributes out",
        unseen.join(", ")
    );
    Finding::of(policy, Code::DenyRuleWidened, field, message)
}

fn scheme_finding(policy: &AuthorizationPolicy, rule: &Rule, field: &str) -> Option<Finding> {
    let text = |m: &StringMatch| matches!(m, StringMatch::Exact(t) | StringMatch::Prefix(t) if t.starts_with("spiffe://"));
    let found = rule.from.iter().any(|s| s.principals.iter().chain(&s.not_principals).any(text));
    found.then(|| {
        let message = "principals are written without `spiffe://`; this one never matches".to_owned();
        Finding::of(policy, Code::PrincipalWithScheme, format!("{field}.from"), message)
    })
}

/// The rule without what L4 cannot see, and the names of what was left out.
fn lower_rule(rule: &Rule) -> (L4Rule, Vec<String>) {
    let mut unseen = Vec::new();
    let from = rule.from.iter().map(|s| lower_source(s, &mut unseen)).collect();
    let to = rule.to.iter().map(|o| lower_operation(o, &mut unseen)).collect();
    let when = rule.when.iter().map(|c| vec![lower_condition(c, &mut unseen)]);
    let clauses: Vec<Vec<L4Match>> = [from, to].into_iter().chain(when).collect();
    // An alternative without constraints makes its whole clause true; so does a clause that was not there.
    let constrains = |clause: &Vec<L4Match>| !clause.is_empty() && !clause.iter().any(L4Match::is_empty);
    (L4Rule { clauses: clauses.into_iter().filter(constrains).collect() }, unseen)
}

fn note(unseen: &mut Vec<String>, present: &[(&str, bool)]) {
    unseen.extend(present.iter().filter(|(_, there)| *there).map(|(name, _)| (*name).to_owned()));
}

fn lower_source(source: &Source, unseen: &mut Vec<String>) -> L4Match {
    note(
        unseen,
        &[
            ("ipBlocks", !source.ip_blocks.is_empty()),
            ("notIpBlocks", !source.not_ip_blocks.is_empty()),
            ("remoteIpBlocks", !source.remote_ip_blocks.is_empty()),
            ("notRemoteIpBlocks", !source.not_remote_ip_blocks.is_empty()),
            ("requestPrincipals", !source.request_principals.is_empty()),
            ("notRequestPrincipals", !source.not_request_principals.is_empty()),
            ("trustDomains", !source.trust_domains.is_empty()),
            ("notTrustDomains", !source.not_trust_domains.is_empty()),
        ],
    );
    L4Match {
        principals: Test::new(&source.principals, &source.not_principals),
        namespaces: Test::new(&source.namespaces, &source.not_namespaces),
        accounts: Test::new(&source.service_accounts, &source.not_service_accounts),
        ports: Test::default(),
    }
}

fn lower_operation(operation: &Operation, unseen: &mut Vec<String>) -> L4Match {
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

fn lower_condition(condition: &Condition, unseen: &mut Vec<String>) -> L4Match {
    let mut lowered = L4Match::default();
    match &condition.test {
        ConditionKey::DestinationPort { values, not_values } => lowered.ports = Test::new(values, not_values),
        ConditionKey::SourceNamespace { values, not_values } => {
            lowered.namespaces = Test::new(values, not_values);
        }
        ConditionKey::SourcePrincipal { values, not_values } => {
            lowered.principals = Test::new(values, not_values);
        }
        ConditionKey::DestinationIp { .. } | ConditionKey::SourceIp { .. } | ConditionKey::Other { .. } => {
            unseen.push(condition.key.clone());
        }
    }
    lowered
}
