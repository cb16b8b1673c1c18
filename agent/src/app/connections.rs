//! What is open now: connections into pods of this node that stay in the kernel, and the tunnels that the agent carries.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use culvert_common::{Connection, Decision, HOST_IDENTITY, Reason, Tuple, UNKNOWN_IDENTITY};
use jiff::Timestamp;
use serde::Serialize;

use crate::bpf::Kernel;
use crate::identity::SpiffeId;
use crate::model::{Snapshot, Workload};
use crate::proxy::{OpenTunnel, Shared, Side, Stage, TunnelFlow};
use crate::sys;
use crate::telemetry::flows::{FlowRecord, from_tunnel};

/// `culvert connections`: one end on this node. A connection between two pods of it has two rows.
#[derive(Clone, Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnectionRow {
    /// The pod's namespace.
    pub(super) namespace: String,
    /// `namespace/name` of the pod of this node.
    pub(super) workload: String,
    /// `Inbound` when the pod accepted it, `Outbound` when it opened it.
    pub(super) direction: &'static str,
    /// The pod's end.
    pub(super) local: SocketAddr,
    /// The other end.
    pub(super) remote: SocketAddr,
    /// `namespace/name:port` of the other end, empty when it is no pod of the mesh.
    pub(super) remote_name: String,
    /// What the pod asked for, where it opened it.
    pub(super) remote_target: Option<SocketAddr>,
    /// `namespace/name:port` of the service behind that; empty when it is none.
    pub(super) remote_target_name: String,
    /// `HBONE` through a tunnel, else `TCP`.
    pub(super) protocol: &'static str,
    /// `direct`, `tunnel`, or `passthrough` in plaintext.
    pub(super) path: &'static str,
    /// The client's SPIFFE id; empty when it proved none.
    pub(super) source_identity: String,
    /// The server's SPIFFE id.
    pub(super) destination_identity: String,
    /// From client to server, so far; unknown when it stays in the kernel.
    pub(super) bytes_sent: Option<u64>,
    /// From server to client, so far.
    pub(super) bytes_received: Option<u64>,
    /// RFC 3339.
    pub(super) opened: String,
    /// How long ago that was.
    pub(super) age_seconds: u64,
}

/// All of them, by workload.
///
/// # Errors
///
/// The kernel's map cannot be read.
pub(super) fn all(snapshot: &Snapshot, kernel: &Kernel, proxy: &Shared) -> io::Result<Vec<ConnectionRow>> {
    let mut rows: Vec<_> = proxy.open.list().iter().map(|tunnel| of_tunnel(snapshot, tunnel)).collect();
    let boot = sys::boot_time();
    for (tuple, connection) in kernel.maps.connections()? {
        rows.extend(of_kernel(snapshot, tuple, connection, boot));
    }
    rows.sort();
    Ok(rows)
}

fn of_tunnel(snapshot: &Snapshot, tunnel: &OpenTunnel) -> ConnectionRow {
    let flow = &tunnel.flow;
    let text = |id: &Option<SpiffeId>| id.as_ref().map_or_else(String::new, ToString::to_string);
    let (inbound, local, remote) = match flow.side {
        Side::Destination => (true, flow.target, flow.client),
        Side::Source => (false, flow.client, flow.target),
    };
    ConnectionRow {
        protocol: "HBONE",
        path: "tunnel",
        source_identity: text(&flow.source),
        destination_identity: text(&flow.destination),
        bytes_sent: Some(tunnel.bytes_sent.load(Ordering::Relaxed)),
        bytes_received: Some(tunnel.bytes_received.load(Ordering::Relaxed)),
        ..row(snapshot, (local, remote), (!inbound).then_some(flow.requested), tunnel.opened)
    }
}

/// The server's row, and the client's when that is a pod of this node.
fn of_kernel(
    snapshot: &Snapshot,
    tuple: Tuple,
    connection: Connection,
    boot: SystemTime,
) -> impl Iterator<Item = ConnectionRow> {
    let (client, server): (SocketAddr, SocketAddr) = (tuple.source().into(), tuple.destination().into());
    let opened = boot.checked_add(Duration::from_nanos(connection.opened_ns)).unwrap_or(boot);
    let serves = |w: &&Workload| w.enrolled && w.node == snapshot.mesh.settings.node;
    let owner = |end: SocketAddr| snapshot.workload_by_ip(end.ip()).filter(serves);
    let fill = |row| ConnectionRow {
        protocol: "TCP",
        path: if connection.identity == UNKNOWN_IDENTITY { "passthrough" } else { "direct" },
        source_identity: snapshot.identity_text(connection.identity).unwrap_or_default().to_owned(),
        destination_identity: owner(server).map_or_else(String::new, |w| w.identity.to_string()),
        ..row
    };
    let is_pod = connection.identity != UNKNOWN_IDENTITY && connection.identity != HOST_IDENTITY;
    let of_client = is_pod && owner(client).is_some();
    let inbound = fill(row(snapshot, (server, client), None, opened));
    // What it asked for is not kept in the kernel.
    let outbound = of_client.then(|| fill(row(snapshot, (client, server), None, opened)));
    std::iter::once(inbound).chain(outbound.map(|row| ConnectionRow { direction: "Outbound", ..row }))
}

