//! The input, in the order in which the checks ask for it: by name, by namespace, by label.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use super::input::Entry;
use super::message::Origin;
use super::{Code, Input, Message, Settings, foreign};
use crate::control::{Object, objects};
use crate::model::waypoint::{Choice, GATEWAY_NAME, chosen};
use crate::model::workload;
use crate::policy::{Attachment, AuthorizationPolicy, PeerAuthentication};
use crate::waypoint::CLASS;

mod callers;
mod select;
mod target;
mod workloads;

pub(super) use callers::{Callers, Group};
pub(super) use target::{Reach, Target};
pub(super) use workloads::{Enrolment, Workload};

/// Namespaces that every cluster has.
const BUILT_IN: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];

type Labels = std::collections::BTreeMap<String, String>;

/// Namespace and name.
pub(super) type Name<'a> = (&'a str, &'a str);

pub(super) struct Index<'a> {
    pub(super) settings: &'a Settings,
    pub(super) namespaces: HashMap<&'a str, Item<'a, objects::Namespace>>,
    pub(super) policies: Vec<Policy<'a>>,
    pub(super) peer_authentications: Vec<Authn<'a>>,
    pub(super) workloads: Vec<Workload<'a>>,
    pub(super) services: HashMap<Name<'a>, Item<'a, objects::Service>>,
    pub(super) service_entries: HashMap<Name<'a>, Entered<'a>>,
    pub(super) gateways: HashMap<Name<'a>, Item<'a, objects::Gateway>>,
    pub(super) gateway_classes: HashMap<&'a str, &'a objects::GatewayClass>,
    /// Every object.
    pub(super) objects: Vec<Origin<'a>>,
    /// Whatever may have a label that means something to the mesh.
    pub(super) labelled: Vec<Labelled<'a>>,
    /// The objects that make pods.
    pub(super) owners: Vec<Labelled<'a>>,
    pub(super) callers: Callers<'a>,
}

/// An object and where it is.
pub(super) struct Item<'a, T> {
    pub(super) object: &'a T,
    pub(super) origin: Origin<'a>,
}

pub(super) struct Policy<'a> {
    pub(super) object: &'a Arc<AuthorizationPolicy>,
    pub(super) origin: Origin<'a>,
    /// `None`: waypoints enforce it.
    pub(super) target: Option<Rc<Target>>,
}

pub(super) struct Authn<'a> {
    pub(super) object: &'a Arc<PeerAuthentication>,
    pub(super) origin: Origin<'a>,
    pub(super) target: Rc<Target>,
}

/// A ServiceEntry.
pub(super) struct Entered<'a> {
    pub(super) object: &'a objects::ServiceEntry,
    pub(super) origin: Origin<'a>,
    /// How many workloads it selects; `None`: it has no selector.
    pub(super) selected: Option<usize>,
}

/// An object that has labels, and the field that holds them.
pub(super) struct Labelled<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) labels: &'a Labels,
    pub(super) annotations: &'a Labels,
    pub(super) field: &'static str,
    /// Where a name in a label is looked up.
    pub(super) namespace: &'a str,
}

