//! Frames that make work and carry nothing. HTTP/2 puts no limit on them: a flood of PINGs is valid, and each wants an answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `PRI * HTTP/2.0 … SM …`, which a client sends before its first frame (RFC 9113 3.4).
pub(super) const PREFACE: usize = 24;
const HEADER: usize = 9;
const WINDOW: Duration = Duration::from_secs(1);

/// A stream of HTTP/2 whose reads fail when the peer sends more idle frames within a second than it may.
///
/// Idle are PING, SETTINGS, PRIORITY, frames of unknown types, and DATA that is empty and ends nothing. What h2 limits by
/// itself is left to it: streams, resets of streams that were not accepted yet, header lists, CONTINUATION.
pub struct FloodLimit<S> {
    stream: S,
    frames: Frames,
    limit: u32,
    idle: u32,
    since: Instant,
}

impl<S> FloodLimit<S> {
    /// `limit` idle frames within a second; `preface` bytes come before the first frame.
    pub(super) fn new(stream: S, limit: u32, preface: usize) -> Self {
        Self { stream, frames: Frames::after(preface), limit, idle: 0, since: Instant::now() }
    }

    fn see(&mut self, bytes: &[u8]) -> io::Result<()> {
        let idle = self.frames.idle(bytes);
        if idle == 0 {
            return Ok(());
        }
        if self.since.elapsed() >= WINDOW {
            (self.idle, self.since) = (0, Instant::now());
        }
        self.idle = self.idle.saturating_add(idle);
        if self.idle > self.limit {
            let text = format!("flood: more than {} frames within a second that carry nothing", self.limit);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(())
    }
}

/// Follows the frames of a stream of bytes, however it is cut.
struct Frames {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes until the next header.
    skip: usize,
}

impl Frames {
    fn after(skip: usize) -> Self {
        Self { header: [0; HEADER], have: 0, skip }
    }

    /// How many idle frames begin in `bytes`.
    fn idle(&mut self, mut bytes: &[u8]) -> u32 {
        let mut idle = 0;
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let missing = self.header.get_mut(self.have..).unwrap_or_default();
            let taken = missing.len().min(bytes.len());
            let (now, rest) = bytes.split_at(taken);
            missing.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.have += taken;
            bytes = rest;
            if self.have < HEADER {
                return idle;
            }
            self.have = 0;
            let [a, b, c, kind, flags, ..] = self.header;
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
            idle += u32::from(is_idle(kind, flags, self.skip));
        }
    }
}

/// RFC 9113 6: what opens, ends or carries something is not idle. WINDOW_UPDATE is how bulk data flows.
fn is_idle(kind: u8, flags: u8, length: usize) -> bool {
    const END_STREAM: u8 = 1;
    match kind {
        0 => length == 0 && flags & END_STREAM == 0,
        1 | 3 | 5 | 7 | 8 | 9 => false,
        _ => true,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FloodLimit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        Poll::Ready(self.see(buffer.filled().get(before..).unwrap_or_default()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FloodLimit<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + usize::from(length), 6);
        frame
    }

    #[test]
    fn idle_frames_are_found_however_the_bytes_are_cut() {
        let frames =
            [(6, 0, 8), (0, 0, 200), (0, 0, 0), (0, 1, 0), (4, 0, 0), (1, 4, 9), (8, 0, 4), (77, 0, 3)];
        let mut bytes = vec![6; PREFACE];
        for (kind, flags, length) in frames {
            bytes.extend(frame(kind, flags, length));
        }
        for size in 1..=bytes.len() {
            let mut seen = Frames::after(PREFACE);
            let idle: u32 = bytes.chunks(size).map(|part| seen.idle(part)).sum();
            assert_eq!(idle, 4, "PING, empty DATA, SETTINGS, unknown; in parts of {size}");
        }
    }

    #[test]
    fn a_second_holds_so_many_and_no_more() {
        let mut limit = FloodLimit::new((), 3, 0);
        for _ in 0..3 {
            limit.see(&frame(6, 0, 8)).unwrap();
        }
        assert_eq!(limit.see(&frame(6, 0, 8)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        limit.since -= WINDOW;
        limit.see(&frame(6, 0, 8)).unwrap();
    }
}
