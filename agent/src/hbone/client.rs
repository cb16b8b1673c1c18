//! Tunnels out of pods: a pool of connections, many streams on each.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use tokio::sync::Mutex as AsyncMutex;
use tokio_rustls::TlsConnector;

use super::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW, FRAME_SIZE, PING_INTERVAL, REASON_HEADER, STREAM_WINDOW, keep_alive,
};
use crate::identity::{CertStore, PeerError, SpiffeId};
use crate::sys;

/// Streams on one connection, at most; the peer's SETTINGS may say less.
const MAX_STREAMS: usize = 100;
/// A connection without streams is closed after this long.
const IDLE: Duration = Duration::from_secs(300);

/// One end of a pool: whose tunnel, and to whom.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Route {
    /// The client's identity.
    pub source: SpiffeId,
    /// The identity that the server must prove.
    pub destination: SpiffeId,
    /// The server's HBONE address.
    pub address: SocketAddr,
    /// The pod's address to connect from.
    pub from: IpAddr,
    /// Cookie of the client pod's namespace.
    pub netns: u64,
}

/// What is asked of the server.
#[derive(Clone, Debug)]
pub struct Connect {
    /// `:authority`.
    pub target: SocketAddr,
    /// `forwarded`.
    pub forwarded: String,
    /// `baggage`.
    pub baggage: String,
}

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No certificate for the client's identity.
    #[error("no certificate: {0}")]
    Certificate(String),
    /// The TCP connection failed.
    #[error("cannot connect to {address}: {source}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("connection to {0} timed out, maybe a NetworkPolicy is blocking HBONE port 15008")]
    Timeout(SocketAddr),
    /// The peer is not who it should be.
    #[error("{0}")]
    WrongPeer(String),
    /// TLS failed otherwise.
    #[error("TLS with {address}: {source}")]
    Tls {
        /// With whom.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// HTTP/2 failed.
    #[error("HTTP/2 with {address}: {source}")]
    Http {
        /// With whom.
        address: SocketAddr,
        /// Why.
        source: h2::Error,
    },
    /// The server refused the request.
    #[error("the peer answered {status}{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Status {
        /// HTTP status.
        status: StatusCode,
        /// Its reason, when it gives one.
        reason: String,
    },
}

/// An open tunnel.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    lease: Lease,
}

impl Tunnel {
    /// Towards the server, from the server, and what counts as a stream of the connection until it is dropped.
    pub fn into_parts(self) -> (SendStream<Bytes>, RecvStream, Lease) {
        (self.send, self.recv, self.lease)
    }
}

struct Shared {
    streams: AtomicUsize,
    closed: AtomicBool,
}

