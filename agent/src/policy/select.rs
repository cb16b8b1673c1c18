//! Which policies apply to which workload, and what is notable about each.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::matching::{L4Rule, Peer, translate};
use super::peer_auth::{Strict, effective};
use crate::control::Object;
use crate::control::objects::{
    Action, AuthorizationPolicySpec, Labels, Meta, MtlsMode, PeerAuthenticationSpec, Resource,
    WorkloadSelector,
};
use crate::model::{Workload, World};

/// Something about a policy that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `Kind namespace/name`.
    pub object: String,
    /// What it is and what to do.
    pub message: String,
}

/// One policy as L4 enforces it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct L4Policy {
    /// `namespace/name`.
    pub(crate) name: String,
    pub(crate) action: Action,
    pub(crate) rules: Vec<L4Rule>,
}

impl L4Policy {
    pub(crate) fn matches(&self, peer: Peer<'_>, port: Option<u16>) -> bool {
        self.rules.iter().any(|rule| rule.matches(peer, port))
    }
}

struct Scoped<T> {
    selector: Option<WorkloadSelector>,
    policy: T,
}

/// What the CLI lists.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyRow {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// AuthorizationPolicy or PeerAuthentication.
    pub kind: &'static str,
    /// ALLOW, DENY, … or STRICT, PERMISSIVE, …
    pub action: String,
    /// `mesh`, `namespace`, `workload` or `waypoint`.
    pub scope: &'static str,
    /// What its author should know.
    pub notes: Vec<String>,
}

/// All policies, by where they apply.
#[derive(Default)]
pub struct PolicySet {
    root_namespace: String,
    authorization: HashMap<String, Vec<Scoped<Arc<L4Policy>>>>,
    authentication: HashMap<String, Vec<Scoped<Resource<PeerAuthenticationSpec>>>>,
    /// For the CLI, by namespace and name.
    pub rows: Vec<PolicyRow>,
    /// What is notable.
    pub findings: Vec<Finding>,
}

impl PolicySet {
    /// Sorts the world's policies.
    pub fn of(world: &World, root_namespace: &str) -> Self {
        let mut set = Self { root_namespace: root_namespace.to_owned(), ..Self::default() };
        for object in world.objects() {
            match object {
                Object::AuthorizationPolicy(policy) => set.add_authorization(policy),
                Object::PeerAuthentication(policy) => set.add_authentication(policy),
                _ => {}
            }
        }
        for list in set.authentication.values_mut() {
            // The oldest wins; those without a time come last, by name.
            list.sort_by_key(|s| {
                let meta = &s.policy.metadata;
                (meta.creation_timestamp.is_none(), meta.creation_timestamp.clone(), meta.name.clone())
            });
        }
        set
    }

    fn add_authorization(&mut self, policy: &Resource<AuthorizationPolicySpec>) {
        let (meta, spec) = (&policy.metadata, &policy.spec);
        let mut notes = Vec::new();
        let attached = spec.target_ref.is_some() || !spec.target_refs.is_empty();
        let dry_run = meta.annotations.get("istio.io/dry-run").is_some_and(|v| v == "true");
        let scope = self.scope(meta, spec.selector.as_ref(), attached);
        if attached {
            notes.push("attached with targetRefs: a waypoint enforces it, not the node".to_owned());
        } else if matches!(spec.action, Action::Audit | Action::Custom) {
            notes.push(format!("action {:?} is not enforced at L4", spec.action).to_uppercase());
        } else if dry_run {
            notes.push("dry run: not enforced".to_owned());
        } else {
            let rules = translate_all(policy, &mut notes);
            let name = format!("{}/{}", meta.namespace, meta.name);
            let l4 = Arc::new(L4Policy { name, action: spec.action, rules });
            let scoped =
                Scoped { selector: spec.selector.clone().filter(|s| !s.match_labels.is_empty()), policy: l4 };
            self.authorization.entry(meta.namespace.clone()).or_default().push(scoped);
        }
        self.list(meta, "AuthorizationPolicy", format!("{:?}", spec.action).to_uppercase(), scope, notes);
    }

