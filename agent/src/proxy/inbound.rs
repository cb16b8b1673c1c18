//! What other workloads open to a pod: from an HBONE connection to the app.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use culvert_common::{Decision, Reason};
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::FORWARDED;
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::busy_poll;
use super::first_reply;
use super::guests::{Guest, Guests, Limits};
use super::open::Count;
use super::pod::Pod;
use super::relay::{Before, Fault, Stream, relay};
use super::request::{Refusal, check};
use super::socket::{connect_app, next, reset};
use super::{Counters, Side, Stage, TunnelFlow};
use crate::hbone::{
    Accepted, HandshakeError, Outbox, REASON_HEADER, REVOKED, accept, client_port, parse_authority,
};
use crate::identity::SpiffeId;

const GONE: &str = "the peer took its request back before the app answered";

/// Accepts until the pod is stopped. An address that has its share is hung up on; the others never wait for it.
pub(super) async fn run(pod: Arc<Pod>, listener: TcpListener) {
    let config = &pod.shared.config;
    let guests = Guests::new(Limits {
        handshakes: config.handshakes,
        per_peer: config.connections_per_peer,
        per_pod: config.connections_per_pod,
    });
    loop {
        let (tcp, from) = tokio::select! {
            accepted = next(&listener, &pod.info.name) => accepted,
            () = pod.stop.cancelled() => return,
        };
        match guests.admit(from.ip()) {
            Ok(guest) => drop(pod.tasks.spawn(connection(pod.clone(), tcp, from, guest))),
            Err(text) => {
                Counters::add(&pod.shared.counters.inbound_turned_away, 1);
                tracing::debug!(pod = pod.info.name, %from, text, "HBONE connection turned away");
                reset(tcp);
            }
        }
    }
}

async fn connection(pod: Arc<Pod>, tcp: TcpStream, from: SocketAddr, guest: Guest) {
    let here = tcp.local_addr().unwrap_or(from);
    // Boxed: a connection lives long, its handshake does not.
    let taken = tokio::select! {
        taken = Box::pin(handshake(&pod, tcp)) => taken,
        () = guest.hurried() => Err(failed(
            Reason::TunnelFailed,
            "the handshake took long, and its place was needed: its address has most of those going on".to_owned(),
        )),
        () = pod.kill.cancelled() => return,
    };
    guest.arrived();
    match taken {
        Ok(accepted) => requests(pod, accepted, from).await,
        Err(Refusal { reason, text, .. }) => {
            let target = SocketAddr::new(here.ip().to_canonical(), here.port());
            Counters::add(&pod.shared.counters.handshakes_failed, 1);
            if !text.is_empty() {
                refuse(&pod, base(&pod, from, target), Decision::refuse(reason), &text);
            }
        }
    }
}

fn failed(reason: Reason, text: String) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason, text }
}

/// Fails without text when the peer only looked whether the port is open.
async fn handshake(pod: &Pod, tcp: TcpStream) -> Result<Accepted, Refusal> {
    let cert = pod.shared.certs.get(&pod.info.identity).await;
    let cert = cert.map_err(|error| failed(Reason::TunnelFailed, error.to_string()))?;
    accept(tcp, &cert, &pod.shared.config.hbone).await.map_err(|error| match error {
        HandshakeError::HungUp => failed(Reason::TunnelFailed, String::new()),
        HandshakeError::WrongPeer(_) => failed(Reason::WrongPeer, error.to_string()),
        error => failed(Reason::TunnelFailed, error.to_string()),
    })
}

