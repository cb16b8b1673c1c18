//! The pods' sockets, seen and ended from outside: one netlink socket in each enrolled pod's network namespace.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use nix::net::if_::if_nameindex;
use socket2::{Domain, Protocol, Socket, Type};

use super::destroy;
use super::dump::{self, OpenSocket};
use super::netlink::{Message, NLMSG_DONE, NLMSG_ERROR, messages};
use crate::sys;

const NETLINK_SOCK_DIAG: i32 = 4;
/// The kernel answers while it is asked; this is for the day when it does not.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// What the kernel sends at most in one datagram of a dump.
const DATAGRAM: usize = 64 << 10;

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
        self.with(netns, |diag| diag.dump(storage))
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

/// A NETLINK_SOCK_DIAG socket: it asks about the network namespace that it was made in.
struct Diag {
    socket: Socket,
    /// Indexes of the namespace's interfaces, after 0: a socket that is bound to one is found only by that.
    interfaces: Vec<u32>,
    /// Numbers the requests: an answer that nobody waited for is not taken for another.
    sequence: AtomicU32,
}

impl Diag {
    fn open(netns: impl AsFd) -> io::Result<Self> {
        let (socket, interfaces) = sys::in_netns(netns, || {
            let protocol = Protocol::from(NETLINK_SOCK_DIAG);
            let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
            let named = if_nameindex().map_err(io::Error::from)?;
            let indexes = named.iter().map(nix::net::if_::Interface::index);
            Ok((socket, std::iter::once(0).chain(indexes).collect()))
        })?;
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        Ok(Self { socket, interfaces, sequence: AtomicU32::new(1) })
    }

    fn next(&self) -> u32 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn destroy(&mut self, cookie: u64, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        for interface in &self.interfaces {
            let sequence = self.next();
            self.socket.send(&destroy::order(sequence, cookie, local, remote, *interface))?;
            let mut done = Ok(false);
            self.answers(sequence, |answer| {
                done = destroy::done(answer);
                true
            })?;
            if done? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn dump(&mut self, storage: BorrowedFd<'_>) -> io::Result<Vec<OpenSocket>> {
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let sequence = self.next();
            self.socket.send(&dump::order(sequence, family, storage))?;
            let mut failed = 0;
            self.answers(sequence, |answer| match answer.kind {
                NLMSG_DONE => true,
                NLMSG_ERROR => {
                    failed = destroy::errno(answer).unwrap_or(libc::EPROTO);
                    true
                }
                _ => {
                    sockets.extend(dump::socket(answer.body));
                    false
                }
            })?;
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
        }
        Ok(sockets)
    }

    /// Reads the answers to a request until `each` says that it was the last.
    fn answers(&self, sequence: u32, mut each: impl FnMut(&Message<'_>) -> bool) -> io::Result<()> {
        let mut buffer = vec![0_u8; DATAGRAM];
        loop {
            let length = io::Read::read(&mut &self.socket, &mut buffer)?;
            let answers = messages(buffer.get(..length).unwrap_or_default());
            for answer in answers.filter(|answer| answer.sequence == sequence) {
                if each(&answer) {
                    return Ok(());
                }
            }
        }
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