/// Who the ends are.
fn row(
    snapshot: &Snapshot,
    (local, remote): (SocketAddr, SocketAddr),
    requested: Option<SocketAddr>,
    opened: SystemTime,
) -> ConnectionRow {
    let name =
        |name: Option<String>, port: u16| name.map_or_else(String::new, |name| format!("{name}:{port}"));
    let service = |end: SocketAddr| {
        let service = snapshot.service_by_vip(end.ip());
        name(service.map(|s| format!("{}/{}", s.namespace, s.name)), end.port())
    };
    let workload = snapshot.workload_by_ip(local.ip());
    ConnectionRow {
        namespace: workload.map_or_else(String::new, |w| w.namespace.clone()),
        workload: workload.map_or_else(String::new, Workload::full_name),
        direction: if requested.is_some() { "Outbound" } else { "Inbound" },
        local,
        remote,
        remote_name: name(snapshot.workload_by_ip(remote.ip()).map(Workload::full_name), remote.port()),
        remote_target: requested,
        remote_target_name: requested.map_or_else(String::new, service),
        protocol: "",
        path: "",
        source_identity: String::new(),
        destination_identity: String::new(),
        bytes_sent: None,
        bytes_received: None,
        opened: moment(opened),
        age_seconds: opened.elapsed().unwrap_or_default().as_secs(),
    }
}

/// What is open now as flow records of their opening (`seq` 0), with the bytes so far: tunnels, and unless `tunnels_only` what the
/// kernel keeps. Of a connection between two pods of this node that stays in the kernel only the server's end.
///
/// # Errors
///
/// The kernel's map cannot be read.
pub(super) fn records(
    snapshot: &Snapshot,
    kernel: &Kernel,
    proxy: &Shared,
    tunnels_only: bool,
) -> io::Result<Vec<FlowRecord>> {
    let mut records: Vec<_> =
        proxy.open.list().iter().map(|tunnel| record_of_tunnel(snapshot, tunnel)).collect();
    if !tunnels_only {
        let boot = sys::boot_time();
        let opened = |ns| boot.checked_add(Duration::from_nanos(ns)).unwrap_or(boot);
        for (tuple, connection) in kernel.maps.connections()? {
            records.push(record_of_kernel(snapshot, tuple, connection, opened(connection.opened_ns)));
        }
    }
    for record in &mut records {
        record.node.clone_from(&snapshot.mesh.settings.node);
    }
    Ok(records)
}

fn record_of_tunnel(snapshot: &Snapshot, tunnel: &OpenTunnel) -> FlowRecord {
    FlowRecord {
        time: moment(tunnel.opened),
        stage: "opened",
        bytes_sent: tunnel.bytes_sent.load(Ordering::Relaxed),
        bytes_received: tunnel.bytes_received.load(Ordering::Relaxed),
        ..from_tunnel(&tunnel.flow, snapshot)
    }
}

fn record_of_kernel(
    snapshot: &Snapshot,
    tuple: Tuple,
    connection: Connection,
    opened: SystemTime,
) -> FlowRecord {
    let (client, server): (SocketAddr, SocketAddr) = (tuple.source().into(), tuple.destination().into());
    let identity = snapshot.identity_text(connection.identity).map(str::to_owned);
    let serving = snapshot.workload_by_ip(server.ip()).filter(|workload| workload.enrolled);
    let flow = TunnelFlow {
        side: Side::Destination,
        stage: Stage::Opened,
        client,
        requested: server,
        target: server,
        hop: None,
        source: None,
        destination: serving.map(|workload| workload.identity.clone()),
        decision: Decision::allow(Reason::Judged),
        error: String::new(),
    };
    let mut record = from_tunnel(&flow, snapshot);
    record.time = moment(opened);
    record.path = if connection.identity == UNKNOWN_IDENTITY { "passthrough" } else { "direct" };
    record.source.identity = identity.unwrap_or_default();
    record
}

fn moment(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| String::new(), |time| time.to_string())
}
