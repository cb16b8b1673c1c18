//! The little of netlink (RFC 3549, netlink(7)) that sock_diag needs: messages and attributes, all in native byte order.

/// `sizeof(struct nlmsghdr)`.
pub(super) const HEADER: usize = 16;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of an attribute's type.
const TYPE: u16 = 0x3fff;

/// One message of an answer.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// A request with its header.
pub(super) fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]); // port id: the kernel's
    bytes.extend(body);
    bytes
}

/// An attribute around `content`, padded.
pub(super) fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + content.len() + 3);
    bytes.extend(((4 + content.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The messages of a datagram; ends at the first that is none.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            sequence: u32_at(bytes, 8)?,
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attribute of this type, in a row of them.
pub(super) fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE;
        let content = bytes.get(4..length)?;
        if kind == wanted {
            return Some(content);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// A native u16.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)
}

/// A native u32.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = attribute(3, &7_u32.to_ne_bytes());
        let outer = [attribute(1, b"x"), attribute(2 | 0x8000, &inner)].concat();
        let bytes = [request(20, 1, 9, &outer), request(NLMSG_DONE, 0, 9, &[])].concat();
        let all: Vec<Message<'_>> = messages(&bytes).collect();
        assert_eq!((all.len(), all[0].kind, all[0].sequence, all[1].kind), (2, 20, 9, NLMSG_DONE));
        let nested = find(all[0].body, 2).and_then(|nested| find(nested, 3)).unwrap();
        assert_eq!(u32_at(nested, 0), Some(7));
        assert_eq!(find(all[0].body, 5), None);
    }

    #[test]
    fn what_is_cut_off_ends_the_reading() {
        let bytes = request(20, 1, 9, &attribute(1, b"content"));
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0, "{end}");
        }
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(find(&[0; 64], 1), None);
    }
}
