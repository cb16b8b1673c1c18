//! Ending an open connection from outside: SOCK_DESTROY over NETLINK_SOCK_DIAG (sock_diag(7), Linux 4.5), in the network
//! namespace of the socket. The app sees ECONNABORTED, its peer a reset.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::sys;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
/// `sizeof(struct nlmsghdr)` and `sizeof(struct inet_diag_req_v2)`.
const HEADER: usize = 16;
const REQUEST: usize = 56;

/// Destroys the TCP socket of `netns` with these ends and this cookie (SO_COOKIE). False when it is gone.
///
/// The cookie is not for show: without an established socket of these ends the kernel's look-up finds the *listener*, and
/// would destroy that.
///
/// # Errors
///
/// When the kernel refuses: no CONFIG_INET_DIAG_DESTROY, or no privileges.
pub(super) fn destroy(
    netns: impl AsFd,
    cookie: u64,
    local: SocketAddr,
    remote: SocketAddr,
) -> io::Result<bool> {
    let socket = sys::in_netns(netns, || {
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG)))
    })?;
    socket.send(&request(cookie, local, remote))?;
    let mut answer = [0_u8; 256];
    let length = io::Read::read(&mut &socket, &mut answer)?;
    match errno(answer.get(..length).unwrap_or_default())? {
        0 => Ok(true),
        libc::ENOENT | libc::ESTALE => Ok(false),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn request(cookie: u64, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DESTROY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port id
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    bytes.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // any state
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(sixteen(local.ip()));
    bytes.extend(sixteen(remote.ip()));
    bytes.extend([0; 4]); // any interface
    bytes.extend((cookie as u32).to_ne_bytes());
    bytes.extend(((cookie >> 32) as u32).to_ne_bytes());
    bytes
}

/// An address in the sixteen bytes of `struct inet_diag_sockid`; IPv4 fills the first four.
fn sixteen(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
    }
}

/// The error in an acknowledgement; 0 is success.
fn errno(answer: &[u8]) -> io::Result<i32> {
    let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    match (kind, answer.get(HEADER..HEADER + 4)) {
        (Some(NLMSG_ERROR), Some(b)) => Ok(-i32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
        _ => Err(io::Error::other("the kernel's answer to SOCK_DESTROY is no acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_destroyed_connection_is_aborted_here_and_reset_there() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
            let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            let cookie = socket2::SockRef::from(&server).cookie().unwrap();
            assert!(!destroy(&netns, cookie + 1000, local, remote).unwrap(), "another socket's cookie");
            assert!(destroy(&netns, cookie, local, remote).unwrap());
            assert!(!destroy(&netns, cookie, local, remote).unwrap(), "it is gone");
            let kind = |result: io::Result<usize>| result.unwrap_err().kind();
            assert_eq!(kind(server.read(&mut [0; 1])), io::ErrorKind::ConnectionAborted);
            assert_eq!(kind(client.read(&mut [0; 1])), io::ErrorKind::ConnectionReset);
            TcpStream::connect(listener.local_addr().unwrap()).expect("the listener has been left alone");
        }
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        assert!(errno(&[]).is_err());
        assert!(errno(&[0; 40]).is_err());
    }
}
