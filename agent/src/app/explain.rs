//! `culvert explain`: the verdict on a connection that nobody has made, by the same tables as the real ones.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_common::{
    ANY_IDENTITY, ANY_PORT, CLASS_BY_SOURCE, Decision, PolicyKey, Reason, UNKNOWN_IDENTITY,
};
use serde_json::{Value, json};

use crate::bpf::Kernel;
use crate::cli::SameNode;
use crate::identity::SpiffeId;
use crate::model::{Service, Snapshot, Waypoint, Workload};
use crate::policy::Applicable;
use crate::policy::evaluate::Question;
use crate::policy::explain::{Considered, consider, demands_mtls};

/// What an explanation is made from.
pub(super) struct Explainer<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) kernel: &'a Kernel,
    pub(super) same_node: SameNode,
}

/// Who connects.
struct Client<'a> {
    name: String,
    /// As given; a workload has its own.
    address: Option<IpAddr>,
    workload: Option<&'a Workload>,
    identity: Option<SpiffeId>,
}

impl Client<'_> {
    /// The address that it connects to `destination` from: of the same family when it has one, all zeros when nothing is
    /// known.
    fn address_for(&self, destination: IpAddr) -> IpAddr {
        let own = self.workload.map_or(&[][..], |w| &w.addresses);
        let same = own.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4());
        let unknown =
            if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.address.or(same.copied()).or(own.first().copied()).unwrap_or(unknown)
    }
}

/// Where to.
struct Server<'a> {
    name: String,
    address: SocketAddr,
    workload: Option<&'a Workload>,
    /// Why this node's pods are led there by the service that was asked for, or are not.
    choice: String,
    /// Where an enrolled client's connection goes instead: the waypoint decides.
    waypoint: Option<&'a Waypoint>,
    /// What is notable about that.
    note: String,
}

impl<'a> Explainer<'a> {
    /// One case for each different destination that `to` may lead to.
    pub(super) fn explain(&self, from: &str, to: &str) -> Result<Vec<Value>, String> {
        let client = self.client(from)?;
        let mut cases: Vec<Value> = Vec::new();
        for server in self.servers(to)? {
            let case =
                match server.waypoint.filter(|_| client.workload.is_some() && client.identity.is_some()) {
                    Some(waypoint) => by_waypoint(&client, &server, waypoint),
                    None => self.case(&client, &server),
                };
            // A waypoint stands for all endpoints behind it.
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        Ok(cases)
    }

    fn client(&self, from: &str) -> Result<Client<'a>, String> {
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

    fn servers(&self, to: &str) -> Result<Vec<Server<'a>>, String> {
        if let Ok(address) = to.parse::<SocketAddr>() {
            if let Some(service) = self.snapshot.service_by_vip(address.ip()) {
                return match service.passthrough && service.waypoint.is_none() {
                    true => Ok(vec![self.server(address, format!(" (for {})", service.full_name()))]),
                    false => self.behind(service, address.port()),
                };
            }
            return Ok(vec![self.server(address, String::new())]);
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
            Some(ip) => Ok(vec![self.server(SocketAddr::new(*ip, port), String::new())]),
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
        let (namespace, name) = (&service.namespace, &service.name);
        let served = service.ports.iter().find(|p| p.port == port);
        let served =
            served.ok_or_else(|| format!("to: service {namespace}/{name} has no TCP port {port}"))?;
        let mut servers: Vec<Server<'a>> = Vec::new();
        for endpoint in &served.endpoints {
            let server = Server {
                waypoint: self.snapshot.waypoint(service.waypoint),
                choice: service.explain_choice(served, *endpoint),
                note: self.snapshot.waypoint_note(service),
                ..self.server(*endpoint, format!(" (for {namespace}/{name}:{port})"))
            };
            // Once for each pod, not for each of its addresses.
            if !servers.iter().any(|known| known.name == server.name) {
                servers.push(server);
            }
        }
        let waypoint = self.snapshot.waypoint(service.waypoint);
        if let (true, Some(_), Some(vip)) = (servers.is_empty(), waypoint, service.vips.first()) {
            // It is not asked for endpoints.
            let address = SocketAddr::new(*vip, port);
            let server = self.server(address, format!(" (for {namespace}/{name}:{port})"));
            return Ok(vec![Server { waypoint, ..server }]);
        }
        if servers.is_empty() && service.choice.balancing.is_strict() {
            return Err(format!(
                "service {namespace}/{name} takes endpoints of this node only (internalTrafficPolicy: Local), and {} has none \
                 that is ready: connections to it are refused",
                self.snapshot.mesh.settings.node
            ));
        }
        if service.passthrough {
            return Err(format!(
                "service {namespace}/{name} has resolution NONE: connections go where they are addressed to; ask for address:port"
            ));
        }
        if servers.is_empty() {
            let notes = service.notes.join("; ");
            let why = if notes.is_empty() { String::new() } else { format!(" ({notes})") };
            return Err(format!(
                "service {namespace}/{name} has no ready endpoint{why}: connections to it are refused"
            ));
        }
        Ok(servers)
    }

    fn server(&self, address: SocketAddr, for_service: String) -> Server<'a> {
        let workload = self.snapshot.workload_by_ip(address.ip());
        let who =
            workload.map_or_else(|| address.to_string(), |w| format!("{}:{}", w.full_name(), address.port()));
        let waypoint = self.snapshot.waypoint(workload.and_then(|w| w.waypoint));
        Server {
            name: format!("{who}{for_service}"),
            address,
            workload,
            choice: String::new(),
            note: String::new(),
            waypoint,
        }
    }

