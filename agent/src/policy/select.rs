//! Which policies apply to a workload: indexed by namespace, so that the others cost nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Attachment, AuthorizationPolicy, PeerAuthentication, Scope, Strictness, strictness};

/// Whether `labels` has all of `selector`.
pub(crate) fn matches_labels(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The policies of a mesh, ready to be asked.
pub struct Applicable<'a> {
    root_namespace: &'a str,
    mesh: Bucket<'a>,
    by_namespace: HashMap<&'a str, Bucket<'a>>,
    /// By the waypoint that lets itself in.
    behind: HashMap<&'a str, &'a Arc<AuthorizationPolicy>>,
    authn: HashMap<&'a str, Vec<&'a PeerAuthentication>>,
}

/// The policies of a namespace. One with a selector is found by the first label that it asks for, so that a workload meets
/// only those that its own labels may fit.
#[derive(Default)]
struct Bucket<'a> {
    everywhere: Vec<&'a Arc<AuthorizationPolicy>>,
    by_label: HashMap<(&'a str, &'a str), Vec<&'a Arc<AuthorizationPolicy>>>,
}

impl<'a> Bucket<'a> {
    fn add(&mut self, policy: &'a Arc<AuthorizationPolicy>) {
        let label = match &policy.attachment {
            Attachment::Selector(selector) => selector.first_key_value(),
            Attachment::All | Attachment::Behind(_) | Attachment::Waypoint => None,
        };
        match label {
            Some((key, value)) => self.by_label.entry((key, value)).or_default().push(policy),
            None => self.everywhere.push(policy),
        }
    }

    fn candidates<'s>(
        &'s self,
        labels: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> + 's {
        let labelled =
            labels.iter().filter_map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str())));
        self.everywhere.iter().chain(labelled.flatten()).copied()
    }
}

impl<'a> Applicable<'a> {
    /// An index of these policies.
    pub fn new(
        root_namespace: &'a str,
        policies: impl IntoIterator<Item = &'a Arc<AuthorizationPolicy>>,
        authn: &'a [Arc<PeerAuthentication>],
    ) -> Self {
        let mut index = Self {
            root_namespace,
            mesh: Bucket::default(),
            by_namespace: HashMap::new(),
            behind: HashMap::new(),
            authn: HashMap::new(),
        };
        for policy in policies.into_iter().filter(|p| p.attachment != Attachment::Waypoint) {
            if let Attachment::Behind(waypoint) = &policy.attachment {
                index.behind.insert(waypoint, policy);
            } else if policy.namespace == root_namespace {
                index.mesh.add(policy);
            } else {
                index.by_namespace.entry(&policy.namespace).or_default().add(policy);
            }
        }
        for policy in authn {
            index.authn.entry(&policy.namespace).or_default().push(policy);
        }
        index
    }

    /// Those that apply to a workload `behind` these waypoints, in the order of namespace and name.
    pub fn policies(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        behind: &[Arc<str>],
    ) -> Vec<&'a Arc<AuthorizationPolicy>> {
        let own = self.by_namespace.get(namespace).into_iter().flat_map(|bucket| bucket.candidates(labels));
        let mut found: Vec<_> = self
            .mesh
            .candidates(labels)
            .chain(own)
            .filter(|policy| match &policy.attachment {
                Attachment::All => {
                    policy.namespace == namespace || policy.scope(self.root_namespace) == Scope::Mesh
                }
                Attachment::Selector(selector) => matches_labels(selector, labels),
                Attachment::Behind(_) | Attachment::Waypoint => false,
            })
            .chain(behind.iter().filter_map(|waypoint| self.behind.get(&**waypoint).copied()))
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
