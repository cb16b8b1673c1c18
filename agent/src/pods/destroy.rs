//! Ending an open connection from outside: SOCK_DESTROY (sock_diag(7), Linux 4.5). The app sees ECONNABORTED, its peer a
//! reset.
//!
//! The cookie is not for show: without an established socket of these ends the kernel's look-up finds the *listener*, and
//! would destroy that.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::libc;

use crate::sys::netlink::Netlink;

const SOCK_DESTROY: u16 = 21;

/// Ends the TCP socket with these ends and this cookie (SO_COOKIE), when it is bound to no interface or to the
/// one with this index. Returns false when the socket is gone.
///
/// # Errors
///
/// The kernel refuses: no CONFIG_INET_DIAG_DESTROY, or no privileges.
pub(super) fn destroy(
    diag: &mut Netlink,
    cookie: u64,
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
) -> io::Result<bool> {
    let mut body = Vec::with_capacity(56);
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    body.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    body.extend(u32::MAX.to_ne_bytes()); // any state
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    body.extend(sixteen(local.ip()));
    body.extend(sixteen(remote.ip()));
    body.extend(interface.to_ne_bytes());
    body.extend((cookie as u32).to_ne_bytes());
    body.extend(((cookie >> 32) as u32).to_ne_bytes());
    match diag.order(SOCK_DESTROY, &body)? {
        0 => Ok(true),
        libc::ENOENT | libc::ESTALE => Ok(false),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
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
