//! Services and who is behind them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::waypoint::{Canary, Unbound};
use super::{Choice, Workload};
use crate::control::Kind;
use crate::control::objects::{self, AddressType, EndpointSlice, Protocol, SliceConditions, TargetPort};
use crate::identity::SpiffeId;
use crate::policy::matches_labels;

/// The most slots that the weights of a port's endpoints are spread over.
const MAX_SLOTS: u64 = 256;

/// A Service, or a host of a ServiceEntry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// `Service` or `ServiceEntry`.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `name.namespace.svc.<domain>`; of a ServiceEntry, the host. Hosts of one ServiceEntry share its name.
    pub hostname: String,
    /// Virtual addresses; none when it is headless.
    pub vips: Vec<IpAddr>,
    /// `metadata.creationTimestamp` (RFC 3339, UTC: text sorts as time does); empty when the source gives none.
    pub created: String,
    /// Who may answer for it besides its endpoints themselves (`subjectAltNames`); `None`: nobody.
    pub answerers: Option<Arc<[SpiffeId]>>,
    /// Connections go where they are addressed to (`resolution: NONE`).
    pub passthrough: bool,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// How many pods it has that could serve it, ready or not.
    pub backing: usize,
    /// How many of those do.
    pub serving: usize,
    /// Where connections to its virtual addresses go first: its place in [`super::Mesh::waypoints`].
    pub waypoint: Option<usize>,
    /// Where some of these connections go instead.
    pub canary: Option<Canary>,
    /// Why the waypoint or the canary that is named for it does not count.
    pub unbound: Option<Unbound>,
    /// Which of its endpoints are used from this node.
    pub choice: Choice,
    /// What of it is not as it was meant to be.
    pub notes: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name, may be empty.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// The pod's port.
    pub target: TargetPort,
    /// Where connections of this node's pods may go, both families, in a stable order.
    pub endpoints: Vec<SocketAddr>,
    /// How much each of them is preferred: the higher, the rather; none: each is as good as the others.
    pub(super) ranks: Vec<u8>,
    /// Endpoints that end but still answer, in a stable order. They are among `endpoints` when none is ready.
    pub draining: Vec<SocketAddr>,
    /// How often an endpoint is there in the kernel's table, where that is more than once.
    pub(super) weights: BTreeMap<SocketAddr, u32>,
}

impl ServicePort {
    /// The endpoints of a family that this node's pods use now, each as often as its weight says.
    pub fn slots(&self, ipv4: bool) -> impl Iterator<Item = SocketAddr> {
        let weight = |end: &SocketAddr| self.weights.get(end).map_or(1, |n| *n as usize);
        self.preferred(ipv4).flat_map(move |end| std::iter::repeat_n(end, weight(&end)))
    }

    fn ends(&mut self, ready: bool) -> &mut Vec<SocketAddr> {
        if ready { &mut self.endpoints } else { &mut self.draining }
    }

