//! Bytes both ways between an app's socket and a tunnel's stream.
//!
//! Each direction ends by itself (half-close). A reset on one side becomes a reset on the other: a failure must not look
//! like the end of the data. What is read and not yet accepted by the other side is at most one buffer; the windows of
//! HTTP/2 are opened only as the app takes the bytes.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::sys;

/// Bytes read from an app at once.
const BUFFER: usize = 64 << 10;

/// What was carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// From the socket into the tunnel.
    pub into_tunnel: u64,
    /// From the tunnel into the socket.
    pub from_tunnel: u64,
    /// Why it ended early; empty after an orderly end.
    pub error: String,
}

/// Carries until both directions have ended, or one has failed. `total` counts every byte as it passes.
pub async fn relay(
    mut socket: TcpStream,
    mut send: SendStream<Bytes>,
    mut recv: RecvStream,
    total: &AtomicU64,
) -> Carried {
    let mut carried = Carried::default();
    let ended = {
        let (mut read, mut write) = socket.split();
        let into = upload(&mut read, &mut send, &mut carried.into_tunnel, total);
        let from = download(&mut recv, &mut write, &mut carried.from_tunnel, total);
        tokio::try_join!(into, from)
    };
    if let Err(error) = ended {
        carried.error = error;
        // RFC 9113 8.5: a TCP error inside a CONNECT stream. A stream that the peer has reset ignores it.
        send.send_reset(Reason::CONNECT_ERROR);
        sys::reset_on_close(&socket);
    }
    carried
}

async fn upload(
    read: &mut ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    count: &mut u64,
    total: &AtomicU64,
) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        // Small leftovers of a buffer are not worth a read of their own.
        if buffer.capacity() < BUFFER / 4 {
            buffer.reserve(BUFFER);
        }
        let length = tokio::select! {
            length = read.read_buf(&mut buffer) => length.map_err(|e| format!("app: {e}"))?,
            reset = poll_fn(|cx| send.poll_reset(cx)) => return Err(peer_reset(reset)),
        };
        if length == 0 {
            return send.send_data(Bytes::new(), true).map_err(|e| format!("tunnel: {e}"));
        }
        *count += length as u64;
        total.fetch_add(length as u64, Ordering::Relaxed);
        let mut chunk = buffer.split().freeze();
        while !chunk.is_empty() {
            send.reserve_capacity(chunk.len());
            let room = match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(room)) => room,
                Some(Err(e)) => return Err(format!("tunnel: {e}")),
                None => return Err("tunnel: closed".to_owned()),
            };
            let part = chunk.split_to(room.min(chunk.len()));
            if !part.is_empty() {
                send.send_data(part, false).map_err(|e| format!("tunnel: {e}"))?;
            }
        }
    }
}

async fn download(
    recv: &mut RecvStream,
    write: &mut WriteHalf<'_>,
    count: &mut u64,
    total: &AtomicU64,
) -> Result<(), String> {
    while let Some(chunk) = recv.data().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // ztunnel ends a stream that way; it stands for the end of the data.
            Err(e) if e.reason() == Some(Reason::NO_ERROR) => break,
            Err(e) => return Err(format!("tunnel: {e}")),
        };
        let length = chunk.len();
        write.write_all(&chunk).await.map_err(|e| format!("app: {e}"))?;
        *count += length as u64;
        total.fetch_add(length as u64, Ordering::Relaxed);
        // Only now may the sender send as much again.
        recv.flow_control().release_capacity(length).map_err(|e| format!("tunnel: {e}"))?;
    }
    match write.shutdown().await {
        // The app has closed its end altogether: nothing was lost.
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result.map_err(|e| format!("app: {e}")),
    }
}

fn peer_reset(reset: Result<Reason, h2::Error>) -> String {
    match reset {
        Ok(reason) => format!("tunnel: the other end was reset ({reason})"),
        Err(e) => format!("tunnel: {e}"),
    }
}
