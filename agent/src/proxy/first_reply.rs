//! What an app says at once goes with the answer to CONNECT, in one record: the peer is woken once, not twice.

use std::pin::pin;
use std::time::Duration;

use h2::RecvStream;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::habits::Habits;
use super::relay::{Before, Fault, now};

/// How long the answer waits for the app at most. The peer's app waits for none of it: its own connection is long open, and what it
/// has said has arrived.
const PATIENCE: Duration = Duration::from_millis(1);
/// More than this is not a request that is answered at once.
const SMALL: usize = 4 << 10;

/// Hands on what came with the request, and then waits until the app at `port` has something to say, for a moment. Nothing is read
/// of it, so nothing can be lost.
pub(super) async fn wait(tcp: &mut TcpStream, recv: &mut RecvStream, habits: &Habits, port: u16) -> Before {
    let mut before = Before::default();
    let waiting = recv.flow_control().used_capacity();
    if waiting == 0 || waiting > SMALL {
        return before;
    }
    let Some(Some(Ok(mut first))) = now(pin!(recv.data())).await else { return before };
    let length = first.len();
    if let Err(error) = tcp.write_all_buf(&mut first).await {
        before.broken = Some(Fault::Tcp(error));
        return before;
    }
    before.from_tunnel = length as u64;
    if let Err(error) = recv.flow_control().release_capacity(length) {
        before.broken = Some(Fault::Tunnel(error));
        return before;
    }
    if length == waiting && !recv.is_end_stream() && habits.is_at_once(port) {
        habits.learn(port, timeout(PATIENCE, tcp.readable()).await.is_ok());
    }
    before
}
