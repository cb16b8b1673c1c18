//! Policies in the shape that istiod gives them to ztunnel, for those who read ztunnel's dumps: what L4 evaluates, as
//! `rules[][][]`: rules are OR, the clauses of a rule AND, the matches of a clause OR.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value, json};

use super::lower::{L4Match, Test, lower};
use super::{Action, Applicable, Attachment, AuthorizationPolicy, Scope, Strictness, StringMatch};
use crate::model::{Mesh, Workload};

/// istiod's name for "mutual TLS only, at every port".
const STRICT: &str = "istio_converted_static_strict";
/// What istiod's names for other settings of a PeerAuthentication begin with.
const CONVERTED: &str = "converted_peer_authentication_";

/// A mesh's policies as ztunnel has them.
pub(crate) struct Dumped {
    /// One object for each policy: name, namespace, scope, action, dryRun, rules.
    pub(crate) policies: Vec<Value>,
    /// Of each workload, in their order: the policies (`namespace/name`) that name it, not its namespace or the mesh.
    pub(crate) of_workloads: Vec<Vec<String>>,
}

/// All policies that L4 evaluates, those that PeerAuthentications mean among them.
pub(crate) fn dump(mesh: &Mesh) -> Dumped {
    let root = mesh.settings.root_namespace.as_str();
    let mut policies: Vec<Value> = mesh.policies.iter().filter_map(|policy| written(policy, mesh)).collect();
    let applicable = Applicable::new(root, &mesh.policies, &mesh.peer_authentications);
    let mut converted = BTreeMap::new();
    let mut of_workload = |workload: &Workload| {
        let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
        let selected = applicable.policies(namespace, labels, &workload.behind).into_iter();
        let selected = selected.filter(|policy| policy.attachment != Attachment::All);
        let mut names: Vec<String> = selected.map(|policy| policy.full_name()).collect();
        if let Some((name, rules)) = strict(&applicable.strictness(namespace, labels), namespace, root) {
            if let Entry::Vacant(entry) = converted.entry(name.clone()) {
                entry.insert(rules);
            }
            names.push(name);
        }
        names
    };
    let of_workloads =
        mesh.workloads.iter().map(|w| if w.enrolled { of_workload(w) } else { Vec::new() }).collect();
    for (full_name, rules) in converted {
        let (namespace, name) = full_name.split_once('/').unwrap_or_default();
        policies.push(
            json!({"name": name, "namespace": namespace, "scope": "WorkloadSelector", "action": "Deny",
                             "dryRun": false, "rules": rules}),
        );
    }
    Dumped { policies, of_workloads }
}

fn written(policy: &AuthorizationPolicy, mesh: &Mesh) -> Option<Value> {
    let (lowered, _) = lower(policy, &mesh.settings);
    let rules: Vec<Vec<Vec<Value>>> = lowered?
        .rules
        .iter()
        .map(|rule| rule.clauses.iter().map(|clause| clause.iter().map(matched).collect()).collect())
        .collect();
    let action = match policy.action {
        Action::Allow => "Allow",
        Action::Audit => "Audit",
        Action::Custom => "Custom",
        Action::Deny => "Deny",
    };
    let scope = match policy.scope(&mesh.settings.root_namespace) {
        Scope::Mesh => "Global",
        Scope::Namespace => "Namespace",
        Scope::Waypoint | Scope::Workload => "WorkloadSelector",
    };
    Some(json!({"name": policy.name, "namespace": policy.namespace, "scope": scope, "action": action,
                "dryRun": policy.dry_run, "rules": rules}))
}

fn matched(of: &L4Match) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, not: &str, values: (Vec<Value>, Vec<Value>)| {
        for (name, values) in [(name, values.0), (not, values.1)] {
            if !values.is_empty() {
                fields.insert(name.to_owned(), Value::Array(values));
            }
        }
    };
    put("namespaces", "notNamespaces", both(&of.namespaces, text));
    put("principals", "notPrincipals", both(&of.principals, text));
    put(
        "serviceAccounts",
        "notServiceAccounts",
        both(&of.accounts, |account| json!({"namespace": account.namespace, "serviceAccount": account.name})),
    );
    put("sourceIps", "notSourceIps", both(&of.sources, |block| json!(block)));
    put("destinationIps", "notDestinationIps", both(&of.destinations, |block| json!(block)));
    put("destinationPorts", "notDestinationPorts", both(&of.ports, |port| json!(port)));
    Value::Object(fields)
}

fn both<T>(test: &Test<T>, write: fn(&T) -> Value) -> (Vec<Value>, Vec<Value>) {
    (test.any.iter().map(write).collect(), test.none.iter().map(write).collect())
}

fn text(pattern: &StringMatch) -> Value {
    match pattern {
        StringMatch::Exact(text) => json!({"Exact": text}),
        StringMatch::Prefix(text) => json!({"Prefix": text}),
        StringMatch::Present => json!({"Presence": []}),
        StringMatch::Suffix(text) => json!({"Suffix": text}),
    }
}

/// The policy that a workload's mutual-TLS setting means, and its rules; `None`: plaintext may come in everywhere.
fn strict(setting: &Strictness, namespace: &str, root: &str) -> Option<(String, Value)> {
    let anonymous = json!([{"Presence": []}]);
    if setting.ports.is_empty() {
        setting.default.as_ref()?;
        return Some((format!("{root}/{STRICT}"), json!([[[{"notPrincipals": anonymous}]]])));
    }
    let by = setting.default.iter().chain(setting.ports.values().flatten()).last()?;
    let name = by.0.split_once('/').map_or(by.0.as_str(), |(_, name)| name);
    let ports: Vec<u16> = setting.ports.keys().copied().collect();
    let field = if setting.default.is_some() { "notDestinationPorts" } else { "destinationPorts" };
    Some((format!("{namespace}/{CONVERTED}{name}"), json!([[[{"notPrincipals": anonymous, field: ports}]]])))
}
