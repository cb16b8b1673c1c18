//! Reads more from a connection than TLS asks for: rustls takes 4 KiB at a time, and a system call for each would be most of what
//! bulk data costs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// A read begins this small, as most connections carry little, and grows with the traffic.
const FIRST: usize = 4 << 10;
const LARGEST: usize = 256 << 10;

/// A stream with a buffer for what has arrived and was not asked for yet. Nothing is held while nothing comes.
pub struct ReadAhead<S> {
    stream: S,
    held: BytesMut,
    /// Bytes of the next read.
    size: usize,
}

impl<S> ReadAhead<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, held: BytesMut::new(), size: FIRST }
    }

    /// The stream. What has been read ahead is lost.
    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn hand_out(&mut self, out: &mut ReadBuf<'_>) {
        let n = self.held.len().min(out.remaining());
        out.put_slice(self.held.get(..n).unwrap_or_default());
        self.held.advance(n);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            this.hand_out(out);
            return Poll::Ready(Ok(()));
        }
        if this.size <= out.remaining() {
            let (before, room) = (out.filled().len(), out.remaining());
            ready!(Pin::new(&mut this.stream).poll_read(cx, out))?;
            if out.filled().len() - before == room {
                this.size = (room * 4).min(LARGEST);
            }
            return Poll::Ready(Ok(()));
        }
        this.held.reserve(this.size);
        let size = this.held.capacity();
        let read = poll_read_buf(Pin::new(&mut this.stream), cx, &mut this.held);
        let Poll::Ready(read) = read else {
            this.held = BytesMut::new();
            return Poll::Pending;
        };
        this.size = match read? {
            n if n == size => (size * 4).min(LARGEST),
            n if n <= FIRST => FIRST,
            _ => this.size,
        };
        this.hand_out(out);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_however_it_is_asked_for() {
        let (mut writer, reader) = pair().await;
        let sent: Vec<u8> = (0..3 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let copy = sent.clone();
        tokio::spawn(async move {
            let mut rest = &copy[..];
            while !rest.is_empty() {
                let n = rand::rng().random_range(1..200_000).min(rest.len());
                writer.write_all(&rest[..n]).await.unwrap();
                rest = &rest[n..];
                tokio::task::yield_now().await;
            }
        });
        let mut reader = ReadAhead::new(reader);
        let (mut got, mut buffer) = (Vec::new(), vec![0; 100_000]);
        loop {
            let room = rand::rng().random_range(1..if got.len() % 2 == 0 { 4097 } else { 100_000 });
            match reader.read(&mut buffer[..room]).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&buffer[..n]),
            }
            assert!(reader.held.capacity() <= 2 * LARGEST);
        }
        assert!(got == sent);
    }

    #[tokio::test]
    async fn bulk_is_read_in_large_pieces_and_an_idle_stream_holds_nothing() {
        let (mut writer, reader) = pair().await;
        let mut reader = ReadAhead::new(reader);
        let mut buffer = vec![0; FIRST];
        writer.write_all(&[7; 64]).await.unwrap();
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 64);
        assert_eq!(
            (reader.held.capacity(), reader.size),
            (0, FIRST),
            "what is small is read without a buffer"
        );
        writer.write_all(&vec![7; 1200 << 10]).await.unwrap();
        let (mut left, mut most) = (1200 << 10, 0);
        while left > 0 {
            left -= reader.read(&mut buffer).await.unwrap();
            most = most.max(reader.held.len());
        }
        assert!(most > LARGEST / 2, "{most}");
        let idle = tokio::time::timeout(std::time::Duration::from_millis(20), reader.read(&mut buffer)).await;
        assert!(idle.is_err());
        assert_eq!(reader.held.capacity(), 0);
    }
}
