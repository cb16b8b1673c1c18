//! What the node's connection tracking remembers of a pod from before it joined (ctnetlink: nfnetlink_conntrack.h).
//!
//! kube-proxy translated the pod's connections to virtual addresses then. The entries of those that have ended stay for two
//! minutes, and a direct connection to the same backend from the same port would be moved to another port by NAT: it would
//! arrive as one that nobody has admitted.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::netlink::{NLMSG_DONE, NLMSG_ERROR, attribute, find, messages, request};

const NETLINK_NETFILTER: i32 = 12;
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;
const REQUEST_DUMP: u16 = 1 | 0x300;
const REQUEST_ACK: u16 = 1 | 4;
const NESTED: u16 = 0x8000;
/// `sizeof(struct nfgenmsg)`.
const HEADER: usize = 4;
const TUPLE_ORIG: u16 = 1;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
/// IPS_DST_NAT.
const TRANSLATED: u32 = 1 << 5;
/// TCP_CONNTRACK_TIME_WAIT, TCP_CONNTRACK_CLOSE.
const ENDED: [u8; 2] = [7, 8];
const ANSWER_WAIT: Duration = Duration::from_secs(2);
const DATAGRAM: usize = 64 << 10;

/// Deletes the ended, translated TCP connections of these addresses in the calling thread's network namespace. Returns how
/// many there were.
///
/// # Errors
///
/// What the kernel said; without connection tracking there is nothing to delete.
pub(super) fn forget_ended(addresses: &[IpAddr]) -> io::Result<usize> {
    let protocol = Protocol::from(NETLINK_NETFILTER);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(ANSWER_WAIT))?;
    let mut forgotten = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        for tuple in ended(&socket, family, addresses)? {
            let mut body = vec![family, 0, 0, 0];
            body.extend(attribute(TUPLE_ORIG | NESTED, &tuple));
            socket.send(&request(CT_DELETE, REQUEST_ACK, 2, &body))?;
            let mut answer = [0; 512];
            io::Read::read(&mut &socket, &mut answer)?; // one that has gone meanwhile is as good
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

/// The original tuples of such connections.
fn ended(socket: &Socket, family: u8, addresses: &[IpAddr]) -> io::Result<Vec<Vec<u8>>> {
    socket.send(&request(CT_GET, REQUEST_DUMP, 1, &[family, 0, 0, 0]))?;
    let mut tuples = Vec::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = io::Read::read(&mut &*socket, &mut buffer)?;
        for message in messages(buffer.get(..length).unwrap_or_default()) {
            match message.kind {
                NLMSG_DONE | NLMSG_ERROR => return Ok(tuples),
                _ => tuples.extend(message.body.get(HEADER..).and_then(|entry| to_forget(entry, addresses))),
            }
        }
    }
}

fn to_forget(entry: &[u8], addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let status = find(entry, STATUS)?.try_into().ok().map(u32::from_be_bytes)?;
    let state = find(find(find(entry, PROTOINFO)?, 1)?, 1)?.first()?;
    let tuple = find(entry, TUPLE_ORIG)?;
    let ips = find(tuple, 1)?;
    let source: IpAddr = match (find(ips, 1), find(ips, 3)) {
        (Some(v4), _) => <[u8; 4]>::try_from(v4).ok()?.into(),
        (None, Some(v6)) => <[u8; 16]>::try_from(v6).ok()?.into(),
        (None, None) => return None,
    };
    let ours = status & TRANSLATED != 0 && ENDED.contains(state) && addresses.contains(&source);
    ours.then(|| tuple.to_vec())
}
