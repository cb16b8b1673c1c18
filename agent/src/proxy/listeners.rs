//! The agent's listeners inside a pod's network namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use culvert_common::{HBONE_PORT, OUTBOUND_PORT};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use crate::sys;

const BACKLOG: i32 = 1024;

/// Listeners of one pod.
pub struct PodListeners {
    /// 127.0.0.1:15001 and [::1]:15001: what the connect hook leads to the agent.
    pub outbound: Vec<TcpListener>,
    /// [::]:15008 (0.0.0.0 without IPv6): tunnels from other nodes.
    pub inbound: TcpListener,
}

/// Opens the listeners in `netns`. Must run inside a tokio runtime.
///
/// # Errors
///
/// When a port is taken: an app of the pod listens on a port that belongs to the mesh.
pub fn open(netns: impl AsFd) -> io::Result<PodListeners> {
    let (outbound, inbound) = sys::in_netns(netns, || {
        let mut outbound = vec![bind(SocketAddr::from((Ipv4Addr::LOCALHOST, OUTBOUND_PORT)))?];
        outbound.extend(optional(bind(SocketAddr::from((Ipv6Addr::LOCALHOST, OUTBOUND_PORT))))?);
        let inbound = match optional(bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, HBONE_PORT))))? {
            Some(socket) => socket,
            None => bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, HBONE_PORT)))?,
        };
        Ok((outbound, inbound))
    })?;
    let tokio = |socket: Socket| TcpListener::from_std(socket.into());
    Ok(PodListeners {
        outbound: outbound.into_iter().map(tokio).collect::<io::Result<_>>()?,
        inbound: tokio(inbound)?,
    })
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip().is_loopback())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into()).map_err(|e| io::Error::new(e.kind(), format!("port {address}: {e}")))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A namespace without IPv6 is no error.
fn optional(result: io::Result<Socket>) -> io::Result<Option<Socket>> {
    match result {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if matches!(e.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported) => {
            Ok(None)
        }
        Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => Ok(None),
        Err(e) => Err(e),
    }
}
