//! From a tunnel to an app of a local pod.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use culvert_common::{HBONE_PORT, OUTBOUND_PORT, Reason};
use h2::server::SendResponse;
use http::{Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{PodProxy, Shared, Side, Stage, TunnelFlow, relay, rest_after};
use crate::hbone::CONNECT_TIMEOUT;
use crate::hbone::headers::client_address;
use crate::hbone::server::{self, Incoming, refuse};
use crate::sys;

/// Tunnel connections of one pod that may be before or in their handshake at a time.
const HANDSHAKES: usize = 256;
/// Ports that only the mesh itself uses: a CONNECT to them would be a loop. 15006 is ztunnel's plaintext port.
const MESH_PORTS: [u16; 3] = [OUTBOUND_PORT, HBONE_PORT, 15006];

/// Accepts tunnel connections.
pub(super) async fn accept(
    listener: TcpListener,
    pod: Arc<PodProxy>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                rest_after(&pod, error).await;
                continue;
            }
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            sys::reset_on_close(&stream); // a flood: those who are let in must not suffer
            continue;
        };
        let (pod, shared) = (pod.clone(), shared.clone());
        tokio::spawn(async move {
            if let Err(error) = serve(stream, peer, &pod, &shared, permit).await {
                tracing::info!(pod = pod.name, %peer, error, "tunnel connection refused or broken");
            }
        });
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    pod: &Arc<PodProxy>,
    shared: &Arc<Shared>,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let config = shared.certs.certificate(&pod.identity).await?.server();
    let permit = Arc::new(std::sync::Mutex::new(Some(permit)));
    server::serve(stream, peer, config, move |incoming| {
        // The first request ends the handshake's claim.
        drop(permit.lock().ok().and_then(|mut p| p.take()));
        let (pod, shared) = (pod.clone(), shared.clone());
        async move { carry(incoming, &pod, &shared).await }
    })
    .await
}

async fn carry(incoming: Incoming, pod: &PodProxy, shared: &Shared) {
    let begun = Instant::now();
    let Incoming { peer, identity, target, forwarded, recv, mut respond } = incoming;
    let client = client_address(peer, forwarded.as_deref());
    let mut flow = TunnelFlow {
        side: Side::Destination,
        stage: Stage::Opened,
        client,
        requested: target,
        target,
        decision: shared.mesh.decide(target.ip(), target.port(), &identity),
        source: Some(identity),
        destination: Some(pod.identity.clone()),
        error: String::new(),
    };
    if !pod.ips.contains(&target.ip()) {
        let error = format!("ip mismatch: {} is not an address of {}", target.ip(), pod.name);
        return deny(respond, flow, shared, StatusCode::BAD_REQUEST, Reason::BadRequest, error);
    }
    if MESH_PORTS.contains(&target.port()) {
        let error = format!("port {} is reserved for the mesh", target.port());
        return deny(respond, flow, shared, StatusCode::SERVICE_UNAVAILABLE, Reason::MeshPort, error);
    }
    if !flow.decision.allowed() {
        refuse(respond, StatusCode::UNAUTHORIZED, flow.decision.reason.as_str());
        flow.stage = Stage::Refused;
        return shared.mesh.report(flow);
    }
    let app = match connect_app(pod, target, client, shared).await {
        Ok(app) => app,
        Err(error) => {
            let error = format!("cannot connect to {target}: {error}");
            return deny(
                respond,
                flow,
                shared,
                StatusCode::SERVICE_UNAVAILABLE,
                Reason::UpstreamFailed,
                error,
            );
        }
    };
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    let Ok(send) = respond.send_response(response, false) else {
        sys::reset_on_close(&app); // the client has gone while the app was being connected
        return;
    };
    shared.mesh.report(flow.clone());
    shared.counters.open.fetch_add(1, Ordering::Relaxed);
    let carried = relay::relay(app, send, recv, &shared.counters.relayed_bytes).await;
    shared.counters.open.fetch_sub(1, Ordering::Relaxed);
    flow.stage = Stage::Closed {
        bytes_sent: carried.from_tunnel,
        bytes_received: carried.into_tunnel,
        duration: begun.elapsed(),
    };
    flow.error = carried.error;
    shared.mesh.report(flow);
}

fn deny(
    respond: SendResponse<Bytes>,
    flow: TunnelFlow,
    shared: &Shared,
    status: StatusCode,
    why: Reason,
    error: String,
) {
    refuse(respond, status, &error);
    shared.mesh.report(flow.refused(why, error));
}

/// Connects to the app from the pod's own address; the app will see `client`.
async fn connect_app(
    pod: &PodProxy,
    target: SocketAddr,
    client: SocketAddr,
    shared: &Shared,
) -> io::Result<TcpStream> {
    let socket = sys::tcp_socket_in(&*pod.netns, SocketAddr::new(target.ip(), 0))?;
    let local = socket.local_addr()?;
    shared.mesh.put_original_src(pod.netns_cookie, local, client)?;
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(target)).await;
    let result =
        connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the app does not answer")));
    match result {
        Ok(stream) => {
            let _ = sys::tune(&stream); // an option less is no reason to fail the connection
            Ok(stream)
        }
        Err(error) => {
            shared.mesh.remove_original_src(pod.netns_cookie, local);
            Err(error)
        }
    }
}
