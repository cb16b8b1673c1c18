//! Tunnels into a pod: TLS, HTTP/2, and each CONNECT request handed to the proxy.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{CONNECT_TIMEOUT, CONNECTION_WINDOW, FRAME_SIZE, REASON_HEADER, STREAM_WINDOW, keep_alive};
use crate::identity::{SpiffeId, peer_identity};

/// Streams that one peer connection may have open.
const MAX_STREAMS: u32 = 200;
/// Reset streams that a peer may have pending before it is thrown out (rapid reset).
const MAX_PENDING_RESETS: usize = 100;

/// One CONNECT request.
pub struct Incoming {
    /// The tunnel's TCP peer.
    pub peer: SocketAddr,
    /// Its proven identity.
    pub identity: SpiffeId,
    /// The destination that it asks for.
    pub target: SocketAddr,
    /// Its `forwarded` header.
    pub forwarded: Option<String>,
    /// Bytes from the client.
    pub recv: RecvStream,
    /// For the answer.
    pub respond: SendResponse<Bytes>,
}

/// Serves one tunnel connection; calls `handle` for every CONNECT request that is well-formed.
///
/// # Errors
///
/// The reason for the end, when it is not an orderly one.
pub async fn serve<F>(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    handle: impl Fn(Incoming) -> F,
) -> Result<(), String>
where
    F: Future<Output = ()> + Send + 'static,
{
    let accepted = tokio::time::timeout(CONNECT_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
    let tls = accepted.map_err(|_| "TLS handshake timed out")?.map_err(|e| format!("TLS handshake: {e}"))?;
    let identity = peer_identity(tls.get_ref().1.peer_certificates()).map_err(|e| e.to_string())?;
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(64 << 10)
        .max_send_buffer_size(400 << 10)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .handshake(tls);
    let handshake = tokio::time::timeout(CONNECT_TIMEOUT, handshake).await;
    let mut connection =
        handshake.map_err(|_| "HTTP/2 handshake timed out")?.map_err(|e| format!("HTTP/2: {e}"))?;
    let alive = keep_alive(connection.ping_pong());
    tokio::pin!(alive);
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = &mut alive => return Err("peer does not answer pings".to_owned()),
        };
        match accepted {
            None => return Ok(()),
            Some(Err(error)) if error.is_io() => return Ok(()), // the peer closed the connection
            Some(Err(error)) => return Err(format!("HTTP/2: {error}")),
            Some(Ok((request, respond))) => {
                if let Some(incoming) = check(request, respond, peer, &identity) {
                    tokio::spawn(handle(incoming));
                }
            }
        }
    }
}

fn check(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    peer: SocketAddr,
    identity: &SpiffeId,
) -> Option<Incoming> {
    if request.method() != Method::CONNECT {
        refuse(respond, StatusCode::BAD_REQUEST, "only CONNECT is served");
        return None;
    }
    let target = request.uri().authority().and_then(|a| a.as_str().parse::<SocketAddr>().ok());
    let Some(target) = target else {
        refuse(respond, StatusCode::BAD_REQUEST, "the authority must be IP:port");
        return None;
    };
    let forwarded = request.headers().get("forwarded").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (identity, recv) = (identity.clone(), request.into_body());
    Some(Incoming { peer, identity, target, forwarded, recv, respond })
}

/// Answers with an error status and ends the stream.
pub fn refuse(mut respond: SendResponse<Bytes>, status: StatusCode, reason: &str) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Ok(value) = HeaderValue::from_str(reason) {
        response.headers_mut().insert(REASON_HEADER, value);
    }
    // The peer may be gone already; then nobody waits for the answer.
    let _ = respond.send_response(response, true);
}
