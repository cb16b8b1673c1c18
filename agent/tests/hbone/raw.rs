//! An HTTP/2 client that follows no rule: frames by hand, over TLS with a certificate of the mesh.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{DAY, World, id};

/// Where who misbehaves comes from.
pub(crate) const ATTACKER: &str = "127.0.0.9";
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK without a table: `:method: CONNECT`, `:authority`.
pub(crate) fn connect_block(authority: SocketAddr) -> Vec<u8> {
    let authority = authority.to_string();
    let mut block = vec![2, 7];
    block.extend(b"CONNECT");
    block.extend([1, authority.len() as u8]);
    block.extend(authority.as_bytes());
    block
}

pub(crate) fn connect(stream: u32, authority: SocketAddr) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &connect_block(authority))
}

pub(crate) fn rst(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

pub(crate) async fn tcp(world: &World, from: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from.parse::<IpAddr>().unwrap(), 0).into())?;
    socket.connect(world.hbone).await
}

pub(crate) struct Raw(pub(crate) TlsStream<TcpStream>);

/// How the agent ended a connection.
#[derive(Debug)]
pub(crate) struct End {
    /// The last GOAWAY's code.
    pub(crate) code: Option<u32>,
    /// Frames before it, by kind and stream.
    pub(crate) frames: Vec<(u8, u32)>,
}

impl Raw {
    pub(crate) async fn tls(world: &World, from: &str) -> io::Result<Self> {
        let cert = world.cert(id("mallory"), DAY / 24, DAY);
        let name = ServerName::IpAddress(world.server_ip.into());
        let tls = TlsConnector::from(cert.connecting(&id("server")).0);
        Ok(Self(tls.connect(name, tcp(world, from).await?).await?))
    }

    /// With the preface and `settings` sent.
    pub(crate) async fn open(world: &World, settings: &[u8]) -> Self {
        let mut raw = Self::tls(world, ATTACKER).await.unwrap();
        raw.send(PREFACE).await.unwrap();
        raw.send(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    pub(crate) async fn next(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// Writes `part` of n = 0, 1, … for as long as the agent takes it, `most` times at most, while reading what it answers.
    pub(crate) async fn flood(self, most: u32, part: impl Fn(u32) -> Vec<u8>) -> (u32, End) {
        let (read, mut write) = tokio::io::split(self.0);
        let reader = tokio::spawn(Self::drain(read));
        let mut sent = 0;
        while sent < most && !reader.is_finished() {
            let bytes = part(sent);
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                break;
            }
            sent += 1;
        }
        let end = tokio::time::timeout(Duration::from_secs(5), reader).await;
        (sent, end.unwrap().unwrap())
    }

    async fn drain(mut read: tokio::io::ReadHalf<TlsStream<TcpStream>>) -> End {
        let mut end = End { code: None, frames: Vec::new() };
        let mut head = [0; 9];
        while read.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if read.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                end.code = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
            }
            end.frames.push((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]])));
        }
        end
    }

    /// What the agent still says until it ends the connection, which it must do soon.
    pub(crate) async fn ended(self) -> End {
        self.flood(0, |_| Vec::new()).await.1
    }
}