/// A stream's claim on its connection.
pub struct Lease(Arc<Shared>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Pooled {
    send: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

impl Pooled {
    fn open(&self) -> bool {
        !self.shared.closed.load(Ordering::Relaxed)
    }

    fn lease(&self) -> Option<Lease> {
        let limit = MAX_STREAMS.min(self.send.current_max_send_streams());
        let taken = self.shared.streams.fetch_add(1, Ordering::Relaxed);
        let lease = Lease(self.shared.clone());
        (self.open() && taken < limit).then_some(lease)
    }
}

type Connections = Arc<AsyncMutex<Vec<Pooled>>>;

/// The pool.
pub struct Pool {
    certs: CertStore,
    routes: Mutex<HashMap<Route, Connections>>,
}

impl Pool {
    /// An empty pool that takes its certificates from `certs`.
    pub fn new(certs: CertStore) -> Self {
        Self { certs, routes: Mutex::default() }
    }

    /// Opens a tunnel. `netns` is the client pod's namespace.
    ///
    /// A connection that turns out to be closing (GOAWAY) is replaced once: the request had not been accepted.
    ///
    /// # Errors
    ///
    /// [`TunnelError`] says which step failed.
    pub async fn open(&self, netns: &File, route: &Route, connect: &Connect) -> Result<Tunnel, TunnelError> {
        let mut retried = false;
        loop {
            let (send, lease) = self.stream(netns, route).await?;
            match request(send, lease, route.address, connect).await {
                Err(TunnelError::Http { source, .. }) if !retried && unprocessed(&source) => retried = true,
                result => return result,
            }
        }
    }

    /// A place on a connection: on one that is open, or on a new one. Callers of one route wait for each other here, so that
    /// a burst does not open a connection each.
    async fn stream(&self, netns: &File, route: &Route) -> Result<(SendRequest<Bytes>, Lease), TunnelError> {
        let connections = {
            let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            if routes.len() > 1024 {
                // Routes whose last user is gone and that hold no open connection.
                routes.retain(|_, c| {
                    Arc::strong_count(c) > 1 || c.try_lock().is_ok_and(|c| c.iter().any(Pooled::open))
                });
            }
            routes.entry(route.clone()).or_default().clone()
        };
        let mut connections = connections.lock().await;
        connections.retain(Pooled::open);
        for pooled in connections.iter() {
            if let Some(lease) = pooled.lease() {
                return Ok((pooled.send.clone(), lease));
            }
        }
        let pooled = self.connect(netns, route).await?;
        let lease = Lease(pooled.shared.clone());
        pooled.shared.streams.fetch_add(1, Ordering::Relaxed);
        let send = pooled.send.clone();
        connections.push(pooled);
        Ok((send, lease))
    }

    async fn connect(&self, netns: &File, route: &Route) -> Result<Pooled, TunnelError> {
        let certified = self.certs.certificate(&route.source).await.map_err(TunnelError::Certificate)?;
        let config =
            certified.client(&route.destination).map_err(|e| TunnelError::Certificate(e.to_string()))?;
        let address = route.address;
        let within = |error| TunnelError::Tcp { address, source: error };
        let socket = sys::tcp_socket_in(netns, SocketAddr::new(route.from, 0)).map_err(within)?;
        let stream = timed(address, socket.connect(address)).await?.map_err(within)?;
        sys::tune(&stream).map_err(within)?;
        let name = ServerName::IpAddress(address.ip().into());
        let tls = timed(address, TlsConnector::from(config).connect(name, stream)).await?;
        let tls = tls.map_err(|error| tls_error(address, error))?;
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_header_list_size(16 << 10)
            .max_send_buffer_size(STREAM_WINDOW as usize)
            .enable_push(false)
            .handshake(tls);
        let (send, connection) =
            timed(address, handshake).await?.map_err(|source| TunnelError::Http { address, source })?;
        let shared = Arc::new(Shared { streams: AtomicUsize::new(0), closed: AtomicBool::new(false) });
        tokio::spawn(drive(connection, shared.clone(), address));
        Ok(Pooled { send, shared })
    }
}

async fn timed<T>(address: SocketAddr, future: impl Future<Output = T>) -> Result<T, TunnelError> {
    tokio::time::timeout(CONNECT_TIMEOUT, future).await.map_err(|_| TunnelError::Timeout(address))
}

fn tls_error(address: SocketAddr, error: io::Error) -> TunnelError {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => match other
            .0
            .downcast_ref()
        {
            Some(
                peer @ (PeerError::NoIdentity | PeerError::Unexpected { .. } | PeerError::TrustDomain { .. }),
            ) => TunnelError::WrongPeer(peer.to_string()),
            None => TunnelError::Tls { address, source: error },
        },
        Some(rustls::Error::InvalidCertificate(why)) => {
            TunnelError::WrongPeer(format!("peer certificate: {why:?}"))
        }
        _ => TunnelError::Tls { address, source: error },
    }
}

/// Runs a connection until it ends, its peer falls silent, or nobody has used it for [`IDLE`].
async fn drive<T>(mut connection: h2::client::Connection<T, Bytes>, shared: Arc<Shared>, address: SocketAddr)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let alive = keep_alive(connection.ping_pong());
    let idle = idle(&shared);
    tokio::select! {
        ended = &mut connection => if let Err(error) = ended {
            tracing::debug!(%address, %error, "tunnel connection ended");
        },
        () = alive => tracing::info!(%address, "peer does not answer pings: closing tunnel connection"),
        () = idle => tracing::debug!(%address, "closing idle tunnel connection"),
    }
    shared.closed.store(true, Ordering::Relaxed);
}

async fn idle(shared: &Shared) {
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        if shared.streams.load(Ordering::Relaxed) > 0 {
            since = Instant::now();
        } else if since.elapsed() > IDLE {
            return;
        }
    }
}

async fn request(
    send: SendRequest<Bytes>,
    lease: Lease,
    address: SocketAddr,
    connect: &Connect,
) -> Result<Tunnel, TunnelError> {
    let fault = |source| TunnelError::Http { address, source };
    let mut send = send.ready().await.map_err(fault)?;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(connect.target.to_string())
        .header("forwarded", connect.forwarded.as_str())
        .header("baggage", connect.baggage.as_str())
        .header("traceparent", super::headers::traceparent())
        .body(())
        .map_err(|e| TunnelError::Status { status: StatusCode::BAD_REQUEST, reason: e.to_string() })?;
    let (response, send) = send.send_request(request, false).map_err(fault)?;
    // The server connects to its app first, within its own limit.
    let response = tokio::time::timeout(CONNECT_TIMEOUT * 2, response)
        .await
        .map_err(|_| TunnelError::Timeout(address))?
        .map_err(fault)?;
    if response.status() != StatusCode::OK {
        let reason = response.headers().get(REASON_HEADER).and_then(|v| v.to_str().ok()).unwrap_or_default();
        return Err(TunnelError::Status { status: response.status(), reason: reason.to_owned() });
    }
    Ok(Tunnel { send, recv: response.into_body(), lease })
}

/// The peer surely did not act on the request: it said so (GOAWAY, REFUSED_STREAM), or the connection was already gone.
fn unprocessed(error: &h2::Error) -> bool {
    (error.is_go_away() && error.is_remote()) || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}
