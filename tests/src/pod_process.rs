//! The process in every lab pod: its servers, and its client. It takes requests as JSON lines on stdin and answers on
//! stdout; it ends when stdin does.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::soak::pod as soak;
use crate::transfers::pod as transfers;

/// What a pod runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodConfig {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) http: Vec<u16>,
    pub(crate) tcp: Vec<u16>,
}

/// What the client is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) url: Option<String>,
    pub(crate) method: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) tcp: Option<String>,
    pub(crate) send: String,
    pub(crate) send_bytes: u64,
    pub(crate) count: u32,
    pub(crate) timeout_ms: u64,
}

/// What came of one try.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Try {
    /// HTTP status; 0 without an answer.
    pub status: u16,
    /// The answer.
    pub body: String,
    /// `refused`, `reset`, `timeout` or another text; empty when all went well.
    pub error: String,
    /// The client's own end, when it got one.
    pub local: Option<SocketAddr>,
    /// The peer as getpeername() shows it.
    pub peer: Option<SocketAddr>,
    /// The client as the server saw it (HTTP only).
    pub seen: Option<SocketAddr>,
    /// Microseconds from connect() to the end of the answer.
    pub micros: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    Probe(Ask),
    Accepted,
    LoadStart { id: String, ask: Ask, connections: u32, rate: f64, new_connection_each: bool },
    LoadStop { id: String },
    Transfers(transfers::Task),
    Soak(soak::Task),
}

#[derive(Default)]
struct LoadStats {
    requests: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    errors: Mutex<BTreeMap<String, u64>>,
}

#[derive(Default)]
struct State {
    accepted: Mutex<Vec<SocketAddr>>,
    loads: Mutex<HashMap<String, Arc<LoadStats>>>,
    serving: transfers::Serving,
    flows: soak::Flows,
}

/// Runs the process.
pub(crate) fn run(config: PodConfig) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: PodConfig) -> Result<()> {
    let config = Arc::new(config);
    let state = Arc::new(State::default());
    for port in config.http.clone() {
        tokio::spawn(http_server(listen(port)?, config.clone(), state.clone()));
    }
    for port in config.tcp.clone() {
        tokio::spawn(tcp_server(listen(port)?, state.clone()));
    }
    let (answers, mut outgoing) = tokio::sync::mpsc::unbounded_channel::<String>();
    tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        while let Some(line) = outgoing.recv().await {
            if stdout.write_all(line.as_bytes()).await.is_err() || stdout.flush().await.is_err() {
                return;
            }
        }
    });
    let _ = answers.send("{\"id\":0}\n".to_owned());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let request: Value = serde_json::from_str(&line)?;
        let order: Order = serde_json::from_value(request["order"].clone())?;
        let (answers, state, id) = (answers.clone(), state.clone(), request["id"].clone());
        tokio::spawn(async move {
            let answer = obey(order, &state).await;
            let _ = answers.send(format!("{}\n", json!({"id": id, "answer": answer})));
        });
    }
    Ok(())
}

pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = bind(port)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Listens for both families.
pub(crate) fn bind(port: u16) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

async fn obey(order: Order, state: &Arc<State>) -> Value {
    match order {
        Order::Soak(task) => soak::obey(task, &state.flows).await,
        Order::Transfers(task) => transfers::obey(task, &state.serving).await,
        Order::Probe(ask) => {
            let mut tries = Vec::new();
            for _ in 0..ask.count.max(1) {
                tries.push(one(&ask).await);
            }
            json!(tries)
        }
        Order::Accepted => {
            let mut accepted = state.accepted.lock().unwrap_or_else(|e| e.into_inner());
            json!(std::mem::take(&mut *accepted))
        }
        Order::LoadStart { id, ask, connections, rate, new_connection_each } => {
            let stats = Arc::new(LoadStats::default());
            state.loads.lock().unwrap_or_else(|e| e.into_inner()).insert(id, stats.clone());
            let pause = Duration::from_secs_f64(f64::from(connections.max(1)) / rate.max(0.001));
            for _ in 0..connections.max(1) {
                tokio::spawn(load(ask.clone(), stats.clone(), pause, new_connection_each));
            }
            Value::Null
        }
        Order::LoadStop { id } => {
            let stats = state.loads.lock().unwrap_or_else(|e| e.into_inner()).remove(&id);
            let Some(stats) = stats else { return json!({"error": format!("no load {id}")}) };
            stats.stop.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let errors = stats.errors.lock().unwrap_or_else(|e| e.into_inner()).clone();
            json!({"requests": stats.requests.load(Ordering::Relaxed), "failed": stats.failed.load(Ordering::Relaxed),
                   "errors": errors})
        }
    }
}