impl<'a> Index<'a> {
    /// Indexes `input`; objects that are there twice become messages.
    pub(super) fn new(input: &'a Input, settings: &'a Settings, messages: &mut Vec<Message>) -> Self {
        let mut found = Found::default();
        for (origin, entry) in unique(input, messages) {
            found.take(origin, entry);
        }
        let Found {
            namespaces, services, service_entries, gateways, gateway_classes, labelled, owners, ..
        } = found;
        let mut workloads = workloads::all(&found.pods, &namespaces);
        let mut targets = target::Targets::new(&mut workloads, &services);
        let service_entries = service_entries.into_iter().map(|(name, item)| {
            let selector = item.object.spec.workload_selector.as_ref().map(|selector| &selector.labels);
            let reach = |labels| Reach { namespace: name.0, selector: Some(labels) };
            let selected = selector.map(|labels| match labels.is_empty() {
                true => 0,
                false => targets.selected(reach(labels)).len(),
            });
            (name, Entered { object: item.object, origin: item.origin, selected })
        });
        let service_entries = service_entries.collect();
        let reach_of = |p: &'a Arc<PeerAuthentication>| Reach::of_authn(p, &settings.root_namespace);
        let own: Vec<_> = found.authn.iter().map(|(p, _)| targets.selected(reach_of(p))).collect();
        let authn: Vec<_> = found.authn.iter().map(|(p, _)| *p).collect();
        target::set_authn(&mut workloads, &authn, &own, &settings.root_namespace);
        let peer_authentications = found.authn.iter().map(|(object, origin)| {
            let target = targets.target(reach_of(object), &workloads, &services);
            Authn { object, origin: *origin, target }
        });
        let peer_authentications = peer_authentications.collect();
        let policies = found.policies.iter().map(|(object, origin)| {
            let reach = Reach::of_policy(object, &settings.root_namespace);
            let target = reach.map(|reach| targets.target(reach, &workloads, &services));
            Policy { object, origin: *origin, target }
        });
        let policies = policies.collect();
        let callers = Callers::new(&workloads, &found.accounts);
        Self {
            settings,
            namespaces,
            policies,
            peer_authentications,
            workloads,
            services,
            service_entries,
            gateways,
            gateway_classes,
            objects: found.objects,
            labelled,
            owners,
            callers,
        }
    }

    /// Whether the input has Namespace objects, and not this one.
    pub(super) fn lacks_namespace(&self, name: &str) -> bool {
        !self.namespaces.is_empty()
            && !self.namespaces.contains_key(name)
            && name != self.settings.root_namespace
            && !BUILT_IN.contains(&name)
    }

    /// The waypoint that an object with `labels` in `namespace` chooses, or that its namespace does for it.
    pub(super) fn waypoint(&self, labels: &'a Labels, namespace: &'a str) -> Option<Choice<'a>> {
        let home = self.namespaces.get(namespace);
        chosen(labels, namespace).or_else(|| chosen(&home?.object.metadata.labels, namespace))
    }

    /// Whether something in the input but waypoints may read rules of L7: a sidecar, or a gateway at the edge.
    pub(super) fn has_other_proxies(&self) -> bool {
        let of_waypoint = |workload: &Workload<'_>| {
            let name = workload.pod.metadata.labels.get(GATEWAY_NAME);
            let gateway =
                name.and_then(|name| self.gateways.get(&(workload.origin.namespace, name.as_str())));
            gateway.is_some_and(|item| item.object.spec.gateway_class_name == CLASS)
        };
        let mut proxies = self.workloads.iter().filter(|w| w.enrolment == Enrolment::Itself);
        let mut gateways = self.gateways.values();
        proxies.any(|workload| !of_waypoint(workload))
            || gateways.any(|item| item.object.spec.gateway_class_name != CLASS)
    }

    /// Whether the identities of `trust_domain` are the mesh's own.
    pub(super) fn trusts(&self, trust_domain: &str) -> bool {
        let settings = self.settings;
        settings.trust_domain == trust_domain
            || settings.trust_domain_aliases.iter().any(|t| t == trust_domain)
    }
}

impl Policy<'_> {
    /// Whether it decides connections at L4.
    pub(super) fn is_enforced(&self) -> bool {
        use crate::policy::Action;
        matches!(self.object.action, Action::Allow | Action::Deny)
            && self.object.attachment != Attachment::Waypoint
            && !self.object.dry_run
    }
}

