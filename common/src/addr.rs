//! Addresses as the maps hold them.

use bytemuck::{Pod, Zeroable};

use crate::assert_size;

/// An IP address: 16 bytes, network order, IPv4 as `::ffff:a.b.c.d`.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Ip {
    bytes: [u8; 16],
}
assert_size!(Ip, 16);

impl Ip {
    /// `::`.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// From the four 32-bit words of an IPv6 address as the kernel holds them (network order in memory).
    #[inline(always)]
    pub fn from_words(words: [u32; 4]) -> Self {
        bytemuck::cast(words)
    }

    /// From an IPv4 address as the kernel holds it (network order in memory).
    #[inline(always)]
    pub fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, 0xffff_u32.to_be(), word])
    }

    /// The 16 octets, network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        self.bytes
    }

    /// The inverse of [`Ip::from_words`].
    #[inline(always)]
    pub fn words(self) -> [u32; 4] {
        bytemuck::cast(self)
    }

    /// The IPv4 address as the kernel holds it, when this is an IPv4-mapped address.
    #[inline(always)]
    pub fn v4_word(self) -> Option<u32> {
        let [a, b, c, d] = self.words();
        if a == 0 && b == 0 && c == 0xffff_u32.to_be() { Some(d) } else { None }
    }

    /// 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        let [a, b, c, d] = self.words();
        match self.v4_word() {
            Some(word) => word.to_ne_bytes()[0] == 127,
            None => a == 0 && b == 0 && c == 0 && d == 1_u32.to_be(),
        }
    }

    /// 0.0.0.0 or ::, which connect() takes for loopback.
    #[inline(always)]
    pub fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.words();
        a == 0 && b == 0 && d == 0 && (c == 0 || c == 0xffff_u32.to_be())
    }
}

/// An address and a TCP port (host order).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Endpoint {
    ip: Ip,
    port: u32,
}
assert_size!(Endpoint, 20);

impl Endpoint {
    /// An endpoint; `port` in host order.
    #[inline(always)]
    pub const fn new(ip: Ip, port: u16) -> Self {
        Self { ip, port: port as u32 }
    }

    /// The address.
    #[inline(always)]
    pub const fn ip(&self) -> Ip {
        self.ip
    }

    /// The port, host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port as u16
    }
}

/// A connection as seen from its client: source and destination of the SYN.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Tuple {
    source: Endpoint,
    destination: Endpoint,
}
assert_size!(Tuple, 40);

impl Tuple {
    /// The tuple of a connection from `source` to `destination`.
    #[inline(always)]
    pub const fn new(source: Endpoint, destination: Endpoint) -> Self {
        Self { source, destination }
    }

    /// The client's end.
    #[inline(always)]
    pub const fn source(&self) -> Endpoint {
        self.source
    }

    /// The server's end.
    #[inline(always)]
    pub const fn destination(&self) -> Endpoint {
        self.destination
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_is_mapped_and_comes_back() {
        let word = u32::from_ne_bytes([10, 244, 1, 2]);
        let ip = Ip::from_v4_word(word);
        assert_eq!(bytemuck::bytes_of(&ip), &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 244, 1, 2]);
        assert_eq!(ip.v4_word(), Some(word));
        assert_eq!(Ip::from_words(ip.words()), ip);
    }

    #[test]
    fn loopback_and_unspecified_are_known_in_both_families() {
        let v4 = |a, b, c, d| Ip::from_v4_word(u32::from_ne_bytes([a, b, c, d]));
        assert!(v4(127, 8, 0, 1).is_loopback() && !v4(10, 0, 0, 1).is_loopback());
        let one = Ip::from_words([0, 0, 0, 1_u32.to_be()]);
        assert!(one.is_loopback() && !one.is_unspecified());
        assert!(Ip::from_words([0; 4]).is_unspecified() && v4(0, 0, 0, 0).is_unspecified());
    }

    #[test]
    fn a_tuple_key_has_the_bytes_that_the_docs_show() {
        let end = |last, port| Endpoint::new(Ip::from_v4_word(u32::from_ne_bytes([10, 244, 1, last])), port);
        let tuple = Tuple::new(end(2, 40000), end(3, 5000));
        let bytes = bytemuck::bytes_of(&tuple);
        assert_eq!(&bytes[12..16], &[10, 244, 1, 2]);
        assert_eq!(&bytes[16..20], &40000_u32.to_ne_bytes());
        assert_eq!(&bytes[32..36], &[10, 244, 1, 3]);
        assert_eq!(&bytes[36..40], &5000_u32.to_ne_bytes());
    }
}