/// One of the connections of a load. Requests go out at a steady pace whether or not earlier ones failed.
async fn load(ask: Ask, stats: Arc<LoadStats>, pause: Duration, fresh: bool) {
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut http, mut tcp) = (None, None);
    while !stats.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let result = match ask.url {
            Some(_) if !fresh => http_kept(&ask, &mut http).await,
            None if !fresh && !ask.send.is_empty() => tcp_kept(&ask, &mut tcp).await,
            _ => one(&ask).await,
        };
        stats.requests.fetch_add(1, Ordering::Relaxed);
        let error = match result.status {
            _ if !result.error.is_empty() => result.error,
            status if status >= 400 => format!("status {status}"),
            _ => continue,
        };
        (http, tcp) = (None, None);
        stats.failed.fetch_add(1, Ordering::Relaxed);
        *stats.errors.lock().unwrap_or_else(|e| e.into_inner()).entry(error).or_default() += 1;
    }
}

async fn one(ask: &Ask) -> Try {
    let begun = Instant::now();
    let mut result = Try::default();
    let limit = Duration::from_millis(ask.timeout_ms);
    let done = match (&ask.url, &ask.tcp) {
        (Some(url), _) => tokio::time::timeout(limit, http(ask, url, &mut result, &mut None)).await,
        (None, Some(address)) => tokio::time::timeout(limit, tcp(ask, address, &mut result)).await,
        (None, None) => Ok(Err(io::Error::other("neither url nor tcp"))),
    };
    result.error = told(done);
    result.micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    result
}

type Kept = Option<hyper::client::conn::http1::SendRequest<Full<Bytes>>>;

async fn http_kept(ask: &Ask, kept: &mut Kept) -> Try {
    let mut result = Try::default();
    let url = ask.url.clone().unwrap_or_default();
    let done =
        tokio::time::timeout(Duration::from_millis(ask.timeout_ms), http(ask, &url, &mut result, kept)).await;
    result.error = told(done);
    result
}

/// One echo on a connection that stays.
async fn tcp_kept(ask: &Ask, kept: &mut Option<TcpStream>) -> Try {
    let mut result = Try::default();
    let address = ask.tcp.clone().unwrap_or_default();
    let echo = async {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => connect(&address, &mut result).await?,
        };
        stream.write_all(ask.send.as_bytes()).await?;
        let mut body = vec![0; ask.send.len()];
        stream.read_exact(&mut body).await.map_err(cut)?;
        result.body = String::from_utf8_lossy(&body).into_owned();
        *kept = Some(stream);
        Ok(())
    };
    let done = tokio::time::timeout(Duration::from_millis(ask.timeout_ms), echo).await;
    result.error = told(done);
    result
}

/// An end in the middle of an answer was a cut.
fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::ConnectionReset, "closed without an answer")
        }
        _ => error,
    }
}

/// Why a try failed, or empty.
fn told(done: Result<io::Result<()>, tokio::time::error::Elapsed>) -> String {
    match done {
        Err(_) => "timeout".to_owned(),
        Ok(Err(error)) => classify(&error),
        Ok(Ok(())) => String::new(),
    }
}

pub(crate) fn classify(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            "reset".to_owned()
        }
        io::ErrorKind::TimedOut => "timeout".to_owned(),
        _ => error.to_string(),
    }
}

