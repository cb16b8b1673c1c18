//! What the admin server shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_common::Counter;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connections::ConnectionRow;
use super::explain::Explainer;
use super::observe::Observer;
use super::{config_dump, connections, redirection};
use crate::admin::View;
use crate::bpf::{Kernel, Short};
use crate::cli::SameNode;
use crate::control::Report;
use crate::identity::{CertInfo, CertStore};
use crate::model::Snapshot;
use crate::pods::PodState;
use crate::policy::Finding;
use crate::proxy::Shared;
use crate::telemetry::exposition::Format;
use crate::telemetry::flows::{FlowLog, FlowRecord, Names};
use crate::telemetry::log::LogControl;
use crate::telemetry::metrics::Metrics;

/// What the main task tells.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Whether the world has been put in force once.
    pub(super) reconciled: bool,
    /// Whether it has been told to stop, and takes no new tunnels.
    pub(super) draining: bool,
    /// Why the last change could not be put in force, as long as that holds.
    pub(super) stuck: Option<String>,
    /// What of the programs is not attached any more.
    pub(super) detached: Vec<String>,
    /// Why the kernel's events cannot be read, as long as that holds.
    pub(super) deaf: Option<String>,
    /// The maps that have no room for everything.
    pub(super) short: Vec<Short>,
    pub(super) pods: Vec<PodState>,
    pub(super) source: Report,
}

/// Read-only handles for the admin server.
pub(super) struct Published {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) state: watch::Receiver<State>,
    pub(super) flows: Arc<FlowLog>,
    pub(super) observer: Arc<Observer>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) proxy: Arc<Shared>,
    pub(super) certs: CertStore,
    pub(super) same_node: SameNode,
    pub(super) log: LogControl,
    /// Told when the agent is to stop.
    pub(super) quit: CancellationToken,
}

impl View for Published {
    fn pending(&self) -> Vec<String> {
        let state = self.state.borrow();
        if state.draining {
            return vec!["the end of open tunnels: the agent stops".to_owned()];
        }
        let first = (!state.reconciled).then(|| "first state from the control source".to_owned());
        let short = state.short.iter().map(ToString::to_string);
        let stuck = state.stuck.iter().map(|error| format!("the last change: {error}"));
        let deaf = state.deaf.iter().map(|error| format!("the kernel's events: {error}"));
        let certificates = uncertified(&self.certs.list());
        let detached = state.detached.iter().cloned();
        first.into_iter().chain(stuck).chain(short).chain(detached).chain(deaf).chain(certificates).collect()
    }

    fn metrics(&self, format: Format) -> String {
        let state = self.state.borrow();
        let count = |wanted: &str| state.pods.iter().filter(|pod| pod.state == wanted).count() as u64;
        let counters = &self.proxy.counters;
        let figure = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let metrics = Metrics {
            kernel: Counter::ALL.iter().map(|c| (*c, self.kernel.maps.counter(*c))).collect(),
            relayed_bytes: figure(&counters.bytes_sent) + figure(&counters.bytes_received),
            open_tunnels: figure(&counters.outbound_open) + figure(&counters.inbound_open),
            peer_connections: figure(&counters.inbound_connections),
            handshakes_failed: figure(&counters.handshakes_failed),
            busy_polls: crate::proxy::polls(),
            turned_away: figure(&counters.inbound_turned_away),
            abused: figure(&counters.inbound_abused),
            enrolled_pods: count("enrolled"),
            pending_pods: count("pending"),
            older_connections: state.pods.iter().map(|pod| pod.older_connections.len() as u64).sum(),
            pool_connections: self.proxy.pool.connections() as u64,
            pool_opened: self.proxy.pool.opened(),
            flow_events: self.observer.events(),
            synced: state.reconciled,
            stuck: state.stuck.is_some(),
            input_problems: state.source.problems.len() as u64,
            certificates: self
                .certs
                .list()
                .into_iter()
                .map(|cert| {
                    let end = cert.not_after.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second);
                    (cert.identity.to_string(), end)
                })
                .collect(),
            maps: self.kernel.maps.usage().unwrap_or_default(),
            policies: self.snapshots.borrow().compiled.notes.tallies(|id| self.kernel.maps.note_count(id)),
        };
        metrics.render(self.observer.traffic(), format)
    }

    fn flow_log(&self) -> Arc<FlowLog> {
        self.flows.clone()
    }

    fn open(&self, tunnels_only: bool) -> Result<Vec<FlowRecord>, String> {
        let snapshot = self.snapshots.borrow().clone();
        connections::records(&snapshot, &self.kernel, &self.proxy, tunnels_only)
            .map_err(|error| format!("the kernel's open connections cannot be read: {error}"))
    }

    fn names(&self) -> Arc<dyn Names + Send + Sync> {
        self.snapshots.borrow().clone()
    }

    fn events_lost(&self) -> u64 {
        self.kernel.maps.counter(Counter::EventsLost)
    }

    fn log(&self) -> &LogControl {
        &self.log
    }

    fn explain(&self, from: &str, to: &str) -> Result<String, String> {
        let snapshot = self.snapshots.borrow().clone();
        let explained = Explainer { snapshot: &snapshot, kernel: &self.kernel, same_node: self.same_node }
            .explain(from, to)?;
        Ok(format!("{:#}\n", Value::Array(explained)))
    }

    fn dump(&self) -> String {
        let snapshot = self.snapshots.borrow().clone();
        let state = self.state.borrow().clone();
        let mut identities: Vec<_> = snapshot
            .compiled
            .identities
            .iter()
            .map(|(id, spiffe)| json!({"id": id, "identity": spiffe}))
            .collect();
        identities.sort_by_key(|row| row["id"].as_u64());
        let verifier: Vec<_> = self
            .kernel
            .verified_instructions()
            .into_iter()
            .map(|(program, count)| json!({"program": program, "verified_instructions": count}))
            .collect();
        let dump = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": snapshot.mesh.settings.node,
            "workloads": redirection::workloads(&snapshot, &state.pods),
            "services": snapshot.service_rows(),
            "policies": policies(&snapshot),
            "findings": snapshot.compiled.findings,
            "certificates": self.certs.list(),
            "identities": identities,
            "pods": state.pods,
            "connections": self.connections(&snapshot),
            "source": state.source,
            "pending": self.pending(),
            "maps": self.kernel.maps.usage().unwrap_or_default(),
            "events_lost": self.events_lost(),
            "programs": verifier,
            "policy_rows": snapshot.compiled.rows.len(),
            "source_blocks": snapshot.compiled.sources.len(),
            "neighbours": super::neighbours::all(&self.kernel),
        });
        format!("{dump:#}\n")
    }

    fn config_dump(&self) -> String {
        let snapshot = self.snapshots.borrow().clone();
        let state = self.state.borrow().clone();
        let connections = self.connections(&snapshot);
        format!("{:#}\n", config_dump::dump(&snapshot.mesh, &state, &self.certs, &connections))
    }

    fn quit(&self) {
        self.quit.cancel();
    }
}

