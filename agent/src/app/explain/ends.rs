//! What the two ends of a question name: a pod, a service, an address, an identity.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Explainer;
use crate::identity::SpiffeId;
use crate::model::{Service, Waypoint, Workload};

/// Who connects.
pub(super) struct Client<'a> {
    pub(super) name: String,
    /// As given; a workload has its own.
    address: Option<IpAddr>,
    pub(super) workload: Option<&'a Workload>,
    pub(super) identity: Option<SpiffeId>,
}

impl Client<'_> {
    /// The address that it connects to `destination` from: of the same family when it has one, all zeros when nothing is
    /// known.
    pub(super) fn address_for(&self, destination: IpAddr) -> IpAddr {
        let own = self.workload.map_or(&[][..], |w| &w.addresses);
        let same = own.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4());
        let unknown =
            if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.address.or(same.copied()).or(own.first().copied()).unwrap_or(unknown)
    }
}

/// Where to.
pub(super) struct Server<'a> {
    /// The pod and its port, or the address.
    pub(super) who: String,
    /// The service that was asked for, with its port; empty: none.
    pub(super) service: String,
    pub(super) address: SocketAddr,
    pub(super) workload: Option<&'a Workload>,
    /// Why this node's pods are led there by that service, or are not.
    pub(super) choice: String,
    /// Where an enrolled client's connection goes instead: the waypoint decides.
    pub(super) waypoint: Option<&'a Waypoint>,
    /// What is notable about that.
    pub(super) note: String,
}

impl Server<'_> {
    /// For people.
    pub(super) fn shown(&self) -> String {
        match self.service.as_str() {
            "" => self.who.clone(),
            service => format!("{} (for {service})", self.who),
        }
    }
}

impl<'a> Explainer<'a> {
    pub(super) fn client(&self, from: &str) -> Result<Client<'a>, String> {
        if let Ok(identity) = from.parse::<SpiffeId>() {
            return Ok(Client {
                name: from.to_owned(),
                address: None,
                workload: None,
                identity: Some(identity),
            });
        }
        let address = from.parse::<IpAddr>().ok();
        let workload = match address {
            Some(ip) => self.snapshot.workload_by_ip(ip),
            None => Some(self.pod(from).ok_or_else(|| {
                format!("from: {from:?} is no pod that this node knows (namespace/pod), no address and no SPIFFE id")
            })?),
        };
        let identity = workload.filter(|w| w.enrolled).map(|w| w.identity.clone());
        let name = workload.map_or_else(|| from.to_owned(), Workload::full_name);
        Ok(Client { name, address, workload, identity })
    }

    fn pod(&self, name: &str) -> Option<&'a Workload> {
        self.snapshot.mesh.workloads.iter().find(|w| w.full_name() == name)
    }

    pub(super) fn servers(&self, to: &str) -> Result<Vec<Server<'a>>, String> {
        if let Ok(address) = to.parse::<SocketAddr>() {
            if let Some(service) = self.snapshot.service_by_vip(address.ip()) {
                return match service.passthrough && service.waypoint.is_none() {
                    true => Ok(vec![Server { service: service.full_name(), ..self.server(address) }]),
                    false => self.behind(service, address.port()),
                };
            }
            return Ok(vec![self.server(address)]);
        }
        let wrong = || {
            format!("to: {to:?}: write namespace/pod:port, namespace/service:port, host:port or address:port")
        };
        let (name, port) = to.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let Some((namespace, short)) = name.split_once('/') else {
            let mut named = self.snapshot.mesh.services.iter().filter(|service| service.hostname == name);
            let service = named.next().ok_or_else(|| format!("to: no service has the host name {name}"))?;
            return self.behind(service, port);
        };
        match self.pod(name).and_then(|pod| pod.addresses.first()) {
            Some(ip) => Ok(vec![self.server(SocketAddr::new(*ip, port))]),
            None => self.endpoints(namespace, short, port),
        }
    }

    fn endpoints(&self, namespace: &str, name: &str, port: u16) -> Result<Vec<Server<'a>>, String> {
        let services = &self.snapshot.mesh.services;
        let service = services.iter().find(|s| s.namespace == namespace && s.name == name);
        let service =
            service.ok_or_else(|| format!("to: this node knows no pod and no service {namespace}/{name}"))?;
        self.behind(service, port)
    }

    fn behind(&self, service: &Service, port: u16) -> Result<Vec<Server<'a>>, String> {
        let name = service.full_name();
        let served = service.ports.iter().find(|p| p.port == port);
        let served = served.ok_or_else(|| format!("to: service {name} has no TCP port {port}"))?;
        let waypoint = self.snapshot.waypoint(service.waypoint);
        let note = self.snapshot.waypoint_note(service);
        let server = |endpoint: SocketAddr| Server {
            service: format!("{name}:{port}"),
            choice: service.explain_choice(served, endpoint),
            waypoint,
            note: note.clone(),
            ..self.server(endpoint)
        };
        let mut servers: Vec<Server<'a>> = Vec::new();
        for server in served.endpoints.iter().copied().map(server) {
            // Once for each pod, not for each of its addresses.
            if !servers.iter().any(|known| known.who == server.who) {
                servers.push(server);
            }
        }
        match service.vips.first() {
            _ if !servers.is_empty() => Ok(servers),
            // A waypoint is not asked for endpoints.
            Some(vip) if waypoint.is_some() => Ok(vec![server(SocketAddr::new(*vip, port))]),
            _ => Err(self.nobody_behind(service)),
        }
    }

    /// Why a service leads nowhere.
    fn nobody_behind(&self, service: &Service) -> String {
        let name = service.full_name();
        if service.choice.balancing.is_strict() {
            let node = &self.snapshot.mesh.settings.node;
            return format!(
                "service {name} takes endpoints of this node only (internalTrafficPolicy: Local), and {node} has none that is \
                 ready: connections to it are refused"
            );
        }
        if service.passthrough {
            return format!(
                "service {name} has resolution NONE: connections go where they are addressed to; ask for address:port"
            );
        }
        let notes = service.notes.join("; ");
        let why = if notes.is_empty() { String::new() } else { format!(" ({notes})") };
        format!("service {name} has no ready endpoint{why}: connections to it are refused")
    }

    fn server(&self, address: SocketAddr) -> Server<'a> {
        let workload = self.snapshot.workload_by_ip(address.ip());
        let who =
            workload.map_or_else(|| address.to_string(), |w| format!("{}:{}", w.full_name(), address.port()));
        let waypoint = self.snapshot.waypoint(workload.and_then(|w| w.waypoint));
        Server {
            who,
            service: String::new(),
            address,
            workload,
            choice: String::new(),
            note: String::new(),
            waypoint,
        }
    }
}
