//! Which policies apply to a workload: indexed by namespace, so that the others cost nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Attachment, AuthorizationPolicy, PeerAuthentication, Scope, Strictness, strictness};

/// Whether `labels` has all of `selector`.
pub(super) fn matches_labels(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The policies of a mesh, ready to be asked.
pub struct Applicable<'a> {
    root_namespace: &'a str,
    mesh: Vec<&'a Arc<AuthorizationPolicy>>,
    by_namespace: HashMap<&'a str, Vec<&'a Arc<AuthorizationPolicy>>>,
    authn: HashMap<&'a str, Vec<&'a PeerAuthentication>>,
}

impl<'a> Applicable<'a> {
    /// An index of these policies.
    pub fn new(
        root_namespace: &'a str,
        policies: &'a [Arc<AuthorizationPolicy>],
        authn: &'a [Arc<PeerAuthentication>],
    ) -> Self {
        let mut index =
            Self { root_namespace, mesh: Vec::new(), by_namespace: HashMap::new(), authn: HashMap::new() };
        for policy in policies.iter().filter(|p| p.attachment != Attachment::Waypoint) {
            if policy.namespace == root_namespace {
                index.mesh.push(policy);
            } else {
                index.by_namespace.entry(&policy.namespace).or_default().push(policy);
            }
        }
        for policy in authn {
            index.authn.entry(&policy.namespace).or_default().push(policy);
        }
        index
    }

    /// Those that apply to a workload, in the order of namespace and name.
    pub fn policies(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<&'a Arc<AuthorizationPolicy>> {
        let own = self.by_namespace.get(namespace).into_iter().flatten();
        let mut found: Vec<_> = self
            .mesh
            .iter()
            .chain(own)
            .copied()
            .filter(|policy| match &policy.attachment {
                Attachment::All => {
                    policy.namespace == namespace || policy.scope(self.root_namespace) == Scope::Mesh
                }
                Attachment::Selector(selector) => matches_labels(selector, labels),
                Attachment::Waypoint => false,
            })
            .collect();
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        found
    }

    /// Where the workload is STRICT.
    pub fn strictness(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Strictness {
        let of = |namespace: &str| self.authn.get(namespace).into_iter().flatten().copied();
        let own = (namespace != self.root_namespace).then(|| of(namespace)).into_iter().flatten();
        strictness(of(self.root_namespace).chain(own), self.root_namespace, namespace, labels)
    }
}
