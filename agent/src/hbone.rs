//! HBONE: TCP inside HTTP/2 CONNECT inside mutual TLS, as ztunnel and Istio's waypoints speak it.
//!
//! One HTTP/2 connection carries many tunnels between two identities. The client asks `CONNECT <ip:port>`; the server
//! answers 200 once it has reached the app, 400 for a request that is malformed or not for its pod, 401 when policy
//! refuses, 503 when the app cannot be reached.

mod baggage;
mod client;
mod flood;
mod headers;
mod http2;
mod outbox;
mod ping;
mod pool;
mod read_ahead;
mod server;

use std::time::Duration;

pub use baggage::baggage;
pub use client::OpenError;
pub use flood::FloodLimit;
pub use headers::{authority, client_port, forwarded, parse_authority};
pub use outbox::Outbox;
pub(crate) use pool::REVOKED;
pub use pool::{Destination, FirstBytes, Pool, Tunnel};
pub use read_ahead::ReadAhead;
pub use server::{Accepted, HandshakeError, accept};

/// Response header in which Culvert explains a refusal to the peer's log.
pub const REASON_HEADER: &str = "x-culvert-reason";

/// Bytes that TLS takes at once. A frame of what the relay reads at once must fit with its header, or its last bytes are a record and a
/// system call of their own: rustls takes 64 KiB by default.
const TLS_BUFFER: usize = 512 << 10;

/// Windows, limits and timeouts. [`HboneConfig::default`] has ztunnel's values where it has them, except for the windows: a
/// reader that stalls must neither fill the agent's memory nor stop the other streams of its connection.
#[derive(Clone, Debug)]
pub struct HboneConfig {
    /// Bytes a peer may send on one stream before the app here has read them. Default 512 KiB. The window of the connection
    /// is that of all its streams.
    pub stream_window: u32,
    /// Largest DATA frame that is accepted. Default 1 MiB.
    pub frame_size: u32,
    /// Bytes that may wait to be sent on one stream. Default 512 KiB.
    pub send_buffer: usize,
    /// Bytes that may wait to be sent on one connection, of all its streams. Default 2 MiB.
    pub outbox: usize,
    /// Streams that a peer may have open on one connection. Default 200.
    pub server_streams: u32,
    /// Frames without content (PING, SETTINGS, empty DATA, …) that a peer may send within a second. Default 1000; who sends more
    /// loses the connection.
    pub idle_frames: u32,
    /// Tunnels put on one connection before another is opened. Default 100.
    pub client_streams: usize,
    /// TCP connect. Default 10 s.
    pub connect_timeout: Duration,
    /// How long a pod that refuses the TCP connection is tried again: its agent may be about to serve it. Default 2 s.
    pub patience: Duration,
    /// TLS and HTTP/2 handshake together. Default 10 s.
    pub handshake_timeout: Duration,
    /// For the answer to CONNECT. Default 20 s: longer than the peer waits for its app.
    pub response_timeout: Duration,
    /// A connection without tunnels is closed after this. Default 5 min.
    pub idle: Duration,
    /// A peer's connection without streams is ended after this, at the latest after twice this. Default 10 min: our own peers
    /// and ztunnel have closed it by then.
    pub server_idle: Duration,
    /// Between two PINGs. Default 10 s.
    pub ping_interval: Duration,
    /// A PING without answer ends the connection after this. Default 20 s.
    pub ping_timeout: Duration,
}

impl HboneConfig {
    /// Room for all streams that a connection can have.
    fn connection_window(&self) -> u32 {
        let streams = self.server_streams.max(u32::try_from(self.client_streams).unwrap_or(u32::MAX));
        // RFC 9113 6.9.1: windows end at 2^31 - 1.
        self.stream_window.saturating_mul(streams).min((1 << 31) - 1)
    }
}

impl Default for HboneConfig {
    fn default() -> Self {
        Self {
            stream_window: 512 << 10,
            frame_size: 1 << 20,
            send_buffer: 512 << 10,
            outbox: 2 << 20,
            server_streams: 200,
            idle_frames: 1000,
            client_streams: 100,
            connect_timeout: Duration::from_secs(10),
            patience: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(20),
            idle: Duration::from_secs(300),
            server_idle: Duration::from_secs(600),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
        }
    }
}
