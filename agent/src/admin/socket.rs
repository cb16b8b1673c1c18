//! Where the admin server listens.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
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

pub(super) async fn bind_tcp(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error)
            if error.kind() == io::ErrorKind::AddrNotAvailable
                || error.kind() == io::ErrorKind::Unsupported =>
        {
            TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await
        }
        result => result,
    }
}
