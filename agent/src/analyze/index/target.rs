//! The workloads that a policy is for, and what they have in common; worked out once for all policies of a scope.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use super::select::Selection;
use super::{Enrolment, Item, Name, Workload};
use crate::control::objects::{Protocol, Service, TargetPort};
use crate::model::workload::tcp_ports;
use crate::policy::{Attachment, AuthorizationPolicy, PeerAuthentication, strictness};

/// How far a policy reaches: a namespace (`""`: all), and the labels that it selects there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::analyze) struct Reach<'a> {
    pub(in crate::analyze) namespace: &'a str,
    pub(in crate::analyze) selector: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Reach<'a> {
    /// `None` for the policies of waypoints.
    pub(in crate::analyze) fn of_policy(policy: &'a AuthorizationPolicy, root: &str) -> Option<Self> {
        let namespace = if policy.namespace == root { "" } else { policy.namespace.as_str() };
        match &policy.attachment {
            Attachment::All => Some(Self { namespace, selector: None }),
            Attachment::Selector(selector) => Some(Self { namespace, selector: Some(selector) }),
            Attachment::Behind(_) | Attachment::Waypoint => None,
        }
    }

    /// One with a selector reaches its own namespace only; in the root namespace it is ignored.
    pub(in crate::analyze) fn of_authn(policy: &'a PeerAuthentication, root: &str) -> Self {
        let everywhere = policy.namespace == root && policy.selector.is_none();
        let namespace = if everywhere { "" } else { policy.namespace.as_str() };
        Self { namespace, selector: policy.selector.as_ref() }
    }
}

/// The workloads of a reach.
#[derive(Debug, Default)]
pub(in crate::analyze) struct Target {
    pub(in crate::analyze) workloads: Rc<[usize]>,
    /// The ports that their containers declare or that Services lead to.
    pub(in crate::analyze) ports: BTreeSet<u16>,
    /// Their Services' ports: the Service and the port behind it.
    pub(in crate::analyze) service_ports: BTreeMap<u16, (String, TargetPort)>,
    /// How many of them are in the mesh, or may be.
    pub(in crate::analyze) enrolled: usize,
    /// A PeerAuthentication that makes some of them STRICT.
    pub(in crate::analyze) strict: Option<String>,
}

type Services<'a> = HashMap<Name<'a>, Item<'a, Service>>;

pub(super) struct Targets<'a> {
    selection: Selection<'a>,
    selected: HashMap<Reach<'a>, Rc<[usize]>>,
    targets: HashMap<Reach<'a>, Rc<Target>>,
}

impl<'a> Targets<'a> {
    /// Also notes which services the workloads back.
    pub(super) fn new(workloads: &mut [Workload<'a>], services: &Services<'a>) -> Self {
        let selection = Selection::new(workloads);
        for (name, service) in services.iter().filter(|(_, s)| !s.object.spec.selector.is_empty()) {
            for n in selection.select(name.0, &service.object.spec.selector) {
                workloads[n].services.push(*name);
            }
        }
        workloads.iter_mut().for_each(|workload| workload.services.sort_unstable());
        Self { selection, selected: HashMap::new(), targets: HashMap::new() }
    }

    pub(super) fn selected(&mut self, reach: Reach<'a>) -> Rc<[usize]> {
        let none = BTreeMap::new();
        let select = || self.selection.select(reach.namespace, reach.selector.unwrap_or(&none)).into();
        self.selected.entry(reach).or_insert_with(select).clone()
    }

    pub(super) fn target(
        &mut self,
        reach: Reach<'a>,
        workloads: &[Workload<'a>],
        services: &Services<'a>,
    ) -> Rc<Target> {
        if let Some(known) = self.targets.get(&reach) {
            return known.clone();
        }
        let target = Rc::new(Target::new(self.selected(reach), workloads, services));
        self.targets.insert(reach, target.clone());
        target
    }
}

impl Target {
    fn new(selected: Rc<[usize]>, workloads: &[Workload<'_>], services: &Services<'_>) -> Self {
        let mut target = Self { workloads: selected.clone(), ..Self::default() };
        let mut seen: BTreeSet<Name<'_>> = BTreeSet::new();
        for workload in selected.iter().filter_map(|n| workloads.get(*n)) {
            target.ports.extend(tcp_ports(workload.pod).map(|p| p.container_port));
            target.enrolled += usize::from(workload.enrolment != Enrolment::Outside);
            if target.strict.is_none() {
                target.strict.clone_from(&workload.strict);
            }
            let new = workload.services.iter().filter(|name| seen.insert(**name));
            new.filter_map(|name| services.get(name)).for_each(|service| target.add(service));
        }
        target
    }

    fn add(&mut self, service: &Item<'_, Service>) {
        let name = format!("{}/{}", service.origin.namespace, service.origin.name);
        for port in service.object.spec.ports.iter().filter(|p| p.protocol == Protocol::Tcp) {
            let behind = match &port.target_port {
                None | Some(TargetPort::Number(0)) => TargetPort::Number(port.port),
                Some(target) => target.clone(),
            };
            if let TargetPort::Number(number) = behind {
                self.ports.insert(number);
            }
            self.service_ports.entry(port.port).or_insert_with(|| (name.clone(), behind));
        }
    }
}

/// Says for each workload which PeerAuthentication counts, and whether it is STRICT. `selected` is what each selects.
pub(super) fn set_authn(
    workloads: &mut [Workload<'_>],
    authn: &[&Arc<PeerAuthentication>],
    selected: &[Rc<[usize]>],
    root: &str,
) {
    let mut general: HashMap<&str, &PeerAuthentication> = HashMap::new();
    for (n, (policy, selected)) in authn.iter().zip(selected).enumerate() {
        if policy.selector.is_none() {
            let oldest = general.entry(&policy.namespace).or_insert(policy);
            if policy.age() < oldest.age() {
                *oldest = policy;
            }
        } else if policy.namespace != root {
            for workload in selected.iter() {
                let own = &mut workloads[*workload].authn;
                if own.is_none_or(|old| policy.age() < authn[old].age()) {
                    *own = Some(n);
                }
            }
        }
    }
    for workload in workloads {
        let namespace = workload.origin.namespace;
        let own = workload.authn.map(|n| authn[n].as_ref());
        // Those that cannot count are left out here, so that each workload costs the same.
        let candidates = [general.get(root).copied(), general.get(namespace).copied(), own];
        let labels = &workload.pod.metadata.labels;
        let setting = strictness(candidates.into_iter().flatten(), root, namespace, labels);
        workload.strict = setting.default.map(|by| by.0);
    }
}
