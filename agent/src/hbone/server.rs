//! Taking an HBONE connection in.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{FloodLimit, HboneConfig, ReadAhead, TLS_BUFFER};
use crate::identity::{Finding, PeerError, Proof, Role, SpiffeId, WorkloadCert, explain, spiffe_id};
use crate::sys::congestion::knows_its_path;

/// How long and how much a refused peer may still send.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;

/// A peer that has proven who it is.
pub struct Accepted {
    /// The SPIFFE id of its certificate.
    pub peer: SpiffeId,
    /// The certificate, which may be revoked later.
    pub proof: Proof,
    /// Its requests. Must be polled.
    pub connection: h2::server::Connection<FloodLimit<TlsStream<ReadAhead<TcpStream>>>, Bytes>,
}

/// Why a connection was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer hung up before it said anything: a port probe.
    #[error("the peer hung up")]
    HungUp,
    /// The peer is of another trust domain, or has no SPIFFE id.
    #[error(transparent)]
    WrongPeer(#[from] PeerError),
    /// TLS failed.
    #[error("TLS handshake: {0}")]
    Tls(String),
    /// HTTP/2 failed.
    #[error("HTTP/2 handshake: {0}")]
    H2(#[from] h2::Error),
    /// The peer was too slow.
    #[error("no TLS and HTTP/2 handshake in time")]
    Timeout,
}

/// TLS with a client certificate, then HTTP/2 with ztunnel's settings and limits.
pub async fn accept(
    tcp: TcpStream,
    cert: &WorkloadCert,
    config: &HboneConfig,
) -> Result<Accepted, HandshakeError> {
    knows_its_path(&tcp);
    let handshake = async {
        let (settings, finding) = cert.accepting();
        let mut tls = match TlsAcceptor::from(settings).accept(ReadAhead::new(tcp)).into_fallible().await {
            Ok(tls) => tls,
            Err((error, tcp)) => {
                tokio::spawn(linger(tcp.into_inner()));
                return Err(tls_error(&error, &finding));
            }
        };
        tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
        let shown = tls.get_ref().1.peer_certificates();
        let proof = cert.proof(shown, Role::Client);
        let leaf = shown.and_then(|chain| chain.first());
        let none = || PeerError::NoIdentity("it presented no certificate".to_owned());
        let peer = spiffe_id(leaf.ok_or_else(none)?)?;
        let connection = config.server(tls).await?;
        Ok(Accepted { peer, proof, connection })
    };
    timeout(config.handshake_timeout, handshake).await.unwrap_or(Err(HandshakeError::Timeout))
}

/// A reset would overtake the alert that tells the peer why it was refused: what it still sends is read, for a moment.
async fn linger(mut tcp: TcpStream) {
    let rest = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(LINGER, rest).await;
}

fn tls_error(error: &io::Error, finding: &Finding) -> HandshakeError {
    if let Some(peer) = PeerError::find(error) {
        return peer.into();
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => HandshakeError::HungUp,
        _ => HandshakeError::Tls(explain(error, finding)),
    }
}
