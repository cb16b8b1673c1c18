//! Services and who is behind them.

use std::net::{IpAddr, SocketAddr};

use super::Workload;
use super::waypoint::{Canary, Unbound};
use crate::control::objects::{self, AddressType, EndpointSlice, Protocol, TargetPort};
use crate::policy::matches_labels;

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `name.namespace.svc.<domain>`.
    pub hostname: String,
    /// Virtual addresses; none when it is headless.
    pub vips: Vec<IpAddr>,
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
    /// Where connections go, both families, in a stable order.
    pub endpoints: Vec<SocketAddr>,
}

impl Service {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
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
            namespace: namespace.clone(),
            name: name.clone(),
            hostname: format!("{name}.{namespace}.svc.{cluster_domain}"),
            vips: vips(service),
            ports: ports(service),
            backing: 0,
            serving: 0,
            waypoint: None,
            canary: None,
            unbound: None,
        };
        if service.spec.selector.is_empty() {
            slices.iter().for_each(|slice| resolved.add_slice(slice));
        } else {
            pods.iter_mut().for_each(|pod| resolved.add_pod(service, pod));
        }
        for port in &mut resolved.ports {
            port.endpoints.sort_unstable();
            port.endpoints.dedup();
        }
        resolved
    }

    fn add_pod(&mut self, service: &objects::Service, pod: &mut Workload) {
        if !matches_labels(&service.spec.selector, &pod.labels) {
            return;
        }
        pod.services.push(format!("{}/{}", self.namespace, self.name));
        self.backing += 1;
        if !pod.ready && !service.spec.publish_not_ready_addresses {
            return;
        }
        self.serving += 1;
        for port in &mut self.ports {
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod.ports.get(name).copied(),
            };
            if let Some(target) = target {
                port.endpoints.extend(pod.addresses.iter().map(|ip| SocketAddr::new(*ip, target)));
            }
        }
    }

    fn add_slice(&mut self, slice: &EndpointSlice) {
        if slice.address_type == AddressType::Fqdn {
            return;
        }
        self.backing += slice.endpoints.len();
        for endpoint in slice.endpoints.iter().filter(|e| e.conditions.ready != Some(false)) {
            self.serving += 1;
            let addresses = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
            for ip in addresses {
                self.add_slice_address(slice, ip);
            }
        }
    }

    fn add_slice_address(&mut self, slice: &EndpointSlice, ip: IpAddr) {
        for port in &mut self.ports {
            let named = |p: &&objects::SlicePort| {
                p.protocol == Protocol::Tcp && p.name.as_deref().unwrap_or_default() == port.name
            };
            let number = slice.ports.iter().find(named).and_then(|p| p.port);
            port.endpoints.extend(number.map(|number| SocketAddr::new(ip, number)));
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
    })
    .collect()
}