    fn case(&self, client: &Client<'_>, server: &Server<'_>) -> Value {
        let enrolled = server.workload.filter(|w| w.enrolled);
        let source = client.address_for(server.address.ip());
        let (decision, considered, mtls, kernel) = match enrolled {
            Some(workload) => self.judged(client, source, server, workload),
            None => (Decision::allow(Reason::OutsideMesh), Vec::new(), String::new(), "not asked".to_owned()),
        };
        json!({
            "from": client.name,
            "source": source,
            "to": server.name,
            "verdict": if decision.allowed() { "allowed" } else { "refused" },
            "reason": decision.reason.as_str(),
            "policy": self.snapshot.policy_name(decision.policy).unwrap_or_default(),
            "path": self.path(client, server),
            "choice": server.choice,
            "source_identity": client.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            "destination_identity": enrolled.map(|w| w.identity.to_string()).unwrap_or_default(),
            "mtls": mtls,
            "note": self.snapshot.compiled.notes.text(decision.note).unwrap_or_default(),
            "considered": considered,
            "kernel": kernel,
        })
    }

    fn judged(
        &self,
        client: &Client<'_>,
        source: IpAddr,
        server: &Server<'_>,
        workload: &Workload,
    ) -> (Decision, Vec<Considered>, String, String) {
        let mesh = &self.snapshot.mesh;
        let port = server.address.port();
        let root = &mesh.settings.root_namespace;
        let question = Question {
            settings: &mesh.settings,
            namespace: &workload.namespace,
            labels: &workload.labels,
            behind: &workload.behind,
            peer: client.identity.as_ref(),
            source,
            destination: server.address.ip(),
            port,
        };
        let applicable = Applicable::new(root, &mesh.policies, &mesh.peer_authentications);
        let policies = applicable.policies(&workload.namespace, &workload.labels, &workload.behind);
        let considered = policies.into_iter().map(|policy| consider(&question, policy)).collect();
        let mtls = demands_mtls(&applicable.strictness(&workload.namespace, &workload.labels), port);
        let decision = self.snapshot.decide(server.address, source, client.identity.as_ref());
        (decision, considered, mtls, self.kernel_says(client, source, server.address))
    }

    /// The row that the programs find, and what it says.
    fn kernel_says(&self, client: &Client<'_>, source: IpAddr, server: SocketAddr) -> String {
        let Some(class) = self.snapshot.class_at(server.ip()) else {
            return "the workload has no policy class: refused".to_owned();
        };
        let identity = match &client.identity {
            None => UNKNOWN_IDENTITY,
            Some(id) => match self.snapshot.compiled.identities.get(id) {
                Some(number) => *number,
                None => {
                    return format!(
                        "class {class}: no rows for this identity; the agent judges it in the tunnel"
                    );
                }
            },
        };
        let port = server.port();
        let (key, decision) = self.kernel.maps.deciding_row(class, identity, source, port);
        let class = match key {
            Some(key) if key.class() != class => {
                format!("{} (by the client's address, of class {})", key.class(), class & !CLASS_BY_SOURCE)
            }
            _ => (class & !CLASS_BY_SOURCE).to_string(),
        };
        let verdict = if decision.allowed() { "allows" } else { "refuses" };
        let policy =
            self.snapshot.policy_name(decision.policy).map(|name| format!(" [{name}]")).unwrap_or_default();
        match key {
            Some(key) => format!(
                "class {class}, identity {identity}, port {port}: the row {} {verdict}{policy}",
                row(&key)
            ),
            None => format!("class {class}, identity {identity}, port {port}: no row: refuses"),
        }
    }

    fn path(&self, client: &Client<'_>, server: &Server<'_>) -> &'static str {
        let in_mesh = |w: Option<&Workload>| w.is_some_and(|w| w.enrolled);
        let source = client.workload;
        if !in_mesh(server.workload) {
            return "passthrough: the destination is not in the mesh";
        }
        if client.identity.is_none() {
            return "passthrough: the source is not in the mesh";
        }
        let same = source.is_some_and(|s| server.workload.is_some_and(|d| s.node == d.node));
        match (same, self.same_node) {
            (true, SameNode::Direct) => "direct: same node",
            (true, SameNode::Tunnel) => "tunnel: same node, --same-node=tunnel",
            (false, _) => "tunnel: another node",
        }
    }
}

/// The client's node asks no policy, and the destination's judges the waypoint.
fn by_waypoint(client: &Client<'_>, server: &Server<'_>, waypoint: &Waypoint) -> Value {
    let to = server
        .name
        .split_once(" (for ")
        .map_or(server.name.as_str(), |(_, service)| service.trim_end_matches(')'));
    let identities: BTreeSet<String> = waypoint.instances.iter().map(|(_, id)| id.to_string()).collect();
    json!({
        "from": client.name,
        "source": client.address_for(server.address.ip()),
        "to": to,
        "verdict": if waypoint.instances.is_empty() { "refused" } else { "allowed" },
        "reason": if waypoint.instances.is_empty() { Reason::NoWaypoint } else { Reason::Waypoint }.as_str(),
        "policy": "",
        "path": format!("tunnel: through waypoint {}; its policies decide", waypoint.full_name()),
        "source_identity": client.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        "destination_identity": identities.into_iter().collect::<Vec<_>>().join(","),
        "mtls": "",
        "note": server.note,
        "considered": [],
        "kernel": "not asked: the agent takes it to the waypoint",
    })
}

fn row(key: &PolicyKey) -> String {
    let identity = match key.identity() {
        ANY_IDENTITY => "any identity".to_owned(),
        number => format!("identity {number}"),
    };
    let port = match key.port() {
        ANY_PORT => "any port".to_owned(),
        number => format!("port {number}"),
    };
    format!("({identity}, {port})")
}