async fn connect(address: &str, result: &mut Try) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address}: no such name"));
    for address in tokio::net::lookup_host(address).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                result.local = stream.local_addr().ok();
                result.peer = stream.peer_addr().ok();
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn http(ask: &Ask, url: &str, result: &mut Try, kept: &mut Kept) -> io::Result<()> {
    let uri: hyper::Uri = url.parse().map_err(|e| io::Error::other(format!("url {url:?}: {e}")))?;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let address = if uri.port().is_some() { authority.clone() } else { format!("{authority}:80") };
    let mut sender = match kept.take() {
        Some(sender) => sender,
        None => {
            let stream = connect(&address, result).await?;
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(from_hyper)?;
            tokio::spawn(connection);
            sender
        }
    };
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().method(ask.method.as_str()).uri(path).header("host", authority);
    for (name, value) in &ask.headers {
        request = request.header(name.as_str(), value.as_str());
    }
    let request = request.body(Full::new(Bytes::from(ask.send.clone()))).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(from_hyper)?;
    result.status = response.status().as_u16();
    result.seen =
        response.headers().get("x-lab-peer").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let body = response.into_body().collect().await.map_err(from_hyper)?.to_bytes();
    result.body = String::from_utf8_lossy(&body).into_owned();
    *kept = Some(sender);
    Ok(())
}

/// The operating system's error inside hyper's; a connection that ended without an answer was cut.
fn from_hyper(error: hyper::Error) -> io::Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return io::Error::new(io.kind(), io.to_string());
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return io::Error::new(io::ErrorKind::ConnectionReset, "closed without an answer");
    }
    io::Error::other(error.to_string())
}

async fn tcp(ask: &Ask, address: &str, result: &mut Try) -> io::Result<()> {
    let mut stream = connect(address, result).await?;
    let (mut read, mut write) = stream.split();
    if ask.send_bytes == 0 {
        write.write_all(ask.send.as_bytes()).await?;
        write.shutdown().await?;
        let mut body = Vec::new();
        read.read_to_end(&mut body).await?;
        result.body = String::from_utf8_lossy(&body).into_owned();
        return Ok(());
    }
    let send = async {
        let mut hash = Sha256::new();
        let mut left = ask.send_bytes;
        let mut chunk = vec![0_u8; 64 << 10];
        while left > 0 {
            rand::rng().fill(&mut chunk[..]);
            let part = &chunk[..chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            hash.update(part);
            write.write_all(part).await?;
            left -= part.len() as u64;
        }
        write.shutdown().await?;
        io::Result::Ok(hash.finalize())
    };
    let receive = async {
        let mut hash = Sha256::new();
        let mut total = 0_u64;
        let mut chunk = vec![0_u8; 64 << 10];
        loop {
            let length = read.read(&mut chunk).await?;
            if length == 0 {
                return io::Result::Ok((hash.finalize(), total));
            }
            hash.update(&chunk[..length]);
            total += length as u64;
        }
    };
    let (sent, (received, total)) = tokio::try_join!(send, receive)?;
    if sent != received {
        return Err(io::Error::other(format!(
            "the echo of {} bytes came back changed ({total} bytes)",
            ask.send_bytes
        )));
    }
    result.body = format!("{total} bytes echoed, sha256 equal");
    Ok(())
}

async fn http_server(listener: TcpListener, config: Arc<PodConfig>, state: Arc<State>) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let local = stream.local_addr().ok();
        state.accepted.lock().unwrap_or_else(|e| e.into_inner()).push(peer);
        let config = config.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let config = config.clone();
                async move { Ok::<_, Infallible>(answer(&request, &config, peer, local)) }
            });
            // A client that breaks off is the client's affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    config: &PodConfig,
    peer: SocketAddr,
    local: Option<SocketAddr>,
) -> Response<Full<Bytes>> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let body = if request.uri().path() == "/echo" {
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in request.headers() {
            headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned());
        }
        let local = local.map(|l| SocketAddr::new(l.ip().to_canonical(), l.port()));
        let echo = json!({"method": request.method().as_str(), "path": request.uri().to_string(), "headers": headers,
            "peer": peer, "local": local, "pod": config.name, "version": config.version});
        format!("{echo}\n")
    } else {
        format!("{} {}\n", config.name, config.version)
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    if let Ok(value) = peer.to_string().parse() {
        response.headers_mut().insert("x-lab-peer", value);
    }
    response
}

async fn tcp_server(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((mut stream, peer)) = listener.accept().await else { continue };
        state.accepted.lock().unwrap_or_else(|e| e.into_inner()).push(peer);
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let mut chunk = vec![0_u8; 64 << 10];
            while let Ok(length) = read.read(&mut chunk).await {
                if length == 0 {
                    let _ = write.shutdown().await;
                    return;
                }
                if write.write_all(&chunk[..length]).await.is_err() {
                    return;
                }
            }
        });
    }
}
