//! Where the admin server listens.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A socket for root alone, from its first moment on: it takes its mode from the descriptor that is bound (unix(7), Linux), so that
/// nobody gets in between its making and a chmod.
pub(super) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
}

/// At both loopback addresses, where they are and the port is free; 0: nowhere.
pub(super) async fn bind_loopback(port: u16) -> Vec<TcpListener> {
    let mut listeners = Vec::new();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        if port == 0 {
            break;
        }
        match TcpListener::bind((ip, port)).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if ip.is_ipv6() && is_without(&error) => {}
            Err(error) => tracing::warn!(%ip, port, %error, "cannot listen: istioctl gets no answer here"),
        }
    }
    listeners
}

/// Whether the machine lacks this family of addresses.
fn is_without(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
}

pub(super) async fn bind_tcp(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if is_without(&error) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
        result => result,
    }
}
