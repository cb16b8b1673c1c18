//! From an app of a local pod into a tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use culvert_common::{Decision, HBONE_PORT, Reason};
use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{PodProxy, Shared, Side, Stage, TunnelFlow, relay, rest_after};
use crate::hbone::client::{Connect, Route, TunnelError};
use crate::hbone::headers::{forwarded, unmapped};
use crate::sys;

/// Accepts what the connect hook leads here.
pub(super) async fn accept(
    listener: TcpListener,
    pod: Arc<PodProxy>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let (pod, shared) = (pod.clone(), shared.clone());
                tokio::spawn(async move { carry(stream, client, &pod, &shared).await });
            }
            Err(error) => rest_after(&pod, error).await,
        }
    }
}

async fn carry(stream: TcpStream, accepted: SocketAddr, pod: &PodProxy, shared: &Shared) {
    let begun = Instant::now();
    let mesh = &shared.mesh;
    let destination = match mesh.take_original_dst(pod.netns_cookie, accepted) {
        Ok(Some(destination)) => destination,
        // A process of the pod that connected to the listener by itself, or state that is gone: closed.
        Ok(None) => return refuse_unknown(&stream, accepted, pod, shared, ""),
        Err(error) => return refuse_unknown(&stream, accepted, pod, shared, &error.to_string()),
    };
    let (requested, target): (SocketAddr, SocketAddr) =
        (destination.requested.into(), destination.target.into());
    let own = pod.address_like(target.ip());
    let mut flow = TunnelFlow {
        side: Side::Source,
        stage: Stage::Opened,
        // The app's socket has a loopback address now; the world knows the pod's.
        client: SocketAddr::new(own.unwrap_or_else(|| unmapped(accepted.ip())), accepted.port()),
        requested,
        target,
        source: Some(pod.identity.clone()),
        destination: mesh.workload_identity(target.ip()),
        decision: Decision::allow(Reason::Allowed),
        error: String::new(),
    };
    let (Some(from), Some(peer)) = (own, flow.destination.clone()) else {
        sys::reset_on_close(&stream);
        let error = format!("{target} is no enrolled pod any more, or of a family that this pod lacks");
        return mesh.report(flow.refused(Reason::UnknownDestination, error));
    };
    let route = Route {
        source: pod.identity.clone(),
        destination: peer,
        address: SocketAddr::new(target.ip(), HBONE_PORT),
        from,
        netns: pod.netns_cookie,
    };
    let host = (requested != target).then(|| mesh.service_host(requested.ip())).flatten();
    let connect =
        Connect { target, forwarded: forwarded(flow.client, host.as_deref()), baggage: pod.baggage.clone() };
    let tunnel = match shared.pool.open(&pod.netns, &route, &connect).await {
        Ok(tunnel) => tunnel,
        Err(error) => {
            sys::reset_on_close(&stream);
            return mesh.report(flow.refused(reason(&error), error));
        }
    };
    let _ = sys::tune(&stream); // an option less is no reason to fail the connection
    mesh.report(flow.clone());
    shared.counters.open.fetch_add(1, Ordering::Relaxed);
    let (send, recv, lease) = tunnel.into_parts();
    let carried = relay::relay(stream, send, recv, &shared.counters.relayed_bytes).await;
    drop(lease);
    shared.counters.open.fetch_sub(1, Ordering::Relaxed);
    flow.stage = Stage::Closed {
        bytes_sent: carried.into_tunnel,
        bytes_received: carried.from_tunnel,
        duration: begun.elapsed(),
    };
    flow.error = carried.error;
    mesh.report(flow);
}

fn refuse_unknown(stream: &TcpStream, accepted: SocketAddr, pod: &PodProxy, shared: &Shared, error: &str) {
    sys::reset_on_close(stream);
    let flow = TunnelFlow {
        side: Side::Source,
        stage: Stage::Refused,
        client: accepted,
        requested: accepted,
        target: accepted,
        source: Some(pod.identity.clone()),
        destination: None,
        decision: Decision::refuse(Reason::NoOriginalDst),
        error: error.to_owned(),
    };
    shared.mesh.report(flow);
}

fn reason(error: &TunnelError) -> Reason {
    match error {
        TunnelError::WrongPeer(_) => Reason::WrongPeer,
        TunnelError::Status { status, .. } if *status == StatusCode::UNAUTHORIZED => Reason::PeerRefused,
        TunnelError::Status { status, .. } if *status == StatusCode::SERVICE_UNAVAILABLE => {
            Reason::UpstreamFailed
        }
        TunnelError::Status { .. } => Reason::BadRequest,
        TunnelError::Certificate(_)
        | TunnelError::Tcp { .. }
        | TunnelError::Timeout(_)
        | TunnelError::Tls { .. }
        | TunnelError::Http { .. } => Reason::TunnelFailed,
    }
}
