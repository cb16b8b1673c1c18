//! Conversions for the agent: std addresses, text, and the marker that aya asks for.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::*;

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: bytemuck::Pod (derived, padding refused at compile time) already proves that any bytes are a value.
        unsafe impl aya::Pod for $t {}
    )* };
}
plain!(
    Ip,
    Endpoint,
    Tuple,
    Config,
    Pod,
    Guard,
    Workload,
    ServiceKey,
    Service,
    BackendKey,
    Member,
    AffinityKey,
    Affinity,
    Name,
    PolicyKey,
    PolicyRow,
    SourceKey,
    Admission,
    Connection,
    LocalKey,
    OriginalDst,
    SocketState,
    FlowEvent
);

impl From<IpAddr> for Ip {
    fn from(addr: IpAddr) -> Self {
        let octets = match addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        bytemuck::cast(octets)
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        let v6 = Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(ip));
        v6.to_ipv4_mapped().map_or(Self::V6(v6), Self::V4)
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(addr: Ipv4Addr) -> Self {
        IpAddr::V4(addr).into()
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip().into(), addr.port())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(end: Endpoint) -> Self {
        Self::new(end.ip().into(), end.port())
    }
}

impl core::fmt::Debug for Ip {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl core::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

macro_rules! debug_fields {
    ($t:ident { $($field:ident),* }) => {
        impl core::fmt::Debug for $t {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($t))$(.field(stringify!($field), &self.$field))*.finish()
            }
        }
    };
}
debug_fields!(Workload { identity, class, flags });
debug_fields!(Service { id, backends, flags });
debug_fields!(ServiceKey { vip });
debug_fields!(BackendKey { service, slot });
debug_fields!(OriginalDst { requested, target });

impl core::fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "class {} identity {} port {}", self.class(), self.identity(), self.port())
    }
}

impl core::fmt::Debug for PolicyRow {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.decision().fmt(f)
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self { text: cut(text) }
    }
}

impl Name {
    /// The text up to the NUL.
    pub fn as_str(&self) -> &str {
        let bytes: &[u8] = bytemuck::cast_slice(&self.text);
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        core::str::from_utf8(&bytes[..end]).unwrap_or("")
    }
}

/// `text` as NUL-terminated bytes, cut at a character boundary to leave room for the NUL.
pub fn cut<const N: usize>(text: &str) -> [i8; N] {
    let mut bytes = [0_i8; N];
    let mut end = text.len().min(N - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    bytes[..end].copy_from_slice(bytemuck::cast_slice(&text.as_bytes()[..end]));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_a_map() {
        for text in ["10.244.1.2:80", "[fd00:10:244:1::5]:5000", "[::1]:15001"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Endpoint::from(addr)), addr);
        }
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let bytes = |text: &[i8]| bytemuck::cast_slice::<_, u8>(text).to_vec();
        assert_eq!(bytes(&cut::<4>("aéb")), [b'a', 0xc3, 0xa9, 0]);
        assert_eq!(bytes(&cut::<3>("aéb")), [b'a', 0, 0]);
        assert_eq!(
            Name::from("spiffe://cluster.local/ns/a/sa/b").as_str(),
            "spiffe://cluster.local/ns/a/sa/b"
        );
    }
}