async fn requests(pod: Arc<Pod>, accepted: Accepted, from: SocketAddr) {
    let Accepted { peer, proof, mut connection } = accepted;
    let revoked = CancellationToken::new();
    let outbox = Outbox::new(pod.shared.config.hbone.outbox);
    let (config, counters) = (&pod.shared.config.hbone, &pod.shared.counters);
    let _open = Counters::open(&counters.inbound_connections);
    let mut pings = pin!(config.watch_pings(connection.ping_pong()));
    let mut idle = pin!(sleep(config.server_idle));
    let (mut draining, mut used) = (false, false);
    let end = loop {
        tokio::select! {
            request = connection.accept() => match request {
                Some(Ok((_, mut respond))) if revoked.is_cancelled() => {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
                Some(Ok((request, respond))) => {
                    used = true;
                    busy_poll::heard();
                    let client =
                        Client { peer: peer.clone(), from, revoked: revoked.clone(), outbox: outbox.clone() };
                    pod.tasks.spawn(serve(pod.clone(), client, request, respond));
                }
                Some(Err(error)) => {
                    if is_abuse(&error) {
                        Counters::add(&counters.inbound_abused, 1);
                    }
                    break error.to_string();
                }
                None => break String::new(),
            },
            problem = &mut pings => break problem,
            () = &mut idle => {
                if !used && !connection.has_streams() {
                    if draining {
                        break "nothing was asked for, and GOAWAY was not followed".to_owned();
                    }
                    tracing::debug!(pod = pod.info.name, %peer, %from, "idle HBONE connection: GOAWAY");
                    draining = true;
                    connection.graceful_shutdown();
                }
                used = false;
                idle.as_mut().reset(tokio::time::Instant::now() + config.server_idle);
            }
            () = proof.revoked(), if !revoked.is_cancelled() => {
                tracing::warn!(pod = pod.info.name, %peer, %from, "{REVOKED}: its tunnels are ended");
                revoked.cancel();
                draining = true;
                connection.graceful_shutdown();
            }
            () = pod.stop.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = pod.kill.cancelled() => break "drain deadline".to_owned(),
        }
    };
    tracing::debug!(pod = pod.info.name, %peer, %from, end, "HBONE connection ended");
}

/// The peer broke HTTP/2's rules or a limit, and the connection was ended for it.
fn is_abuse(error: &h2::Error) -> bool {
    error.is_library() || error.get_io().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// The other end of an HBONE connection.
struct Client {
    peer: SpiffeId,
    from: SocketAddr,
    /// Its certificate is no longer good.
    revoked: CancellationToken,
    /// What waits to be sent to it.
    outbox: Outbox,
}

async fn serve(
    pod: Arc<Pod>,
    client: Client,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let Client { peer, from, revoked, outbox } = client;
    let start = Instant::now();
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let target = parse_authority(authority);
    let forwarded = request.headers().get(FORWARDED).and_then(|value| value.to_str().ok());
    let port = forwarded.and_then(|text| client_port(text, from.ip())).unwrap_or(from.port());
    let mut flow = base(&pod, SocketAddr::new(from.ip(), port), target.unwrap_or(from));
    flow.source = Some(peer.clone());
    let policy = pod.shared.watch_policy();

    let (info, config) = (&pod.info, &pod.shared.config);
    let checked = check(request.method(), authority, (&info.name, &info.ips), &config.reserved_ports);
    let result = match checked {
        // A peer that resets the stream has its place again at once: the app's must not outlive it.
        Ok(target) => tokio::select! {
            result = admit(&pod, target, &mut flow, &peer) => result,
            _ = poll_fn(|cx| respond.poll_reset(cx)) => Err(failed(Reason::TunnelFailed, GONE.to_owned())),
        },
        Err(refusal) => Err(refusal),
    };
    let mut tcp = match result {
        Ok(tcp) => tcp,
        Err(refusal) => {
            answer_refusal(&mut respond, &refusal);
            let decision = match flow.decision {
                decision if decision.allowed() => Decision::refuse(refusal.reason),
                decision => decision,
            };
            return refuse(&pod, flow, decision, &refusal.text);
        }
    };
    let mut body = request.into_body();
    let before = tokio::select! {
        before = first_reply::wait(&mut tcp, &mut body, &pod.servers, flow.target.port()) => before,
        () = pod.kill.cancelled() => Before::default(), // which ends it
    };
    match respond.send_response(Response::new(()), false) {
        Ok(send) => {
            let stream = Stream { send, recv: body, outbox };
            carry(&pod, (tcp, stream), flow, (policy, revoked), (start, before)).await;
        }
        Err(error) => {
            let text = format!("the peer went away before the answer: {error}");
            refuse(&pod, flow, Decision::refuse(Reason::TunnelFailed), &text);
        }
    }
}

/// Policy, then the app.
async fn admit(
    pod: &Pod,
    target: SocketAddr,
    flow: &mut TunnelFlow,
    peer: &SpiffeId,
) -> Result<TcpStream, Refusal> {
    flow.decision = pod.shared.mesh.decide(target, flow.client.ip(), peer);
    if !flow.decision.allowed() {
        let reason = flow.decision.reason;
        let text = reason.as_str().to_owned();
        return Err(Refusal { status: StatusCode::UNAUTHORIZED, reason, text });
    }
    let connected = tokio::select! {
        connected = connect_app(pod, target, flow.client) => connected,
        () = pod.kill.cancelled() => Err(io::Error::other("the agent stopped serving the pod")),
    };
    connected.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::ConnectionRefused => ": nothing in the pod listens there",
            io::ErrorKind::TimedOut => ": the app does not accept connections",
            _ => "",
        };
        let text = format!("cannot connect to {target} in {}: {error}{hint}", pod.info.name);
        Refusal { status: StatusCode::SERVICE_UNAVAILABLE, reason: Reason::UpstreamFailed, text }
    })
}