    /// Makes the weights as small as they can be.
    fn spread(&mut self) {
        if self.weights.is_empty() {
            return;
        }
        let weight = |end: &SocketAddr| u64::from(self.weights.get(end).map_or(1, |n| *n));
        let all: u64 = self.endpoints.iter().map(weight).sum();
        let common = self.endpoints.iter().map(weight).fold(0, gcd).max(1);
        let scale = |weight: u64| match all / common {
            slots if slots > MAX_SLOTS => weight * MAX_SLOTS / all,
            _ => weight / common,
        };
        let spread = self.endpoints.iter().map(|end| (*end, scale(weight(end)) as u32));
        self.weights = spread.filter(|(_, n)| *n > 1).collect();
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Service {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// `namespace/hostname`: what istiod knows it by. A Service and a ServiceEntry may share their name.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }

    /// Where two have the same address, the first in this order has it: Services, then the oldest.
    pub(super) fn precedence(&self) -> (bool, &str) {
        match self.kind {
            Kind::ServiceEntry => (true, &self.created),
            _ => (false, ""),
        }
    }

    /// A Service that `pods` (of its namespace) may serve, or `slices` that name it.
    pub(super) fn new(
        service: &objects::Service,
        cluster_domain: &str,
        pods: &mut [&mut Workload],
        slices: &[&EndpointSlice],
    ) -> Self {
        let objects::Metadata { namespace, name, .. } = &service.metadata;
        let mut resolved = Self {
            kind: Kind::Service,
            namespace: namespace.clone(),
            name: name.clone(),
            hostname: format!("{name}.{namespace}.svc.{cluster_domain}"),
            vips: vips(service),
            ports: ports(service),
            created: service.metadata.creation_timestamp.clone().unwrap_or_default(),
            answerers: None,
            passthrough: false,
            backing: 0,
            serving: 0,
            waypoint: None,
            canary: None,
            unbound: None,
            choice: Choice::default(),
            notes: Vec::new(),
        };
        if service.spec.selector.is_empty() {
            slices.iter().for_each(|slice| resolved.add_slice(service, slice));
        } else {
            pods.iter_mut().for_each(|pod| resolved.add_pod(service, pod));
        }
        resolved.settle();
        resolved
    }

    /// Puts the endpoints in order.
    pub(super) fn settle(&mut self) {
        for port in &mut self.ports {
            for ends in [&mut port.endpoints, &mut port.draining] {
                ends.sort_unstable();
                ends.dedup();
            }
            port.spread();
        }
        self.notes.sort_unstable();
        self.notes.dedup();
    }

    fn add_pod(&mut self, service: &objects::Service, pod: &mut Workload) {
        if matches_labels(&service.spec.selector, &pod.labels) {
            self.add_member(pod, service.spec.publish_not_ready_addresses);
        }
    }

    /// A workload that is meant to serve it; `unready`: even when it is not ready.
    pub(super) fn add_member(&mut self, member: &mut Workload, unready: bool) {
        let key = self.key();
        if member.services.last() != Some(&key) {
            member.services.push(key);
        }
        if !member.trouble.is_empty() {
            self.notes.push(member.trouble.clone());
        }
        self.backing += 1;
        let ready = member.ready || unready;
        if (!ready && !member.draining) || member.addresses.is_empty() {
            return;
        }
        self.serving += usize::from(ready);
        for port in &mut self.ports {
            let Some(target) = target(self.kind, port, member) else { continue };
            for end in member.addresses.iter().map(|ip| SocketAddr::new(*ip, target)) {
                port.ends(ready).push(end);
                if member.weight > 1 {
                    port.weights.insert(end, member.weight);
                }
            }
        }
    }

    /// A condition that is not told is read as kube-proxy reads it: ready, serving, not terminating.
    fn add_slice(&mut self, service: &objects::Service, slice: &EndpointSlice) {
        if slice.address_type == AddressType::Fqdn {
            return;
        }
        self.backing += slice.endpoints.len();
        for endpoint in &slice.endpoints {
            let SliceConditions { ready, serving, terminating } = endpoint.conditions;
            let ready = ready != Some(false) || service.spec.publish_not_ready_addresses;
            if !ready && (serving == Some(false) || terminating != Some(true)) {
                continue;
            }
            self.serving += usize::from(ready);
            let addresses = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
            for ip in addresses {
                self.add_slice_address(slice, ip, ready);
            }
        }
    }

    fn add_slice_address(&mut self, slice: &EndpointSlice, ip: IpAddr, ready: bool) {
        for port in &mut self.ports {
            let named = |p: &&objects::SlicePort| {
                p.protocol == Protocol::Tcp && p.name.as_deref().unwrap_or_default() == port.name
            };
            let number = slice.ports.iter().find(named).and_then(|p| p.port);
            port.ends(ready).extend(number.map(|number| SocketAddr::new(ip, number)));
        }
    }
}

/// The port of `member` behind `port`. Services call ports of pods by their target's name; ServiceEntries, and what is no pod, by
/// the name of the service's port.
fn target(of: Kind, port: &ServicePort, member: &Workload) -> Option<u16> {
    match &port.target {
        TargetPort::Name(name) => member.ports.get(name).copied(),
        TargetPort::Number(number) => {
            let by_name = of == Kind::ServiceEntry || member.kind != Kind::Pod;
            let named = member.ports.get(&port.name).filter(|_| by_name && !port.name.is_empty());
            Some(named.copied().unwrap_or(*number))
        }
    }
}

fn vips(service: &objects::Service) -> Vec<IpAddr> {
    let spec = &service.spec;
    let mut vips: Vec<IpAddr> =
        spec.cluster_ips.iter().chain(&spec.cluster_ip).filter_map(|text| text.parse().ok()).collect();
    let mut seen = Vec::new();
    vips.retain(|ip| {
        !seen.contains(ip) && {
            seen.push(*ip);
            true
        }
    });
    vips
}

fn ports(service: &objects::Service) -> Vec<ServicePort> {
    let tcp = service.spec.ports.iter().filter(|p| p.protocol == Protocol::Tcp);
    tcp.map(|p| ServicePort {
        name: p.name.clone(),
        port: p.port,
        target: match &p.target_port {
            None | Some(TargetPort::Number(0)) => TargetPort::Number(p.port),
            Some(target) => target.clone(),
        },
        endpoints: Vec::new(),
        ranks: Vec::new(),
        draining: Vec::new(),
        weights: BTreeMap::new(),
    })
    .collect()
}
