//! What a pod's apps opened: from the loopback listener into a tunnel.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use culvert_common::{Decision, OUTBOUND_PORT, Reason};
use http::header::FORWARDED;
use http::{HeaderValue, Method, Request};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::{TcpListener, TcpStream};

use super::busy_poll;
use super::habits::Habits;
use super::open::Count;
use super::pod::Pod;
use super::relay::{Before, Fault, Stream, relay};
use super::socket::{next, reset};
use super::{Counters, Hop, Side, Stage, TunnelFlow};
use crate::hbone::{Destination, OpenError, Tunnel, authority, forwarded};

/// How many endpoints a connection tries.
const TRIES: usize = 2;

/// Accepts until the pod is stopped.
pub(super) async fn run(pod: Arc<Pod>, listener: TcpListener) {
    loop {
        let (tcp, app) = tokio::select! {
            accepted = next(&listener, &pod.info.name) => accepted,
            () = pod.stop.cancelled() => return,
        };
        busy_poll::heard();
        pod.tasks.spawn(serve(pod.clone(), tcp, app));
    }
}

async fn serve(pod: Arc<Pod>, tcp: TcpStream, app: SocketAddr) {
    let start = Instant::now();
    let opened = tokio::select! {
        opened = open(&pod, &tcp, app) => opened,
        () = pod.kill.cancelled() => return reset(tcp),
    };
    let (tunnel, mut flow, before) = match opened {
        Ok(opened) => opened,
        Err(flow) => {
            tracing::debug!(pod = pod.info.name, target = %flow.target, error = flow.error, "refused");
            Counters::add(&pod.shared.counters.refused, 1);
            pod.shared.mesh.report(*flow);
            return reset(tcp);
        }
    };
    let counters = &pod.shared.counters;
    Counters::add(&counters.outbound_opened, 1);
    let _open = Counters::open(&counters.outbound_open);
    let entry = pod.shared.open.enter(flow.clone());
    pod.shared.mesh.report(flow.clone());

    busy_poll::heard();
    let Tunnel { send, recv, outbox, slot } = tunnel;
    let end = async {
        pod.kill.cancelled().await;
        "the agent stopped serving the pod".to_owned()
    };
    let up = Count { all: &counters.bytes_sent, own: &entry.tunnel.bytes_sent };
    let down = Count { all: &counters.bytes_received, own: &entry.tunnel.bytes_received };
    let relayed = relay(tcp, Stream { send, recv, outbox }, (up, down), before, pin!(end)).await;
    let ended = slot.end();
    drop(slot);
    drop(entry);
    flow.stage = Stage::Closed {
        bytes_sent: relayed.to_tunnel,
        bytes_received: relayed.from_tunnel,
        duration: start.elapsed(),
    };
    let fault = relayed.fault.map_or_else(String::new, |fault| fault.to_string());
    flow.error = ended.map_or(fault, str::to_owned);
    pod.shared.mesh.report(flow);
}

/// Finds out where the app wanted to go and opens the tunnel there; what of the app went with the request. Fails with the flow to
/// report.
async fn open(
    pod: &Pod,
    tcp: &TcpStream,
    app: SocketAddr,
) -> Result<(Tunnel, TunnelFlow, Before), Box<TunnelFlow>> {
    let mesh = &pod.shared.mesh;
    let here = SocketAddr::new(app.ip(), OUTBOUND_PORT);
    let mut flow = TunnelFlow {
        side: Side::Source,
        stage: Stage::Opened,
        client: app,
        requested: here,
        target: here,
        hop: None,
        source: Some(pod.info.identity.clone()),
        destination: None,
        decision: Decision::allow(Reason::Allowed),
        error: String::new(),
    };
    let original = match mesh.take_original_dst(pod.info.netns_cookie, app) {
        Ok(Some(original)) => original,
        Ok(None) => {
            let here = tcp.local_addr().unwrap_or(here);
            let error = format!(
                "a connection from {app} reached the mesh's listener {here} without being led there: \
                 apps cannot use this port"
            );
            return Err(flow.refused(Reason::NoOriginalDst, error).into());
        }
        Err(error) => return Err(flow.refused(Reason::NoOriginalDst, error).into()),
    };
    flow.requested = original.requested.into();
    flow.target = original.target.into();
    let hops = match mesh.hops(flow.requested, flow.target, &pod.info.ips) {
        Ok(hops) => hops,
        Err((reason, error)) => return Err(flow.refused(reason, error).into()),
    };
    let last = hops.len().min(TRIES);
    let mut first = FirstWords::of(tcp);
    first.come(&pod.clients, flow.target.port()).await;
    for (n, hop) in hops.into_iter().take(TRIES).enumerate() {
        match through(pod, &hop, &mut flow, (app.port(), &mut first)).await {
            Ok(tunnel) => {
                if n > 0 && !hop.waypoint {
                    mesh.went_elsewhere(pod.info.netns_cookie, flow.requested, flow.target);
                }
                return Ok((tunnel, flow, first.into()));
            }
            Err((_, error, Retry::Safe)) if n + 1 < last => {
                tracing::debug!(pod = pod.info.name, target = %flow.target, error, "trying another endpoint");
            }
            Err((reason, error, _)) => return Err(flow.refused(reason, error).into()),
        }
    }
    Err(flow.refused(Reason::NoEndpoint, "there is nowhere to go").into())
}

