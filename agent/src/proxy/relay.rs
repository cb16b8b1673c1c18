//! Bytes both ways between a TCP socket and an HTTP/2 stream.
//!
//! Each end's FIN becomes the other's, each end's reset the other's. A byte is taken from one side only when it can be
//! given to the other: per tunnel the agent holds what the peer may send within the stream's window, and per connection what
//! waits to be sent.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::busy_poll;
use super::open::Count;
use super::socket::reset;
use crate::hbone::Outbox;

/// A read starts this small and grows with the traffic: most connections carry little.
const FIRST_READ: usize = 4 << 10;
/// Every piece of bulk data wakes the other agent and its app: larger ones carry half as much again as 64 KiB do.
const LARGEST_READ: usize = 256 << 10;

/// A tunnel's place on its connection.
pub(super) struct Stream {
    pub(super) send: SendStream<Bytes>,
    pub(super) recv: RecvStream,
    pub(super) outbox: Outbox,
}

/// What went on before the relay began.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// Bytes from the socket into the tunnel.
    pub(super) to_tunnel: u64,
    /// Bytes from the tunnel into the socket.
    pub(super) from_tunnel: u64,
    /// What has broken the tunnel. A socket tells it once: to the relay it would look like an orderly end.
    pub(super) broken: Option<Fault>,
}

/// What went through a tunnel.
pub(super) struct Relayed {
    /// From the socket into the tunnel.
    pub(super) to_tunnel: u64,
    /// From the tunnel into the socket.
    pub(super) from_tunnel: u64,
    /// Why it ended; `None` when both sides had said all.
    pub(super) fault: Option<Fault>,
}

/// What breaks a tunnel.
#[derive(Debug)]
pub(super) enum Fault {
    /// The socket.
    Tcp(io::Error),
    /// The stream, by the peer or with its connection.
    Tunnel(h2::Error),
    /// The peer reset the stream.
    Reset(Reason),
    /// This agent.
    Ended(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(error) => write!(f, "the local app's connection broke: {error}"),
            Self::Tunnel(error) => write!(f, "the tunnel broke: {error}"),
            Self::Reset(reason) => write!(f, "the other end reset the connection: {reason}"),
            Self::Ended(why) => f.write_str(why),
        }
    }
}

/// Carries bytes until both directions have ended, one breaks, or `end` says to end it, and why.
/// Bytes are counted as they go: into the tunnel, out of it.
pub(super) async fn relay(
    mut tcp: TcpStream,
    mut stream: Stream,
    (to_tunnel, from_tunnel): (Count<'_>, Count<'_>),
    before: Before,
    end: Pin<&mut impl Future<Output = String>>,
) -> Relayed {
    to_tunnel.add(before.to_tunnel);
    from_tunnel.add(before.from_tunnel);
    let Stream { send, recv, outbox } = &mut stream;
    let result = match before.broken {
        Some(fault) => Err(fault),
        None => {
            // All that the peer had to say, all that the app had to.
            let (heard, said) = (AtomicBool::new(false), AtomicBool::new(false));
            let (read, mut write) = tcp.split();
            // Pinned where they are: a future that is handed on takes its room twice.
            let up = pin!(async {
                upload(read, (send, outbox), &heard, |n| to_tunnel.add(n)).await?;
                said.store(true, Ordering::Relaxed);
                Ok(())
            });
            let down = pin!(async {
                download(recv, &mut write, |n| from_tunnel.add(n)).await?;
                heard.store(true, Ordering::Relaxed);
                // Else the socket is closed now, which says it too.
                if !said.load(Ordering::Relaxed) {
                    write.shutdown().await.map_err(Fault::Tcp)?;
                }
                Ok(())
            });
            tokio::select! {
                result = async { tokio::try_join!(up, down) } => result.map(|_| ()),
                why = end => Err(Fault::Ended(why)),
            }
        }
    };
    if let Err(fault) = &result {
        if matches!(fault, Fault::Tcp(_) | Fault::Ended(_)) {
            send.send_reset(Reason::CONNECT_ERROR);
        }
        reset(tcp);
    }
    Relayed { to_tunnel: to_tunnel.own(), from_tunnel: from_tunnel.own(), fault: result.err() }
}

