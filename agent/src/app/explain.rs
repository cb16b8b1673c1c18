//! `culvert explain`: the verdict on a connection that nobody has made, by the same tables as the real ones.

mod ends;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use culvert_common::{
    ANY_IDENTITY, ANY_PORT, CLASS_BY_SOURCE, Decision, PolicyKey, Reason, UNKNOWN_IDENTITY,
};
use serde_json::{Value, json};

use crate::bpf::Kernel;
use crate::cli::SameNode;
use crate::model::{Snapshot, Waypoint, Workload};
use crate::policy::Applicable;
use crate::policy::evaluate::Question;
use crate::policy::explain::{Considered, consider, demands_mtls};
use ends::{Client, Server};

/// What an explanation is made from.
pub(super) struct Explainer<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) kernel: &'a Kernel,
    pub(super) same_node: SameNode,
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
            "to": server.shown(),
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
    let identities: BTreeSet<String> = waypoint.instances.iter().map(|(_, id)| id.to_string()).collect();
    json!({
        "from": client.name,
        "source": client.address_for(server.address.ip()),
        "to": if server.service.is_empty() { &server.who } else { &server.service },
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