impl Published {
    fn connections(&self, snapshot: &Snapshot) -> Vec<ConnectionRow> {
        connections::all(snapshot, &self.kernel, &self.proxy).unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel's open connections cannot be read: the dump has none");
            Vec::new()
        })
    }
}

/// When no pod of this node has a certificate: none can have a tunnel. Those that wait for their first are not counted.
fn uncertified(certificates: &[CertInfo]) -> Option<String> {
    let used = || certificates.iter().filter(|cert| cert.users > 0);
    if used().any(|cert| cert.valid) {
        return None;
    }
    let why = used().find(|cert| !cert.error.is_empty())?;
    Some(format!("a certificate for any of {} identities: {}", used().count(), why.error))
}

/// Both kinds of policies, with what is notable about each.
fn policies(snapshot: &Snapshot) -> Vec<Value> {
    let root = &snapshot.mesh.settings.root_namespace;
    let notes = |findings: Vec<Finding>| -> Vec<String> { findings.into_iter().map(|f| f.message).collect() };
    let mut rows: Vec<Value> = snapshot
        .policy_rows()
        .into_iter()
        .map(|row| {
            json!({"namespace": row.namespace, "name": row.name, "kind": "AuthorizationPolicy", "action": row.action,
                   "scope": row.scope, "notes": notes(row.findings)})
        })
        .collect();
    for policy in &snapshot.mesh.peer_authentications {
        let scope = match () {
            () if policy.selector.is_some() => "workload",
            () if policy.namespace == *root => "mesh",
            () => "namespace",
        };
        rows.push(json!({"namespace": policy.namespace, "name": policy.name, "kind": "PeerAuthentication",
                         "action": policy.mode, "scope": scope, "notes": notes(policy.findings(root))}));
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::identity::{
        Ca, CaFiles, CaService, Compliance, EmbeddedCa, RemoteCa, RemoteConfig, ServiceConfig, SpiffeId,
    };

    /// A certificate store whose CA listens at `address`, or does not.
    fn store(dir: &std::path::Path, address: &str) -> CertStore {
        let config = RemoteConfig {
            address: address.to_owned(),
            root: dir.join("ca.crt"),
            token: dir.join("token"),
            cluster: "Kubernetes".to_owned(),
            ttl: Duration::from_secs(3600),
            compliance: Compliance::None,
        };
        CertStore::new(Ca::Remote(RemoteCa::new(config).unwrap()))
    }

    fn service(dir: &std::path::Path) -> CaService {
        let files = CaFiles { cert: dir.join("ca.crt"), key: dir.join("ca.key"), root: None, chain: None };
        let config = ServiceConfig {
            token: dir.join("token"),
            trust_domains: vec!["cluster.local".to_owned()],
            longest: Duration::from_secs(3600),
            names: vec!["127.0.0.1".to_owned()],
            compliance: Compliance::None,
        };
        CaService::new(EmbeddedCa::open_files(files, Duration::from_secs(3600)).unwrap(), config).unwrap()
    }

    async fn within(limit: Duration, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < limit, "not within {limit:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_node_without_any_certificate_is_not_ready_until_it_has_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "a-token-of-a-test").unwrap();
        let service = Arc::new(service(dir.path()));
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let certs = store(dir.path(), &address.to_string());
        assert_eq!(uncertified(&certs.list()), None, "nobody needs one");
        let _lease = certs.lease(&SpiffeId::new("cluster.local", "shop", "web"));
        let why = || uncertified(&certs.list());
        within(Duration::from_secs(5), || why().is_some()).await;
        let text = why().unwrap_or_default();
        assert!(
            text.starts_with("a certificate for any of 1 identities: ")
                && text.contains(&address.to_string()),
            "{text}"
        );
        tokio::spawn(service.serve(tokio::net::TcpListener::bind(address).await.unwrap()));
        within(Duration::from_secs(10), || why().is_none()).await;
    }
}