    fn add_authentication(&mut self, policy: &Resource<PeerAuthenticationSpec>) {
        let (meta, spec) = (&policy.metadata, &policy.spec);
        let selector = spec.selector.clone().filter(|s| !s.match_labels.is_empty());
        let mut notes = Vec::new();
        let modes = spec.port_level_mtls.values().chain([&spec.mtls]);
        if modes.into_iter().any(|m| m.mode == MtlsMode::Disable) {
            notes.push("mode DISABLE counts as PERMISSIVE: HBONE is always mTLS".to_owned());
        }
        if selector.is_none() && !spec.port_level_mtls.is_empty() {
            notes.push("portLevelMtls counts only with a selector: ignored".to_owned());
        }
        let scope = self.scope(meta, selector.as_ref(), false);
        if selector.is_some() && meta.namespace == self.root_namespace {
            notes.push("a selector in the root namespace is ignored, as Istio ignores it".to_owned());
        } else {
            let scoped = Scoped { selector, policy: policy.clone() };
            self.authentication.entry(meta.namespace.clone()).or_default().push(scoped);
        }
        self.list(meta, "PeerAuthentication", format!("{:?}", spec.mtls.mode).to_uppercase(), scope, notes);
    }

    fn scope(&self, meta: &Meta, selector: Option<&WorkloadSelector>, attached: bool) -> &'static str {
        match selector {
            _ if attached => "waypoint",
            Some(selector) if !selector.match_labels.is_empty() => "workload",
            _ if meta.namespace == self.root_namespace => "mesh",
            _ => "namespace",
        }
    }

    fn list(
        &mut self,
        meta: &Meta,
        kind: &'static str,
        action: String,
        scope: &'static str,
        notes: Vec<String>,
    ) {
        let object = format!("{kind} {}/{}", meta.namespace, meta.name);
        self.findings.extend(notes.iter().map(|m| Finding { object: object.clone(), message: m.clone() }));
        let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
        self.rows.push(PolicyRow { namespace, name, kind, action, scope, notes });
    }

    /// The AuthorizationPolicies that apply to a workload, ordered by name.
    pub(crate) fn authorization_of(&self, workload: &Workload) -> Vec<Arc<L4Policy>> {
        let mut policies = Vec::new();
        let own = (workload.namespace != self.root_namespace).then_some(&workload.namespace);
        for namespace in [Some(&self.root_namespace), own].into_iter().flatten() {
            let list = self.authorization.get(namespace).map_or(&[][..], Vec::as_slice);
            policies.extend(list.iter().filter(|s| s.applies(&workload.labels)).map(|s| s.policy.clone()));
        }
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        policies
    }

    /// The effective mTLS demand of a workload.
    pub(crate) fn strict_of(&self, workload: &Workload) -> Strict {
        let list = |namespace: &str| self.authentication.get(namespace).map_or(&[][..], Vec::as_slice);
        let unselected = |namespace| list(namespace).iter().find(|s| s.selector.is_none()).map(|s| &s.policy);
        let mesh = unselected(&self.root_namespace);
        let namespace =
            (workload.namespace != self.root_namespace).then(|| unselected(&workload.namespace)).flatten();
        let selected =
            list(&workload.namespace).iter().find(|s| s.selector.is_some() && s.applies(&workload.labels));
        effective(mesh, namespace, selected.map(|s| &s.policy))
    }
}

impl<T> Scoped<T> {
    fn applies(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_none_or(|s| s.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }
}

fn translate_all(policy: &Resource<AuthorizationPolicySpec>, notes: &mut Vec<String>) -> Vec<L4Rule> {
    let spec = &policy.spec;
    let mut beyond = Vec::new();
    let mut rules = Vec::new();
    for rule in &spec.rules {
        let translated = translate(rule, spec.action, &policy.metadata.namespace);
        beyond.extend(translated.beyond_l4);
        rules.extend(translated.rule);
    }
    beyond.sort();
    beyond.dedup();
    if !beyond.is_empty() {
        let found = beyond.join(", ");
        notes.push(match spec.action {
            Action::Deny => format!("cannot be decided at L4 (found: {found}): these parts are ignored, so more is denied than written; use a waypoint and targetRefs"),
            _ => format!("cannot be decided at L4 (found: {found}): these rules never match, so less is allowed than written; use a waypoint and targetRefs"),
        });
    }
    rules
}
