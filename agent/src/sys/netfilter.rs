//! The chains of nf_tables, those of iptables-nft among them, in the network namespace of the calling thread.

use std::io;

use super::netlink::{NETFILTER, Netlink, find};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` (include/uapi/linux/netfilter/nf_tables.h).
const GET_CHAIN: u16 = 10 << 8 | 4;
const TABLE: u16 = 1;
const NAME: u16 = 3;
/// `sizeof(struct nfgenmsg)`.
const HEADER: usize = 4;

/// Whether `is_wanted` holds for the table and the name of some chain.
///
/// # Errors
///
/// What the kernel said: no nf_tables, or no CAP_NET_ADMIN.
pub fn has_chain(is_wanted: impl Fn(&str, &str) -> bool) -> io::Result<bool> {
    let mut found = false;
    // Zeros: of all families.
    Netlink::open(NETFILTER)?.dump(GET_CHAIN, &[0; HEADER], |answer| {
        let attributes = answer.get(HEADER..).unwrap_or_default();
        found |= is_wanted(&text(attributes, TABLE), &text(attributes, NAME));
    })?;
    Ok(found)
}

/// A text among the attributes, or an empty one.
fn text(attributes: &[u8], kind: u16) -> String {
    let value = find(attributes, kind).unwrap_or_default();
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::netlink::attribute;
    use super::*;

    #[test]
    fn a_chain_is_its_table_and_its_name() {
        let all =
            [attribute(TABLE, b"nat\0"), attribute(2, b"handle\0"), attribute(NAME, b"KUBE-SERVICES\0")];
        let bytes = all.concat();
        let chain = |bytes: &[u8]| (text(bytes, TABLE), text(bytes, NAME));
        assert_eq!(chain(&bytes), ("nat".to_owned(), "KUBE-SERVICES".to_owned()));
        assert_eq!(chain(&bytes[..7]), (String::new(), String::new()));
    }
}
