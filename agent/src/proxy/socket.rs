//! Sockets between the agent and the apps.

use std::io;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::pod::Pod;
use crate::sys::tcp_socket;

/// A local port may be taken by another connection to the very same app, in TIME_WAIT too, by an app that listens, or be about
/// to be used by another tunnel; another one is tried this often. With nine of ten ports taken one in a thousand fails.
const ATTEMPTS: usize = 64;

/// Closes with RST: the app's next call fails with ECONNRESET.
pub(super) fn reset(tcp: TcpStream) {
    if let Err(error) = SockRef::from(&tcp).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot reset a connection; closing it");
    }
}

/// The next connection. Keeps trying when the agent has run out of descriptors.
pub(super) async fn next(listener: &TcpListener, pod: &str) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => return (tcp, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(pod, %error, "cannot accept a connection; trying again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Connects to the app at `target`, a pod's own address, so that the app sees `client` as its peer.
pub(super) async fn connect_app(pod: &Pod, target: SocketAddr, client: SocketAddr) -> io::Result<TcpStream> {
    let limit = pod.shared.config.connect_timeout;
    for _ in 0..ATTEMPTS {
        let local = SocketAddr::new(target.ip(), pod.ports.next());
        let socket = match tcp_socket(&pod.info.netns, local, true) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                pod.ports.jump();
                continue;
            }
            socket => socket?,
        };
        let Some(source) = OriginalSource::put(pod, local, client)? else { continue };
        match timeout(limit, connect(socket, target)).await {
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) => pod.ports.jump(),
            Ok(Ok(tcp)) => {
                source.keep();
                return Ok(tcp);
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free local port in the pod"))
}

async fn connect(socket: TcpSocket, target: SocketAddr) -> io::Result<TcpStream> {
    socket.connect(target).await
}

/// The note that makes the app see the client's address; taken back unless the connection came up.
struct OriginalSource<'a> {
    pod: &'a Pod,
    local: SocketAddr,
    connected: bool,
}

impl<'a> OriginalSource<'a> {
    /// `None` when another tunnel is just opening a connection from the same local end: two notes under one key would
    /// swap the clients.
    fn put(pod: &'a Pod, local: SocketAddr, client: SocketAddr) -> io::Result<Option<Self>> {
        if !pod.opening.lock().unwrap_or_else(PoisonError::into_inner).insert(local) {
            return Ok(None);
        }
        let note = Self { pod, local, connected: false };
        pod.shared.mesh.put_original_src(pod.info.netns_cookie, local, client)?;
        Ok(Some(note))
    }

    fn keep(mut self) {
        self.connected = true;
    }
}

impl Drop for OriginalSource<'_> {
    fn drop(&mut self) {
        if !self.connected {
            self.pod.shared.mesh.remove_original_src(self.pod.info.netns_cookie, self.local);
        }
        self.pod.opening.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.local);
    }
}
