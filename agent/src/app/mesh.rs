//! What the proxy asks, answered from the current snapshot and the kernel maps.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use culvert_common::{
    Connection, Decision, FlowEvent, Hook, LocalKey, OriginalDst, Path, Reason, Tuple, UNKNOWN_IDENTITY,
};
use tokio::sync::watch;

use super::observe::Observer;
use super::route;
use crate::bpf::Kernel;
use crate::identity::SpiffeId;
use crate::model::{Snapshot, Workload};
use crate::pods::OlderConnection;
use crate::proxy::{Hop, Mesh, Side, Stage, TunnelFlow};
use crate::telemetry::flows::Names;

/// The mesh for the proxy.
pub(super) struct MeshView {
    kernel: Arc<Kernel>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    observer: Arc<Observer>,
}

impl MeshView {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        observer: Arc<Observer>,
    ) -> Self {
        Self { kernel, snapshots, observer }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }
}

impl Mesh for MeshView {
    fn hops(
        &self,
        requested: SocketAddr,
        target: SocketAddr,
        own: &[IpAddr],
    ) -> Result<Vec<Hop>, (Reason, String)> {
        let snapshot = self.snapshot();
        match route::waypoint_of(&snapshot, requested, own) {
            Some(waypoint) => route::to_waypoint(waypoint, requested, own),
            None => route::to_workload(&snapshot, requested, target),
        }
    }

    fn service_host(&self, vip: IpAddr) -> Option<String> {
        self.snapshot().service_by_vip(vip).map(|s| s.hostname.clone())
    }

    fn decide(&self, destination: SocketAddr, client: IpAddr, peer: &SpiffeId) -> Decision {
        self.snapshot().decide(destination, client, Some(peer))
    }

    fn take_original_dst(&self, netns: u64, client: SocketAddr) -> io::Result<Option<OriginalDst>> {
        self.kernel.maps.take_original_dst(LocalKey::new(netns, client.into()))
    }

    fn put_original_src(&self, netns: u64, local: SocketAddr, client: SocketAddr) -> io::Result<()> {
        self.kernel.maps.put_original_src(LocalKey::new(netns, local.into()), client.into())
    }

    fn remove_original_src(&self, netns: u64, local: SocketAddr) {
        if let Err(error) = self.kernel.maps.remove_original_src(LocalKey::new(netns, local.into())) {
            tracing::warn!(%error, "an entry of original_src could not be removed");
        }
    }

    fn went_elsewhere(&self, netns: u64, requested: SocketAddr, target: SocketAddr) {
        if let Err(error) = self.kernel.maps.remember_backend(netns, requested.into(), target.into()) {
            tracing::warn!(%error, "the endpoint that a client was led to cannot be remembered: it may be led to another one next");
        }
    }

    fn report(&self, flow: TunnelFlow) {
        if flow.side == Side::Destination && matches!(flow.stage, Stage::Opened | Stage::Refused) {
            self.snapshot().compiled.notes.count(flow.decision.note);
        }
        self.observer.tunnel(flow);
    }
}

/// The event of an open connection that a change of policy ended.
pub(super) fn ended(tuple: Tuple, connection: Connection, decision: Decision) -> FlowEvent {
    let now = u64::try_from(crate::sys::since_boot().as_nanos()).unwrap_or(u64::MAX);
    let direct = connection.identity != UNKNOWN_IDENTITY;
    FlowEvent {
        time_ns: now,
        netns: connection.netns,
        bytes_sent: 0,
        bytes_received: 0,
        duration_ns: now.saturating_sub(connection.opened_ns),
        socket: 0,
        tuple,
        requested: tuple.destination(),
        verdict: decision.verdict as u32,
        reason: decision.reason as u32,
        policy: decision.policy,
        path: if direct { Path::Direct as u32 } else { Path::Passthrough as u32 },
        hook: Hook::Destroy as u32,
        source: connection.identity,
        destination: UNKNOWN_IDENTITY,
        note: decision.note,
        reserved: 0,
    }
}

/// The event of a connection from before its pod joined, which `--end-older-connections` ended.
pub(super) fn ended_older(netns: u64, connection: &OlderConnection) -> FlowEvent {
    let tuple = Tuple::new(connection.client.into(), connection.server.into());
    let opened = Connection { opened_ns: 0, netns, socket: 0, identity: UNKNOWN_IDENTITY, reserved: 0 };
    let event = ended(tuple, opened, Decision::refuse(Reason::OlderThanEnrolment));
    let hook = if connection.inbound { Hook::Destroy } else { Hook::DestroyAtSource };
    FlowEvent { hook: hook as u32, duration_ns: 0, ..event }
}

impl Names for Snapshot {
    fn workload(&self, ip: IpAddr) -> Option<String> {
        self.workload_by_ip(ip).map(Workload::full_name)
    }

    fn owner(&self, ip: IpAddr) -> Option<String> {
        self.workload_by_ip(ip).map(|w| format!("{}/{}", w.namespace, w.owner.1))
    }

    fn service(&self, vip: IpAddr) -> Option<String> {
        self.service_by_vip(vip).map(|s| format!("{}/{}", s.namespace, s.name))
    }

    fn identity(&self, id: u32) -> Option<String> {
        self.identity_text(id).map(str::to_owned)
    }

    fn policy(&self, index: u32) -> Option<String> {
        self.policy_name(index).map(str::to_owned)
    }

    fn note(&self, id: u32) -> Option<String> {
        self.compiled.notes.text(id)
    }
}
