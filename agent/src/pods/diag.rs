//! sock_diag(7) in a pod's network namespace: its TCP connections, listed and ended from outside. An app whose connection is
//! destroyed (SOCK_DESTROY, Linux 4.5) sees ECONNABORTED, its peer a reset.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::sys;

const NETLINK_SOCK_DIAG: i32 = 4;
/// The kernel fills as much as it is offered, up to 32 KiB at a time.
const CHUNK: usize = 32 << 10;

/// The TCP sockets of one network namespace.
pub(super) struct Diag {
    socket: Socket,
}

/// One TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Found {
    /// SO_COOKIE: its name until the machine goes down.
    pub(super) cookie: u64,
    /// Its own end; IPv4 also where the socket is of AF_INET6.
    pub(super) local: SocketAddr,
    /// The other end.
    pub(super) remote: SocketAddr,
    /// Whether it waits for connections and has no other end.
    pub(super) listens: bool,
}

impl Diag {
    /// Of the network namespace `netns`.
    ///
    /// # Errors
    ///
    /// When it cannot be entered, or there is no CONFIG_INET_DIAG.
    pub(super) fn open(netns: impl AsFd) -> io::Result<Self> {
        let socket = sys::in_netns(netns, || {
            Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG)))
        })?;
        Ok(Self { socket })
    }

    /// Destroys the socket with these ends and this cookie. False when it is gone.
    ///
    /// The cookie is not for show: without an established socket of these ends the kernel's look-up finds the *listener*,
    /// and would destroy that.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: no CONFIG_INET_DIAG_DESTROY, or no privileges.
    pub(super) fn destroy(&self, cookie: u64, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let mut request = request(local.is_ipv4(), StateFlags::all());
        request.socket_id.source_port = local.port();
        request.socket_id.source_address = local.ip();
        request.socket_id.destination_port = remote.port();
        request.socket_id.destination_address = remote.ip();
        request.socket_id.cookie = halves(cookie);
        let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        self.send(message.into(), NLM_F_REQUEST | NLM_F_ACK)?;
        let mut answer = [0; CHUNK];
        let (answer, _) = self.receive::<SockDiagDestroy>(&mut answer)?;
        let error = match answer.first() {
            Some(NetlinkPayload::Error(error)) => error.raw_code(),
            _ => return Err(io::Error::other("the kernel's answer to SOCK_DESTROY is no acknowledgement")),
        };
        match -error {
            0 => Ok(true),
            libc::ENOENT | libc::ESTALE => Ok(false),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The sockets that are listening or have another end, of both families; without those that the kernel keeps for
    /// itself after the end (TIME_WAIT, closed).
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub(super) fn sockets(&self) -> io::Result<Vec<Found>> {
        let states = StateFlags::all() - StateFlags::TIME_WAIT - StateFlags::CLOSE;
        let mut found = Vec::new();
        for v4 in [true, false] {
            let request = SockDiagMessage::InetRequest(request(v4, states.clone()));
            self.send(request.into(), NLM_F_REQUEST | NLM_F_DUMP)?;
            while self.dumped(&mut found)? {}
        }
        Ok(found)
    }

    /// Takes one chunk of a dump; false at its end.
    fn dumped(&self, found: &mut Vec<Found>) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        let (messages, _) = self.receive::<SockDiagMessage>(&mut chunk)?;
        for message in messages {
            match message {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(Found::from(&*response));
                }
                NetlinkPayload::Done(_) => return Ok(false),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(true)
    }

    fn send<M: NetlinkSerializable>(&self, message: NetlinkPayload<M>, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut packet = NetlinkMessage::new(header, message);
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes).map(drop)
    }

    /// The messages of one datagram, and its length.
    fn receive<M: NetlinkDeserializable>(
        &self,
        chunk: &mut [u8],
    ) -> io::Result<(Vec<NetlinkPayload<M>>, usize)> {
        let length = io::Read::read(&mut &self.socket, chunk)?;
        let mut rest = chunk.get(..length).unwrap_or_default();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
            // Messages begin at multiples of four bytes (NLMSG_ALIGN).
            let taken = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(taken..).unwrap_or_default();
            messages.push(message.payload);
        }
        Ok((messages, length))
    }
}

fn request(v4: bool, states: StateFlags) -> InetRequest {
    InetRequest {
        family: if v4 { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: if v4 { SocketId::new_v4() } else { SocketId::new_v6() },
    }
}

/// A cookie as `struct inet_diag_sockid` has it: two native words, the lower one first.
fn halves(cookie: u64) -> [u8; 8] {
    let (lower, upper) = ((cookie as u32).to_ne_bytes(), ((cookie >> 32) as u32).to_ne_bytes());
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&lower);
    bytes[4..].copy_from_slice(&upper);
    bytes
}

fn whole([a, b, c, d, e, f, g, h]: [u8; 8]) -> u64 {
    let (lower, upper) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    u64::from(upper) << 32 | u64::from(lower)
}

impl From<&InetResponse> for Found {
    fn from(response: &InetResponse) -> Self {
        let id = &response.header.socket_id;
        Self {
            cookie: whole(id.cookie),
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            listens: response.header.state == TCP_LISTEN,
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
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            let cookie = socket2::SockRef::from(&server).cookie().unwrap();
            let diag = own();
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
    fn all_sockets_are_listed_with_their_cookies() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // More than one chunk of a dump holds, and one that is IPv4 on an AF_INET6 listener.
        let pair = |_| [TcpStream::connect(("127.0.0.1", port)).unwrap(), listener.accept().unwrap().0];
        let streams: Vec<_> = (0..600).flat_map(pair).collect();
        let found = own().sockets().unwrap();
        let cookie_of = |stream: &TcpStream| socket2::SockRef::from(stream).cookie().unwrap();
        for stream in &streams {
            let expected = Found {
                cookie: cookie_of(stream),
                local: canonical(stream.local_addr().unwrap()),
                remote: canonical(stream.peer_addr().unwrap()),
                listens: false,
            };
            assert!(found.contains(&expected), "{expected:?}");
        }
        assert!(found.iter().any(|f| f.listens && f.local.port() == port));
    }

    fn canonical(address: SocketAddr) -> SocketAddr {
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    #[test]
    fn a_cookie_has_two_halves() {
        assert_eq!(whole(halves(0x0123_4567_89ab_cdef)), 0x0123_4567_89ab_cdef);
    }
}
