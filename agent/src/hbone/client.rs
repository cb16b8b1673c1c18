//! Opening one HBONE connection, and what can go wrong on the way to a tunnel.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use culvert_common::Reason;
use h2::client::{Connection, SendRequest};
use http::StatusCode;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Destination, FloodLimit, HboneConfig, ReadAhead, TLS_BUFFER};
use crate::identity::{CertError, PeerError, Proof, Role, WorkloadCert, explain, explain_later};
use crate::sys::congestion::knows_its_path;
use crate::sys::{keepalive, tcp_socket};

/// Between two tries of a pod that refuses.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Why a tunnel could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// We have no certificate to show.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// No TCP connection.
    #[error("cannot reach {address}: {problem}")]
    Connect {
        /// The peer's HBONE listener.
        address: SocketAddr,
        /// What the system said, with a hint.
        problem: String,
    },
    /// Somebody else answered.
    #[error("{address} is not who it should be: {source}")]
    WrongPeer {
        /// The peer's HBONE listener.
        address: SocketAddr,
        /// What it showed.
        source: PeerError,
    },
    /// TLS or HTTP/2 did not come up, or broke before the answer.
    #[error("HBONE connection to {address} failed: {problem}")]
    Broken {
        /// The peer's HBONE listener.
        address: SocketAddr,
        /// What happened.
        problem: String,
    },
    /// It broke before the answer, after the app's first bytes had left: nobody knows whether the other app has them.
    #[error("HBONE connection to {address} failed, after the first bytes had left: {problem}")]
    Lost {
        /// The peer's HBONE listener.
        address: SocketAddr,
        /// What happened.
        problem: String,
    },
    /// The peer answered with something else than 200.
    #[error("{address} answered {status}{}{reason}", if .reason.is_empty() { "" } else { ": " })]
    Refused {
        /// The peer's HBONE listener.
        address: SocketAddr,
        /// Its answer.
        status: StatusCode,
        /// Its [`super::REASON_HEADER`].
        reason: String,
    },
}

impl OpenError {
    /// The reason in flow events and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Certificate(_) | Self::Connect { .. } | Self::Broken { .. } | Self::Lost { .. } => {
                Reason::TunnelFailed
            }
            Self::WrongPeer { .. } => Reason::WrongPeer,
            Self::Refused { status, .. } => match *status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::PeerRefused,
                StatusCode::BAD_REQUEST => Reason::BadRequest,
                _ => Reason::UpstreamFailed,
            },
        }
    }
}

/// An open connection: the handle for requests, and the machinery that somebody must poll.
pub(super) struct Opened {
    pub(super) send: SendRequest<Bytes>,
    pub(super) connection: Connection<FloodLimit<TlsStream<ReadAhead<TcpStream>>>, Bytes>,
    pub(super) proof: Proof,
}

/// Connects from the pod's own address, proves `cert`, and checks who answers.
pub(super) async fn connect(
    destination: &Destination,
    cert: &WorkloadCert,
    config: &HboneConfig,
) -> Result<Opened, OpenError> {
    let address = destination.address;
    let tcp = dial(destination, config)
        .await
        .map_err(|error| OpenError::Connect { address, problem: connect_hint(&error, address) })?;
    let broken = |problem: String| OpenError::Broken { address, problem };
    let handshake = async {
        let (settings, finding) = cert.connecting(&destination.expected);
        let connector = TlsConnector::from(settings);
        let name = ServerName::IpAddress(address.ip().into()); // not sent, not checked
        let mut tls = connector.connect(name, ReadAhead::new(tcp)).await.map_err(|error| {
            match PeerError::find(&error) {
                Some(source) => OpenError::WrongPeer { address, source },
                None => broken(explain(&error, &finding)),
            }
        })?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(broken("the peer does not speak HTTP/2 (ALPN h2) there".to_owned()));
        }
        tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
        let proof = cert.proof(tls.get_ref().1.peer_certificates(), Role::Server);
        let (send, connection) = config.client(tls).await.map_err(|error| broken(explain_h2(&error)))?;
        Ok(Opened { send, connection, proof })
    };
    timeout(config.handshake_timeout, handshake).await.unwrap_or_else(|_| {
        Err(broken(format!("no TLS and HTTP/2 handshake within {:?}", config.handshake_timeout)))
    })
}

/// A pod that is in the mesh by its label, and refuses, is one whose agent joins it this moment or restarts.
async fn dial(destination: &Destination, config: &HboneConfig) -> io::Result<TcpStream> {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match dial_once(destination, config).await {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused && begun.elapsed() < config.patience =>
            {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            result => return result,
        }
    }
}

async fn dial_once(destination: &Destination, config: &HboneConfig) -> io::Result<TcpStream> {
    let socket = tcp_socket(&destination.netns, SocketAddr::new(destination.source_ip, 0), false)?;
    SockRef::from(&socket).set_tcp_keepalive(&keepalive())?;
    let tcp = timeout(config.connect_timeout, socket.connect(destination.address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    knows_its_path(&tcp);
    Ok(tcp)
}

fn connect_hint(error: &io::Error, address: SocketAddr) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::TimedOut => {
            format!("connection timed out, maybe a NetworkPolicy is blocking HBONE port {port}")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("connection refused: no mesh agent listens on HBONE port {port} in that pod")
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("{error}: the pod is gone, or its node cannot be reached")
        }
        _ => error.to_string(),
    }
}

pub(super) fn explain_h2(error: &h2::Error) -> String {
    explain_later(error.to_string())
}
