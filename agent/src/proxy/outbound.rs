//! What a pod's apps opened: from the loopback listener into a tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use culvert_common::{Decision, Reason};
use http::header::FORWARDED;
use http::{HeaderValue, Method, Request};
use tokio::net::{TcpListener, TcpStream};

use super::pod::Pod;
use super::relay::relay;
use super::socket::{next, reset};
use super::{Counters, Side, Stage, TunnelFlow};
use crate::hbone::{Destination, Tunnel, authority, forwarded};

/// Accepts until the pod is stopped.
pub(super) async fn run(pod: Arc<Pod>, listener: TcpListener) {
    loop {
        let (tcp, app) = tokio::select! {
            accepted = next(&listener, &pod.info.name) => accepted,
            () = pod.stop.cancelled() => return,
        };
        pod.tasks.spawn(serve(pod.clone(), tcp, app));
    }
}

async fn serve(pod: Arc<Pod>, tcp: TcpStream, app: SocketAddr) {
    let start = Instant::now();
    let opened = tokio::select! {
        opened = open(&pod, &tcp, app) => opened,
        () = pod.kill.cancelled() => return reset(tcp),
    };
    let (tunnel, mut flow) = match opened {
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
    pod.shared.mesh.report(flow.clone());

    let Tunnel { send, recv, slot } = tunnel;
    let end = async {
        pod.kill.cancelled().await;
        "the agent stopped serving the pod".to_owned()
    };
    let totals = (&counters.bytes_sent, &counters.bytes_received);
    let relayed = relay(tcp, (send, recv), totals, end).await;
    drop(slot);
    flow.stage = Stage::Closed {
        bytes_sent: relayed.to_tunnel,
        bytes_received: relayed.from_tunnel,
        duration: start.elapsed(),
    };
    flow.error = relayed.fault.map_or_else(String::new, |fault| fault.to_string());
    pod.shared.mesh.report(flow);
}

/// Finds out where the app wanted to go and opens the tunnel there. Fails with the flow to report.
async fn open(pod: &Pod, tcp: &TcpStream, app: SocketAddr) -> Result<(Tunnel, TunnelFlow), Box<TunnelFlow>> {
    let mesh = &pod.shared.mesh;
    let here = tcp.local_addr().unwrap_or(app);
    let mut flow = TunnelFlow {
        side: Side::Source,
        stage: Stage::Opened,
        client: app,
        requested: here,
        target: here,
        source: Some(pod.info.identity.clone()),
        destination: None,
        decision: Decision::allow(Reason::Allowed),
        error: String::new(),
    };
    let original = match mesh.take_original_dst(pod.info.netns_cookie, app) {
        Ok(Some(original)) => original,
        Ok(None) => {
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
    let target = flow.target;
    let Some(source_ip) = pod.info.ip_like(target.ip()) else {
        let error = format!("{} has no address of the family of {target}", pod.info.name);
        return Err(flow.refused(Reason::TunnelFailed, error).into());
    };
    flow.client = SocketAddr::new(source_ip, app.port());
    let Some(expected) = mesh.workload_identity(target.ip()) else {
        let error = format!("no enrolled workload has the address {}: it may just have gone", target.ip());
        return Err(flow.refused(Reason::OutsideMesh, error).into());
    };
    flow.destination = Some(expected.clone());

    let destination = Destination {
        source: pod.info.identity.clone(),
        source_ip,
        netns: pod.info.netns.clone(),
        netns_cookie: pod.info.netns_cookie,
        expected,
        address: SocketAddr::new(target.ip(), pod.shared.config.hbone_port),
    };
    let request = match request(pod, &flow) {
        Ok(request) => request,
        Err(error) => return Err(flow.refused(Reason::TunnelFailed, error).into()),
    };
    match pod.shared.pool.open(&destination, &request).await {
        Ok(tunnel) => Ok((tunnel, flow)),
        Err(error) => Err(flow.refused(error.reason(), error).into()),
    }
}

fn request(pod: &Pod, flow: &TunnelFlow) -> http::Result<Request<()>> {
    let host = (flow.requested.ip() != flow.target.ip())
        .then(|| pod.shared.mesh.service_host(flow.requested.ip()))
        .flatten();
    let trace = format!("00-{:032x}-{:016x}-00", rand::random::<u128>(), rand::random::<u64>());
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority(flow.target))
        .header(FORWARDED, forwarded(flow.client, host.as_deref()))
        .header("traceparent", trace);
    let baggage = pod.info.baggage.get();
    if !baggage.is_empty()
        && let Ok(baggage) = HeaderValue::from_str(&baggage)
    {
        request = request.header("baggage", baggage);
    }
    request.body(())
}
