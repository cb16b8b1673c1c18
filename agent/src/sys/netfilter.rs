//! The chains of nf_tables, those of iptables-nft among them, in the network namespace of the calling thread.

use std::io;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

const NETLINK_NETFILTER: i32 = 12;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` (include/uapi/linux/netfilter/nf_tables.h).
const GET_CHAIN: u16 = 10 << 8 | 4;
const REQUEST_DUMP: u16 = 1 | 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const TABLE: u16 = 1;
const NAME: u16 = 3;
/// `sizeof(struct nlmsghdr)` and `sizeof(struct nfgenmsg)`.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// Whether `is_wanted` holds for the table and the name of some chain.
///
/// # Errors
///
/// What the kernel said: no nf_tables, or no CAP_NET_ADMIN.
pub fn has_chain(is_wanted: impl Fn(&str, &str) -> bool) -> io::Result<bool> {
    let socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))?;
    let mut question = Vec::with_capacity(HEADER + FAMILY);
    question.extend(((HEADER + FAMILY) as u32).to_ne_bytes());
    question.extend(GET_CHAIN.to_ne_bytes());
    question.extend(REQUEST_DUMP.to_ne_bytes());
    question.extend([0; 8]); // sequence number and port id
    question.extend([0; FAMILY]); // all families
    socket.send(&question)?;
    let mut datagram = vec![0; 64 << 10];
    let mut found = false;
    loop {
        let length = io::Read::read(&mut &socket, &mut datagram)?;
        let mut rest = datagram.get(..length).unwrap_or_default();
        while let Some((kind, body, after)) = message(rest) {
            rest = after;
            match kind {
                DONE => return Ok(found),
                ERROR => {
                    let errno = body.first_chunk().map_or(libc::EPROTO, |code| -i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(errno));
                }
                _ => {
                    let (table, name) = chain(body.get(FAMILY..).unwrap_or_default());
                    found |= is_wanted(&table, &name);
                }
            }
        }
    }
}

/// Type, body and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.first_chunk().copied()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(HEADER..length)?, after))
}

fn chain(mut attributes: &[u8]) -> (String, String) {
    let (mut table, mut name) = (String::new(), String::new());
    while let (Some([a, b, c, d]), true) = (attributes.first_chunk(), attributes.len() > 4) {
        let (length, kind) = (u16::from_ne_bytes([*a, *b]) as usize, u16::from_ne_bytes([*c, *d]));
        let Some(value) = attributes.get(4..length) else { break };
        let text = || String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        match kind {
            TABLE => table = text(),
            NAME => name = text(),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (table, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_its_table_and_its_name() {
        let attribute = |kind: u16, text: &str| {
            let mut bytes = ((text.len() + 5) as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(text.bytes());
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let bytes =
            [attribute(TABLE, "nat"), attribute(2, "handle"), attribute(NAME, "KUBE-SERVICES")].concat();
        assert_eq!(chain(&bytes), ("nat".to_owned(), "KUBE-SERVICES".to_owned()));
        assert_eq!(chain(&bytes[..7]), (String::new(), String::new()));
    }
}
