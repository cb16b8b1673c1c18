//! The admin server: one unix socket for the CLI, and plain TCP for what Kubernetes, Prometheus and istioctl ask.
//!
//! Who may ask what is in [`pages`]; `docs/admin.md` tells it to users. The unix socket is root's and serves everything. 15000 is
//! ztunnel's admin port, for istioctl: the agent is in the node's network namespace, so everybody on the node can reach it, and it
//! serves neither what stops the agent nor what makes it work hard. Nothing secret is served anywhere: no keys, no tokens.

mod guard;
mod logging;
mod negotiate;
mod pages;
mod profiles;
pub(crate) mod query;
mod reply;
mod socket;
mod stream;

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::exposition::Format;
use crate::telemetry::flows::{FlowLog, FlowRecord, Names};
use crate::telemetry::log::LogControl;

/// ztunnel's admin port, for istioctl.
pub const ADMIN_PORT: u16 = 15000;
/// `/metrics`.
pub const METRICS_PORT: u16 = 15020;
/// `/healthz/ready`.
pub const READY_PORT: u16 = 15021;
/// Bytes of a request's first line and headers: more is answered 414 or 431.
const LONGEST_HEAD: usize = 16 << 10;
/// How long a request's head may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the admin server shows.
pub trait View: Send + Sync + 'static {
    /// Names of what readiness still waits for; empty means ready.
    fn pending(&self) -> Vec<String>;
    /// The metrics.
    fn metrics(&self, format: Format) -> String;
    /// The flow records.
    fn flow_log(&self) -> Arc<FlowLog>;
    /// What is open now, as records of its opening with the bytes so far; the error says what cannot be read.
    fn open(&self, tunnels_only: bool) -> Result<Vec<FlowRecord>, String>;
    /// What numbers and addresses in flow records are called now.
    fn names(&self) -> Arc<dyn Names + Send + Sync>;
    /// How many events of the kernel found no room, and so never became flow records.
    fn events_lost(&self) -> u64;
    /// The whole state as JSON.
    fn dump(&self) -> String;
    /// The same as ztunnel tells it, for istioctl.
    fn config_dump(&self) -> String;
    /// Why a connection is or is not allowed, as JSON; the error says what is wrong with the question.
    fn explain(&self, from: &str, to: &str) -> Result<String, String>;
    /// What is logged.
    fn log(&self) -> &LogControl;
    /// Stops the agent as SIGTERM does; asking again changes nothing.
    fn quit(&self);
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Audience {
    /// The unix socket: root on this node.
    Operator,
    /// The admin port: anybody on this node.
    Istioctl,
    /// The metrics port.
    Scraper,
    /// The readiness port.
    Kubelet,
}

/// Serves until `shutdown`. A TCP port that is taken is reported and left out: the unix socket is what must work. `admin_port` is
/// opened on loopback alone; 0: not at all.
///
/// # Errors
///
/// When the unix socket cannot be made.
pub async fn serve(
    view: Arc<dyn View>,
    socket: &Path,
    admin_port: u16,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let unix = socket::bind_unix(socket)?;
    let listen = |listener: TcpListener, audience: Audience| {
        let (view, shutdown) = (view.clone(), shutdown.clone());
        tokio::spawn(accept_tcp(listener, view, audience, shutdown));
    };
    for (port, audience) in [(METRICS_PORT, Audience::Scraper), (READY_PORT, Audience::Kubelet)] {
        match socket::bind_tcp(port).await {
            Ok(listener) => listen(listener, audience),
            Err(error) => tracing::warn!(port, %error, "cannot listen: this port will not answer"),
        }
    }
    for listener in socket::bind_loopback(admin_port).await {
        listen(listener, Audience::Istioctl);
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = unix.accept() => match accepted {
                    Ok((stream, _)) => spawn_connection(stream, view.clone(), Audience::Operator),
                    Err(error) => pause_after(&error).await,
                },
            }
        }
    });
    Ok(())
}

async fn accept_tcp(
    listener: TcpListener,
    view: Arc<dyn View>,
    audience: Audience,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((_, peer)) if audience == Audience::Istioctl && !guard::is_local(peer) => {
                    tracing::warn!(%peer, "turned away: only this node may ask here");
                }
                Ok((stream, _)) => spawn_connection(stream, view.clone(), audience),
                Err(error) => pause_after(&error).await,
            },
        }
    }
}

/// Out of descriptors, mostly: a short rest instead of a busy loop.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "admin: cannot accept");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn spawn_connection<S>(stream: S, view: Arc<dyn View>, audience: Audience)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let view = view.clone();
            // No page reads what is sent along.
            let (request, _) = request.into_parts();
            async move { Ok::<_, Infallible>(pages::answer(view, &request, audience).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(LONGEST_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "admin connection ended");
        }
    });
}

#[cfg(test)]
mod tests;
