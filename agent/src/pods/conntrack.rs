//! What the node's connection tracking remembers of a pod from before it joined (ctnetlink: nfnetlink_conntrack.h).
//!
//! kube-proxy translated the pod's connections to virtual addresses then. The entries of those that have ended stay for two
//! minutes, and a direct connection to the same backend from the same port would be moved to another port by NAT: it would
//! arrive as one that nobody has admitted.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use nix::libc;

use crate::sys::netlink::{NESTED, NETFILTER, Netlink, attribute, find};

/// `NFNL_SUBSYS_CTNETLINK << 8` with IPCTNL_MSG_CT_GET and IPCTNL_MSG_CT_DELETE.
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;
/// `sizeof(struct nfgenmsg)`.
const HEADER: usize = 4;
const TUPLE_ORIG: u16 = 1;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
/// IPS_DST_NAT.
const TRANSLATED: u32 = 1 << 5;
/// TCP_CONNTRACK_TIME_WAIT, TCP_CONNTRACK_CLOSE.
const ENDED: [u8; 2] = [7, 8];

/// Deletes the ended, translated TCP connections of these addresses in the calling thread's network namespace. Returns how
/// many there were.
///
/// # Errors
///
/// What the kernel said; without connection tracking there is nothing to delete.
pub(super) fn forget_ended(addresses: &HashSet<IpAddr>) -> io::Result<usize> {
    let mut netlink = Netlink::open(NETFILTER)?;
    let mut forgotten = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut ended = Vec::new();
        netlink.dump(CT_GET, &[family, 0, 0, 0], |entry| {
            ended.extend(entry.get(HEADER..).and_then(|entry| to_forget(entry, addresses)));
        })?;
        for tuple in ended {
            let mut body = vec![family, 0, 0, 0];
            body.extend(attribute(TUPLE_ORIG | NESTED, &tuple));
            netlink.order(CT_DELETE, &body)?; // one that has gone meanwhile is as good
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

/// The original tuple, of such a connection.
fn to_forget(entry: &[u8], addresses: &HashSet<IpAddr>) -> Option<Vec<u8>> {
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
