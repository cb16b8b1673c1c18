//! The little of netlink (RFC 3549, netlink(7)) that sock_diag, ctnetlink and nf_tables need, for which no library has the
//! messages: requests, answers and attributes, all in native byte order.

use std::io;
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// NETLINK_SOCK_DIAG.
pub const SOCK_DIAG: i32 = 4;
/// NETLINK_NETFILTER.
pub const NETFILTER: i32 = 12;
/// NLA_F_NESTED.
pub const NESTED: u16 = 0x8000;

/// NLM_F_REQUEST with NLM_F_ACK, and with NLM_F_DUMP.
const ORDER: u16 = 1 | 4;
const DUMP: u16 = 1 | 0x300;
/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of an attribute's type.
const TYPE: u16 = 0x3fff;
/// The kernel answers while it is asked; this is for the day when it does not.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// What the kernel sends at most in one datagram of a dump.
const DATAGRAM: usize = 64 << 10;

/// A netlink socket: it asks about the network namespace that it was made in.
pub struct Netlink {
    socket: Socket,
    /// Numbers the requests: an answer that nobody waited for is not taken for another.
    sequence: u32,
}

impl Netlink {
    /// A socket of the calling thread's network namespace, for a protocol: [`SOCK_DIAG`], [`NETFILTER`].
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn open(protocol: i32) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// One order; returns the errno of its acknowledgement, 0 when it was carried out.
    ///
    /// # Errors
    ///
    /// It could not be sent, or was not answered.
    pub fn order(&mut self, kind: u16, body: &[u8]) -> io::Result<i32> {
        self.exchange(kind, ORDER, body, &mut |_| {})
    }

    /// One question, and `each` for the body of each message of the answer.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn dump(&mut self, kind: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        match self.exchange(kind, DUMP, body, &mut each)? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        each: &mut dyn FnMut(&[u8]),
    ) -> io::Result<i32> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request(kind, flags, self.sequence, body))?;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let length = io::Read::read(&mut &self.socket, &mut buffer)?;
            let answers = messages(buffer.get(..length).unwrap_or_default());
            for answer in answers.filter(|answer| answer.sequence == self.sequence) {
                match answer.kind {
                    NLMSG_DONE => return Ok(0),
                    NLMSG_ERROR => {
                        return Ok(u32_at(answer.body, 0).map_or(libc::EPROTO, |code| -(code as i32)));
                    }
                    _ => each(answer.body),
                }
            }
        }
    }
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// A request with its header.
fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
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
pub fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + content.len() + 3);
    bytes.extend(((4 + content.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The messages of a datagram; ends at the first that is none.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
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
pub fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
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
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)
}

/// A native u32.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
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
