//! HBONE: HTTP/2 CONNECT over mutual TLS on port 15008, as ztunnel and Istio's waypoints speak it.
//!
//! | item | value (ztunnel 1.31) |
//! | --- | --- |
//! | TLS | 1.3, ALPN `h2`, no SNI, client certificate required |
//! | request | `CONNECT`, `:authority` = `IP:port` of the destination pod |
//! | headers | `forwarded: for="client"[;host=service]`, `baggage`, `traceparent` |
//! | answers | 200 once the app is connected; 400 malformed or misdirected, 401 refused by policy, 503 not reachable |
//! | windows | stream 4 MiB, connection 16 MiB, frames up to 1 MiB |
//! | ping | every 10 s, 20 s to answer |

pub mod client;
pub mod headers;
pub mod server;

use std::time::Duration;

pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
pub(crate) const FRAME_SIZE: u32 = 1 << 20;
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// For the TCP connection and for each handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Response header with the reason of a refusal, for the peer's flow record.
pub(crate) const REASON_HEADER: &str = "x-culvert-reason";

/// Keeps a tunnel alive and notices when its peer is gone: returns when a ping stays unanswered.
pub(crate) async fn keep_alive(ping_pong: Option<h2::PingPong>) {
    let Some(mut ping_pong) = ping_pong else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        match tokio::time::timeout(PING_TIMEOUT, ping_pong.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
