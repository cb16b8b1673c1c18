//! The pods' sockets, seen and ended from outside: one netlink socket in each enrolled pod's network namespace.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::net::if_::if_nameindex;

use super::destroy::destroy;
use super::dump::{self, OpenSocket};
use crate::sys;
use crate::sys::netlink::{Netlink, SOCK_DIAG};

/// By netns cookie.
#[derive(Default)]
pub struct PodSockets {
    pods: Mutex<HashMap<u64, Arc<Mutex<Diag>>>>,
}

impl PodSockets {
    /// Opens a netlink socket in a pod's namespace.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub(super) fn add(&self, cookie: u64, netns: impl AsFd) -> io::Result<()> {
        let diag = Arc::new(Mutex::new(Diag::open(netns)?));
        self.lock().insert(cookie, diag);
        Ok(())
    }

    pub(super) fn remove(&self, cookie: u64) {
        self.lock().remove(&cookie);
    }

    /// Destroys the TCP socket with these ends and this cookie (SO_COOKIE) in the namespace of an enrolled pod. False when
    /// it is gone.
    ///
    /// # Errors
    ///
    /// The namespace is not an enrolled pod's, or the kernel refuses: no CONFIG_INET_DIAG_DESTROY, or no privileges.
    pub fn destroy(
        &self,
        netns: u64,
        cookie: u64,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> io::Result<bool> {
        self.with(netns, |diag| diag.destroy(cookie, local, remote))
    }

    /// The open TCP sockets of an enrolled pod, with what is kept in the map `storage` for each.
    pub(super) fn open(&self, netns: u64, storage: BorrowedFd<'_>) -> io::Result<Vec<OpenSocket>> {
        self.with(netns, |diag| dump::open(&mut diag.netlink, storage))
    }

    fn with<T>(&self, netns: u64, f: impl FnOnce(&mut Diag) -> io::Result<T>) -> io::Result<T> {
        let diag = self.lock().get(&netns).cloned();
        let diag = diag.ok_or_else(|| io::Error::other("its network namespace is no enrolled pod's"))?;
        f(&mut diag.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Mutex<Diag>>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks about the network namespace that it was made in.
struct Diag {
    netlink: Netlink,
    /// Indexes of the namespace's interfaces, after 0: a socket that is bound to one is found only by that.
    interfaces: Vec<u32>,
}

impl Diag {
    fn open(netns: impl AsFd) -> io::Result<Self> {
        sys::in_netns(netns, || {
            let named = if_nameindex().map_err(io::Error::from)?;
            let indexes = named.iter().map(nix::net::if_::Interface::index);
            Ok(Self {
                netlink: Netlink::open(SOCK_DIAG)?,
                interfaces: std::iter::once(0).chain(indexes).collect(),
            })
        })
    }

    fn destroy(&mut self, cookie: u64, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        for interface in &self.interfaces {
            if destroy(&mut self.netlink, cookie, local, remote, *interface)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own() -> Diag {
        Diag::open(std::fs::File::open("/proc/self/ns/net").unwrap()).unwrap()
    }

    #[test]
    fn a_destroyed_connection_is_aborted_here_and_reset_there() {
        let mut diag = own();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            let cookie = socket2::SockRef::from(&server).cookie().unwrap();
            assert!(!diag.destroy(cookie + 1000, local, remote).unwrap(), "another socket's cookie");
            assert!(diag.destroy(cookie, local, remote).unwrap());
            assert!(!diag.destroy(cookie, local, remote).unwrap(), "it is gone");
            let kind = |result: io::Result<usize>| result.unwrap_err().kind();
            assert_eq!(kind(server.read(&mut [0; 1])), io::ErrorKind::ConnectionAborted);
            assert_eq!(kind(client.read(&mut [0; 1])), io::ErrorKind::ConnectionReset);
            TcpStream::connect(listener.local_addr().unwrap()).expect("the listener has been left alone");
        }
    }

    #[test]
    fn a_socket_bound_to_an_interface_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).bind_device(Some(b"lo")).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let cookie = socket2::SockRef::from(&server).cookie().unwrap();
        let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        assert!(own().destroy(cookie, local, remote).unwrap());
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn an_unknown_namespace_is_an_error() {
        let end = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(PodSockets::default().destroy(1, 1, end, end).is_err());
    }
}
