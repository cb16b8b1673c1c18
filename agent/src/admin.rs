//! The admin server: one unix socket for the CLI, and plain TCP for what Kubernetes and Prometheus ask.
//!
//! | where | path | answer |
//! | --- | --- | --- |
//! | unix socket, 15021 | `/healthz/ready` | 200 `ready`, or 500 with what is pending |
//! | unix socket, 15020 | `/metrics` | Prometheus text |
//! | unix socket | `/flows` | flow records, a JSON object a line; see [`stream`] for the parameters |
//! | unix socket | `/explain?from=WHO&to=WHERE` | why a connection is or is not allowed, JSON |
//! | unix socket | `/log` | the log's filter, JSON; `POST /log?filter=FILTER` or `?reset` changes it |
//! | unix socket | `/dump` | one JSON document: all that the agent knows, no secrets |

pub(crate) mod query;
mod socket;
mod stream;

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::flows::{FlowLog, FlowRecord, Names};
use crate::telemetry::log::LogControl;
use query::Query;
use stream::{Records, Wanted};

/// `/metrics`.
pub const METRICS_PORT: u16 = 15020;
/// `/healthz/ready`.
pub const READY_PORT: u16 = 15021;
/// Bytes of a request's first line and headers: more is answered 414 or 431.
const LONGEST_HEAD: usize = 16 << 10;
/// The type of `/flows`: a JSON object a line.
const RECORDS: &str = "application/x-ndjson";
/// How long a request's head may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the admin server shows.
pub trait View: Send + Sync + 'static {
    /// Names of what readiness still waits for; empty means ready.
    fn pending(&self) -> Vec<String>;
    /// Prometheus text.
    fn metrics(&self) -> String;
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
    /// Why a connection is or is not allowed, as JSON; the error says what is wrong with the question.
    fn explain(&self, from: &str, to: &str) -> Result<String, String>;
    /// What is logged.
    fn log(&self) -> &LogControl;
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
    let unix = socket::bind_unix(socket)?;
    for (port, audience) in [(METRICS_PORT, Audience::Scraper), (READY_PORT, Audience::Kubelet)] {
        match socket::bind_tcp(port).await {
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
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn spawn_connection<S>(stream: S, view: Arc<dyn View>, audience: Audience)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let view = view.clone();
            async move { Ok::<_, Infallible>(answer(&view, &request, audience)) }
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

type Answer = Response<Either<Full<Bytes>, Records>>;

fn answer(view: &Arc<dyn View>, request: &Request<Incoming>, audience: Audience) -> Answer {
    let (path, query) = (request.uri().path(), request.uri().query());
    let served: &[Method] = match (audience, path) {
        (Audience::Operator, "/log") => &[Method::GET, Method::POST],
        (Audience::Operator, "/flows" | "/explain" | "/dump") => &[Method::GET],
        (Audience::Operator | Audience::Kubelet, "/healthz/ready") => &[Method::GET],
        (Audience::Operator | Audience::Scraper, "/metrics" | "/stats/prometheus") => &[Method::GET],
        _ => return text(StatusCode::NOT_FOUND, "no such page\n".to_owned()),
    };
    if !served.contains(request.method()) {
        return not_allowed(served);
    }
    match path {
        "/log" => json(log(view.log(), request.method(), query)),
        "/flows" => match Wanted::read(query) {
            Ok(wanted) if wanted.is_open() => match stream::open(&**view, &wanted) {
                Ok(lines) => reply(StatusCode::OK, RECORDS, Either::Left(Full::new(lines.into()))),
                Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
            },
            Ok(wanted) => {
                reply(StatusCode::OK, RECORDS, Either::Right(stream::records(view.clone(), wanted)))
            }
            Err(why) => json(Err(why)),
        },
        "/explain" => json(explain(&**view, query)),
        "/dump" => json(Ok(view.dump())),
        "/healthz/ready" => ready(&view.pending()),
        _ => {
            let body = Either::Left(Full::new(view.metrics().into()));
            reply(StatusCode::OK, "text/plain; version=0.0.4", body)
        }
    }
}

fn ready(pending: &[String]) -> Answer {
    if pending.is_empty() {
        text(StatusCode::OK, "ready\n".to_owned())
    } else {
        let why = format!("not ready, pending: {}\n", pending.join(", "));
        text(StatusCode::INTERNAL_SERVER_ERROR, why)
    }
}

fn explain(view: &dyn View, query: Option<&str>) -> Result<String, String> {
    let query = Query::parse(query, &["from", "to"])?;
    view.explain(query.get("from").unwrap_or(""), query.get("to").unwrap_or(""))
}

fn log(control: &LogControl, method: &Method, query: Option<&str>) -> Result<String, String> {
    let query = Query::parse(query, &["filter", "reset"])?;
    let state = match (method == Method::POST, query.get("filter"), query.get("reset")) {
        (false, None, None) => control.state(),
        (true, Some(filter), None) => control.set(filter)?,
        (true, None, Some(_)) => control.reset()?,
        _ => return Err("GET /log shows; POST /log?filter=FILTER or /log?reset changes".to_owned()),
    };
    serde_json::to_string(&state).map(|text| text + "\n").map_err(|error| error.to_string())
}

/// An error is the asker's.
fn json(result: Result<String, String>) -> Answer {
    match result {
        Ok(body) => reply(StatusCode::OK, "application/json", Either::Left(Full::new(body.into()))),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

fn not_allowed(served: &[Method]) -> Answer {
    let names = served.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {names} is served here\n"));
    if let Ok(names) = HeaderValue::from_str(&names) {
        response.headers_mut().insert(header::ALLOW, names);
    }
    response
}

fn text(status: StatusCode, body: String) -> Answer {
    reply(status, "text/plain", Either::Left(Full::new(body.into())))
}

fn reply(status: StatusCode, kind: &'static str, body: Either<Full<Bytes>, Records>) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
