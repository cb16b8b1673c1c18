//! The agent's listeners inside a pod's network namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use culvert_common::{HBONE_PORT, OUTBOUND_PORT};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::in_netns;

const BACKLOG: i32 = 1024;

/// Listening, non-blocking sockets of one pod, for [`super::serve_pod`].
#[derive(Debug)]
pub struct PodListeners {
    /// Where the kernel leads the apps' connections: loopback of each family that the pod has.
    pub outbound: Vec<TcpListener>,
    /// HBONE, one socket for both families.
    pub inbound: TcpListener,
}

/// Opens `127.0.0.1:15001`, `[::1]:15001` and `[::]:15008` in `netns`. A pod without IPv6 gets `127.0.0.1:15001` and
/// `0.0.0.0:15008`.
pub fn open(netns: &impl AsFd) -> io::Result<PodListeners> {
    let outbound = [(Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into(), (Ipv6Addr::LOCALHOST, OUTBOUND_PORT).into()];
    open_at(netns, &outbound, (Ipv6Addr::UNSPECIFIED, HBONE_PORT).into())
}

/// [`open`] at addresses of the caller's choice; IPv6 ones are left out, or fall back to 0.0.0.0, where there is no IPv6.
pub fn open_at(netns: &impl AsFd, outbound: &[SocketAddr], inbound: SocketAddr) -> io::Result<PodListeners> {
    in_netns(netns, || {
        let mut listeners = Vec::new();
        for &address in outbound {
            match listen(address) {
                Ok(listener) => listeners.push(listener),
                Err(error) if address.is_ipv6() && no_ipv6(&error) => {
                    tracing::debug!(%address, %error, "the pod has no IPv6 loopback");
                }
                Err(error) => return Err(explain(address, &error)),
            }
        }
        let inbound = match listen(inbound) {
            Err(error) if inbound.is_ipv6() && no_ipv6(&error) => {
                let address = (Ipv4Addr::UNSPECIFIED, inbound.port()).into();
                listen(address).map_err(|error| explain(address, &error))?
            }
            result => result.map_err(|error| explain(inbound, &error))?,
        };
        Ok(PodListeners { outbound: listeners, inbound })
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?; // accepted sockets inherit it
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let hint = if error.kind() == io::ErrorKind::AddrInUse {
        ": a program in the pod (a sidecar, another mesh agent) uses the port that the mesh needs"
    } else {
        ""
    };
    io::Error::new(error.kind(), format!("cannot listen on {address} in the pod: {error}{hint}"))
}
