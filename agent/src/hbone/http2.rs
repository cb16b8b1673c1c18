//! HTTP/2 with HBONE's settings, on a stream that somebody else has made safe.

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};

use super::flood::PREFACE;
use super::{FloodLimit, HboneConfig};

/// Largest list of headers that is taken: in an answer, and in a request.
const ANSWER: u32 = 16 << 10;
const REQUEST: u32 = 64 << 10;

impl HboneConfig {
    /// The client's end: the handle for requests, and the connection, which must be polled.
    ///
    /// # Errors
    ///
    /// The stream broke.
    pub async fn client<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<(SendRequest<Bytes>, h2::client::Connection<FloodLimit<S>, Bytes>), h2::Error> {
        h2::client::Builder::new()
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window())
            .max_frame_size(self.frame_size)
            .max_header_list_size(ANSWER)
            .max_send_buffer_size(self.send_buffer)
            .enable_push(false)
            .handshake(FloodLimit::new(stream, self.idle_frames, 0))
            .await
    }

    /// The server's end: requests come from the connection, which must be polled.
    ///
    /// # Errors
    ///
    /// The stream broke, or the peer does not speak HTTP/2.
    pub async fn server<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<h2::server::Connection<FloodLimit<S>, Bytes>, h2::Error> {
        h2::server::Builder::new()
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window())
            .max_frame_size(self.frame_size)
            .max_header_list_size(REQUEST)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_streams(self.server_streams)
            .handshake(FloodLimit::new(stream, self.idle_frames, PREFACE))
            .await
    }
}