/// Every object; of doubles the first.
fn unique<'a>(input: &'a Input, messages: &mut Vec<Message>) -> Vec<(Origin<'a>, &'a Entry)> {
    let mut seen: HashMap<(&str, &str, &str, &str), Origin<'a>> = HashMap::new();
    let mut kept = Vec::new();
    for file in &input.files {
        for entry in &file.entries {
            let Entry { document, metadata, .. } = entry;
            let (namespace, name) = (metadata.namespace.as_str(), metadata.name.as_str());
            let origin = Origin { file: &file.name, document, namespace, name };
            let group = document.api_version.rsplit_once('/').map_or("", |(group, _)| group);
            match seen.get(&(group, &document.kind, namespace, name)) {
                Some(first) => messages.push(origin.message(
                    Code::DuplicateObject,
                    "",
                    format!(
                        "The object is in the input twice: the first is at {}; remove one.",
                        first.place()
                    ),
                )),
                None => {
                    seen.insert((group, &document.kind, namespace, name), origin);
                    kept.push((origin, entry));
                }
            }
        }
    }
    kept
}

#[derive(Default)]
struct Found<'a> {
    namespaces: HashMap<&'a str, Item<'a, objects::Namespace>>,
    policies: Vec<(&'a Arc<AuthorizationPolicy>, Origin<'a>)>,
    authn: Vec<(&'a Arc<PeerAuthentication>, Origin<'a>)>,
    pods: Vec<(&'a objects::Pod, Labelled<'a>)>,
    services: HashMap<Name<'a>, Item<'a, objects::Service>>,
    service_entries: HashMap<Name<'a>, Item<'a, objects::ServiceEntry>>,
    gateways: HashMap<Name<'a>, Item<'a, objects::Gateway>>,
    gateway_classes: HashMap<&'a str, &'a objects::GatewayClass>,
    objects: Vec<Origin<'a>>,
    labelled: Vec<Labelled<'a>>,
    owners: Vec<Labelled<'a>>,
    accounts: HashSet<Name<'a>>,
}

impl<'a> Found<'a> {
    fn take(&mut self, origin: Origin<'a>, entry: &'a Entry) {
        let name = (origin.namespace, origin.name);
        let objects::Metadata { labels, annotations, .. } = &entry.metadata;
        let field = "metadata.labels";
        let labelled = Labelled { origin, labels, annotations, field, namespace: origin.namespace };
        self.objects.push(origin);
        if let Some(pod) = entry.pod() {
            return self.take_pod(pod, entry, labelled);
        }
        match &entry.document.object {
            Some(Object::AuthorizationPolicy(object)) => self.policies.push((object, origin)),
            Some(Object::PeerAuthentication(object)) => self.authn.push((object, origin)),
            Some(Object::Namespace(object)) => {
                self.namespaces.insert(origin.name, Item { object, origin });
                self.labelled.push(Labelled { namespace: origin.name, ..labelled });
            }
            Some(Object::Service(object)) => {
                self.services.insert(name, Item { object, origin });
                self.labelled.push(labelled);
            }
            Some(Object::ServiceAccount(_)) => {
                self.accounts.insert(name);
            }
            Some(Object::Gateway(object)) => {
                self.gateways.insert(name, Item { object, origin });
            }
            Some(Object::GatewayClass(object)) => {
                self.gateway_classes.insert(origin.name, object);
            }
            Some(Object::ServiceEntry(object)) => {
                self.service_entries.insert(name, Item { object, origin });
                self.labelled.push(labelled);
            }
            Some(Object::EndpointSlice(_) | Object::Node(_) | Object::Pod(_) | Object::WorkloadEntry(_))
            | None => {}
        }
    }

    fn take_pod(&mut self, pod: &'a objects::Pod, entry: &'a Entry, own: Labelled<'a>) {
        use objects::Phase;
        if matches!(pod.status.phase, Phase::Succeeded | Phase::Failed) {
            return;
        }
        let field = match foreign::template_field(&entry.document) {
            None => "metadata.labels",
            Some("spec.template") => "spec.template.metadata.labels",
            Some(_) => "spec.jobTemplate.spec.template.metadata.labels",
        };
        let labels = || Labelled {
            labels: &pod.metadata.labels,
            annotations: &pod.metadata.annotations,
            field,
            ..own
        };
        self.accounts.insert((own.namespace, workload::service_account(pod)));
        self.pods.push((pod, labels()));
        self.labelled.push(labels());
        if field != own.field {
            self.owners.push(own);
        }
    }
}
