//! The admin server: one unix socket for the CLI, and plain TCP for what Kubernetes and Prometheus ask.
//!
//! | where | path | answer |
//! | --- | --- | --- |
//! | unix socket, 15021 | `/healthz/ready` | 200 `ready`, or 500 with what is pending |
//! | unix socket, 15020 | `/metrics` | Prometheus text |
//! | unix socket | `/flows?since=SEQ` | flow records, a JSON object a line |
//! | unix socket | `/explain?from=WHO&to=WHERE` | why a connection is or is not allowed, JSON |
//! | unix socket | `/dump` | one JSON document: all that the agent knows, no secrets |

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

/// `/metrics`.
pub const METRICS_PORT: u16 = 15020;
/// `/healthz/ready`.
pub const READY_PORT: u16 = 15021;

/// What the admin server shows.
pub trait View: Send + Sync + 'static {
    /// Names of what readiness still waits for; empty means ready.
    fn pending(&self) -> Vec<String>;
    /// Prometheus text.
    fn metrics(&self) -> String;
    /// Flow records after `seq`, as JSON lines.
    fn flows(&self, seq: u64) -> String;
    /// The whole state as JSON.
    fn dump(&self) -> String;
    /// Why a connection is or is not allowed, as JSON; the error says what is wrong with the question.
    fn explain(&self, from: &str, to: &str) -> Result<String, String>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// The unix socket: root on this node.
    Operator,
    /// The metrics port.
    Scraper,
    /// The readiness port.
    Kubelet,
}

/// Serves until `shutdown`. A TCP port that is taken is reported and left out: the unix socket is what must work.
///
/// # Errors
///
/// When the unix socket cannot be made.
pub async fn serve(view: Arc<dyn View>, socket: &Path, shutdown: CancellationToken) -> io::Result<()> {
    let unix = bind_unix(socket)?;
    for (port, audience) in [(METRICS_PORT, Audience::Scraper), (READY_PORT, Audience::Kubelet)] {
        match bind_tcp(port).await {
            Ok(listener) => {
                let (view, shutdown) = (view.clone(), shutdown.clone());
                tokio::spawn(async move { accept_tcp(listener, view, audience, shutdown).await });
            }
            Err(error) => tracing::warn!(port, %error, "cannot listen: this port will not answer"),
        }
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

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn bind_tcp(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error)
            if error.kind() == io::ErrorKind::AddrNotAvailable
                || error.kind() == io::ErrorKind::Unsupported =>
        {
            TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await
        }
        result => result,
    }
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
                Ok((stream, _)) => spawn_connection(stream, view.clone(), audience),
                Err(error) => pause_after(&error).await,
            },
        }
    }
}

/// Out of descriptors, mostly: a short rest instead of a busy loop.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "admin: cannot accept");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

fn spawn_connection<S>(stream: S, view: Arc<dyn View>, audience: Audience)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let view = view.clone();
            async move { Ok::<_, Infallible>(answer(&*view, &request, audience)) }
        });
        let served =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        if let Err(error) = served {
            tracing::debug!(%error, "admin connection ended");
        }
    });
}

fn answer(view: &dyn View, request: &Request<Incoming>, audience: Audience) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is served\n".to_owned());
    }
    let operator = audience == Audience::Operator;
    match request.uri().path() {
        "/healthz/ready" if operator || audience == Audience::Kubelet => ready(&view.pending()),
        "/metrics" | "/stats/prometheus" if operator || audience == Audience::Scraper => {
            reply(StatusCode::OK, "text/plain; version=0.0.4", view.metrics())
        }
        "/flows" if operator => {
            reply(StatusCode::OK, "application/x-ndjson", view.flows(since(request.uri().query())))
        }
        "/explain" if operator => {
            let query = request.uri().query();
            match view.explain(parameter(query, "from"), parameter(query, "to")) {
                Ok(text) => reply(StatusCode::OK, "application/json", text),
                Err(why) => reply(StatusCode::BAD_REQUEST, "text/plain", format!("{why}\n")),
            }
        }
        "/dump" if operator => reply(StatusCode::OK, "application/json", view.dump()),
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "no such page\n".to_owned()),
    }
}

fn ready(pending: &[String]) -> Response<Full<Bytes>> {
    if pending.is_empty() {
        reply(StatusCode::OK, "text/plain", "ready\n".to_owned())
    } else {
        let text = format!("not ready, pending: {}\n", pending.join(", "));
        reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", text)
    }
}

fn since(query: Option<&str>) -> u64 {
    parameter(query, "since").parse().unwrap_or(0)
}

/// The value of `name=…`; names, addresses and ports need no escapes.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> &'a str {
    let mut pairs = query.unwrap_or("").split('&');
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or("")
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