async fn upload(
    mut read: ReadHalf<'_>,
    (send, outbox): (&mut SendStream<Bytes>, &Outbox),
    heard: &AtomicBool,
    mut count: impl FnMut(u64),
) -> Result<(), Fault> {
    let mut size = FIRST_READ;
    loop {
        tokio::select! {
            reason = poll_fn(|cx| send.poll_reset(cx)) => return stopped(reason, heard),
            ready = read.readable() => ready.map_err(Fault::Tcp)?,
        }
        // No buffer is held while nothing comes.
        let mut buffer = BytesMut::new();
        loop {
            let room = {
                let mut room = pin!(room(send, outbox, &read, size));
                match now(room.as_mut()).await {
                    Some(room) => room,
                    None => {
                        // Nor while the peer takes nothing.
                        buffer = BytesMut::new();
                        room.await
                    }
                }
            };
            let room = match room? {
                Ok(room) => room,
                Err(reason) => return stopped(Ok(reason), heard),
            };
            if buffer.capacity() < room.min(size / 2) {
                buffer.reserve(room);
            }
            let asked = room.min(buffer.capacity());
            let result = now(pin!(read.read_buf(&mut (&mut buffer).limit(asked)))).await;
            let Some(result) = result else { break };
            busy_poll::heard();
            let n = result.map_err(Fault::Tcp)?;
            if n == 0 {
                return send.send_data(Bytes::new(), true).map_err(Fault::Tunnel);
            }
            if n == size.min(asked) {
                size = (size * 4).min(LARGEST_READ);
            }
            count(n as u64);
            send.send_data(outbox.put(buffer.split()), false).map_err(Fault::Tunnel)?;
        }
        send.reserve_capacity(0);
    }
}

/// Waits until the stream takes something, at most `wanted` bytes: what is read from the app can be sent soon, and a
/// peer that opens no window makes the agent hold nothing. `Err`: the peer reset the stream.
async fn room(
    send: &mut SendStream<Bytes>,
    outbox: &Outbox,
    read: &ReadHalf<'_>,
    wanted: usize,
) -> Result<Result<usize, Reason>, Fault> {
    send.reserve_capacity(wanted);
    loop {
        let room = send.capacity();
        if room > 0 && !outbox.is_full() {
            return Ok(Ok(room.min(wanted)));
        }
        // While the peer is slow the socket is not read: its reset shows only like this.
        tokio::select! {
            reset = poll_fn(|cx| changed(send, room, cx)) => if let Some(reason) = reset? { return Ok(Err(reason)) },
            () = outbox.room(), if room > 0 => {}
            ready = read.ready(Interest::ERROR) => return Err(broken(ready, read)),
        }
    }
}

/// Waits for a reset, and in a stream that has no `room` for some.
fn changed(
    send: &mut SendStream<Bytes>,
    room: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Reason>, Fault>> {
    if room == 0 {
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => return Poll::Ready(Ok(None)),
            Some(Err(error)) => return Poll::Ready(Err(Fault::Tunnel(error))),
            None => {}
        }
    }
    send.poll_reset(cx).map_ok(Some).map_err(Fault::Tunnel)
}

async fn download(
    recv: &mut RecvStream,
    write: &mut WriteHalf<'_>,
    mut count: impl FnMut(u64),
) -> Result<(), Fault> {
    loop {
        let next = recv.data().await;
        busy_poll::heard();
        match next {
            Some(Ok(mut data)) => {
                let n = data.len();
                write.write_all_buf(&mut data).await.map_err(Fault::Tcp)?;
                count(n as u64);
                // The window opens only now, so that a slow reader slows the sender down.
                recv.flow_control().release_capacity(n).map_err(Fault::Tunnel)?;
            }
            Some(Err(error)) if error.reason() != Some(Reason::NO_ERROR) || !error.is_reset() => {
                return Err(error
                    .reason()
                    .filter(|_| error.is_reset())
                    .map_or(Fault::Tunnel(error), Fault::Reset));
            }
            Some(Err(_)) | None => return Ok(()),
        }
    }
}

/// What a reset means for what the app still says.
///
/// NO_ERROR (RFC 9113 8.1): the peer has said all and does not want to hear more. CANCEL says the same once its END_STREAM has
/// come (`heard`): ztunnel drops a stream so when its app has closed its socket. Before END_STREAM it cuts the peer's words
/// short; ztunnel takes that for an end too, and its app cannot tell. Here it is a reset.
fn stopped(reset: Result<Reason, h2::Error>, heard: &AtomicBool) -> Result<(), Fault> {
    match reset {
        Ok(Reason::NO_ERROR) => Ok(()),
        Ok(Reason::CANCEL) if heard.load(Ordering::Relaxed) => Ok(()),
        Ok(reason) => Err(Fault::Reset(reason)),
        Err(error) => Err(Fault::Tunnel(error)),
    }
}

fn broken<T>(ready: io::Result<T>, read: &ReadHalf<'_>) -> Fault {
    let error = ready.err().or_else(|| read.as_ref().take_error().ok().flatten());
    Fault::Tcp(error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}

/// What `future` says at once, if anything.
pub(super) async fn now<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