fn answer_refusal(respond: &mut SendResponse<Bytes>, refusal: &Refusal) {
    let mut response = Response::new(());
    *response.status_mut() = refusal.status;
    if let Ok(text) = HeaderValue::from_str(&refusal.text) {
        response.headers_mut().insert(REASON_HEADER, text);
    }
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, "the peer went away before it was refused");
    }
}

async fn carry(
    pod: &Pod,
    (tcp, stream): (TcpStream, Stream),
    mut flow: TunnelFlow,
    (policy, revoked): (watch::Receiver<u64>, CancellationToken),
    (start, before): (Instant, Before),
) {
    let counters = &pod.shared.counters;
    Counters::add(&counters.inbound_opened, 1);
    let _open = Counters::open(&counters.inbound_open);
    let entry = pod.shared.open.enter(flow.clone());
    let up = Count { all: &counters.bytes_received, own: &entry.tunnel.bytes_received };
    let down = Count { all: &counters.bytes_sent, own: &entry.tunnel.bytes_sent };
    pod.shared.mesh.report(flow.clone());
    let mut refused = None;
    let end = async {
        tokio::select! {
            decision = no_longer_allowed(pod, &flow, policy) => {
                refused = Some(decision);
                format!("policy changed: {}", decision.reason.as_str())
            }
            () = pod.kill.cancelled() => "the agent stopped serving the pod".to_owned(),
            () = revoked.cancelled() => REVOKED.to_owned(),
        }
    };
    let relayed = relay(tcp, stream, (up, down), before, pin!(end)).await;
    drop(entry);
    flow.stage = Stage::Closed {
        bytes_sent: relayed.from_tunnel,
        bytes_received: relayed.to_tunnel,
        duration: start.elapsed(),
    };
    if let Some(decision) = refused {
        flow.decision = decision;
    }
    flow.error = relayed.fault.as_ref().map_or_else(String::new, Fault::to_string);
    pod.shared.mesh.report(flow);
}

/// Asks again whenever policy has changed, until the answer is no.
async fn no_longer_allowed(pod: &Pod, flow: &TunnelFlow, mut policy: watch::Receiver<u64>) -> Decision {
    loop {
        if policy.changed().await.is_err() {
            return std::future::pending().await;
        }
        let Some(peer) = &flow.source else { continue };
        let decision = pod.shared.mesh.decide(flow.target, flow.client.ip(), peer);
        if !decision.allowed() {
            return decision;
        }
    }
}

fn base(pod: &Pod, client: SocketAddr, target: SocketAddr) -> TunnelFlow {
    TunnelFlow {
        side: Side::Destination,
        stage: Stage::Opened,
        client,
        requested: target,
        target,
        hop: Some(SocketAddr::new(target.ip(), pod.shared.config.hbone_port)),
        source: None,
        destination: Some(pod.info.identity.clone()),
        decision: Decision::allow(Reason::Allowed),
        error: String::new(),
    }
}

fn refuse(pod: &Pod, mut flow: TunnelFlow, decision: Decision, text: &str) {
    tracing::debug!(pod = pod.info.name, client = %flow.client, target = %flow.target, text, "refused");
    Counters::add(&pod.shared.counters.refused, 1);
    flow.stage = Stage::Refused;
    flow.decision = decision;
    text.clone_into(&mut flow.error);
    pod.shared.mesh.report(flow);
}
