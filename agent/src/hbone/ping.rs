//! Noticing that the other end of a connection is gone.

use std::time::Duration;

use h2::{Ping, PingPong};

use super::HboneConfig;

/// Pings until an answer stays out; says so. Never ends without a `PingPong`.
pub(super) async fn watch(pings: Option<PingPong>, interval: Duration, timeout: Duration) -> String {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return format!("the peer did not answer a PING within {timeout:?}"),
        }
    }
}

impl HboneConfig {
    /// [`watch`] with these settings.
    pub(crate) fn watch_pings(&self, pings: Option<PingPong>) -> impl Future<Output = String> + use<> {
        watch(pings, self.ping_interval, self.ping_timeout)
    }
}