/// What an app says while its tunnel is being opened.
struct FirstWords<'a> {
    tcp: &'a TcpStream,
    taken: Bytes,
    /// What the socket had to tell instead. It tells it once: to the relay this would look like an orderly end.
    broken: Option<Errno>,
}

impl<'a> FirstWords<'a> {
    /// Most requests fit; the rest follows through the relay.
    const MOST: usize = 4 << 10;

    fn of(tcp: &'a TcpStream) -> Self {
        Self { tcp, taken: Bytes::new(), broken: None }
    }

    /// Waits for something, for a moment: connect() may have woken this thread before the app could go on.
    async fn come(&mut self, habits: &Habits, port: u16) {
        self.so_far();
        if self.is_silent() && habits.is_at_once(port) {
            let come = busy_poll::ask(|| {
                self.so_far();
                !self.is_silent()
            });
            if let Some(came) = come.await {
                habits.learn(port, came);
            }
        }
    }

    fn is_silent(&self) -> bool {
        self.taken.is_empty() && self.broken.is_none()
    }

    /// The same once there was something, for a tunnel that is tried again.
    fn so_far(&mut self) -> Bytes {
        if self.is_silent() {
            let mut buffer = [0; Self::MOST];
            // Not by way of tokio, which has not asked yet what the socket is ready for.
            match recv(self.tcp.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(n) => self.taken = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => self.broken = Some(error),
            }
        }
        self.taken.clone()
    }
}

impl From<FirstWords<'_>> for Before {
    fn from(first: FirstWords<'_>) -> Self {
        Self {
            to_tunnel: first.taken.len() as u64,
            broken: first.broken.map(|error| Fault::Tcp(error.into())),
            ..Self::default()
        }
    }
}

/// Whether another endpoint may be tried.
enum Retry {
    /// No byte of the app has reached the other app, and nobody has refused it.
    Safe,
    Never,
}

/// Opens a tunnel by way of `hop`, which `flow` then names.
async fn through(
    pod: &Pod,
    hop: &Hop,
    flow: &mut TunnelFlow,
    (client, first): (u16, &mut FirstWords<'_>),
) -> Result<Tunnel, (Reason, String, Retry)> {
    flow.target = hop.authority;
    flow.destination = Some(hop.expected.identity().clone());
    if hop.waypoint {
        flow.decision = Decision::allow(Reason::Waypoint);
    }
    let Some(source_ip) = pod.info.ip_like(hop.address) else {
        let error = format!("{} has no address of the family of {}", pod.info.name, hop.address);
        return Err((Reason::TunnelFailed, error, Retry::Safe));
    };
    flow.client = SocketAddr::new(source_ip, client);
    let address = SocketAddr::new(hop.address, hop.port.unwrap_or(pod.shared.config.hbone_port));
    flow.hop = Some(address);
    let destination = Destination {
        source: pod.info.identity.clone(),
        source_ip,
        netns: pod.info.netns.clone(),
        netns_cookie: pod.info.netns_cookie,
        expected: hop.expected.clone(),
        address,
    };
    let request =
        request(pod, flow).map_err(|error| (Reason::TunnelFailed, error.to_string(), Retry::Never))?;
    let opened = pod.shared.pool.open_with(&destination, &request, &mut || first.so_far()).await;
    opened.map_err(|error| {
        let reason = error.reason();
        let retry = match (&error, reason) {
            (OpenError::Lost { .. }, _) => Retry::Never,
            (_, Reason::TunnelFailed | Reason::UpstreamFailed) => Retry::Safe,
            _ => Retry::Never,
        };
        (reason, error.to_string(), retry)
    })
}

fn request(pod: &Pod, flow: &TunnelFlow) -> http::Result<Request<()>> {
    let host = pod.shared.mesh.service_host(flow.requested.ip());
    let trace = format!("00-{:032x}-{:016x}-00", rand::random::<u128>(), rand::random::<u64>());
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority(flow.target))
        .header(FORWARDED, once(&forwarded(flow.client, host.as_deref()))?)
        .header("traceparent", once(&trace)?);
    let baggage = pod.info.baggage.get();
    if !baggage.is_empty()
        && let Ok(baggage) = HeaderValue::from_str(&baggage)
    {
        request = request.header("baggage", baggage);
    }
    request.body(())
}

/// A value that is never said again: it is to take no room in the peer's table (RFC 7541, 6.2.3).
fn once(text: &str) -> http::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}
