//! The headers of a CONNECT request.

use std::net::{IpAddr, SocketAddr};

use rand::RngExt;

/// `forwarded` (RFC 7239): who the client is, and which service it asked for.
pub fn forwarded(client: SocketAddr, host: Option<&str>) -> String {
    match host {
        Some(host) => format!("for=\"{client}\";host={host}"),
        None => format!("for=\"{client}\""),
    }
}

/// The client in a `forwarded` header. Anything else in it is ignored; `None` when it holds no address and port.
pub fn parse_forwarded(value: &str) -> Option<SocketAddr> {
    let first = value.split(',').next()?;
    let pair = first.split(';').find_map(|part| {
        let (key, value) = part.trim().split_once('=')?;
        key.eq_ignore_ascii_case("for").then_some(value)
    })?;
    pair.trim().trim_matches('"').parse().ok()
}

/// A new W3C trace context: random ids, not sampled.
pub fn traceparent() -> String {
    let mut rng = rand::rng();
    format!("00-{:032x}-{:016x}-00", rng.random::<u128>() | 1, rng.random::<u64>() | 1)
}

/// The real address of the client: the tunnel's peer proved the address by its connection; the port of the app's own socket is
/// taken from the header when it speaks of the same address.
pub fn client_address(tunnel_peer: SocketAddr, forwarded: Option<&str>) -> SocketAddr {
    let canonical = SocketAddr::new(unmapped(tunnel_peer.ip()), tunnel_peer.port());
    forwarded.and_then(parse_forwarded).filter(|client| client.ip() == canonical.ip()).unwrap_or(canonical)
}

/// An IPv4-mapped address as the IPv4 address that it is.
pub fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_is_written_and_read_for_both_families() {
        for client in ["10.244.0.24:46238", "[fd00::1]:80"] {
            let client: SocketAddr = client.parse().unwrap();
            assert_eq!(parse_forwarded(&forwarded(client, None)), Some(client));
            assert_eq!(
                parse_forwarded(&forwarded(client, Some("echo.default.svc.cluster.local"))),
                Some(client)
            );
        }
        let client: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!(forwarded(client, Some("example.com")), "for=\"127.0.0.1:80\";host=example.com");
        for odd in ["", "host=x", "for=unknown", "for=\"_hidden\"", "for=1.2.3.4", "for", ";;;"] {
            assert_eq!(parse_forwarded(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_client_cannot_claim_another_address() {
        let peer = "10.0.0.1:5555".parse().unwrap();
        assert_eq!(client_address(peer, Some("for=\"10.0.0.1:1234\"")), "10.0.0.1:1234".parse().unwrap());
        assert_eq!(client_address(peer, Some("for=\"10.0.0.9:1234\"")), peer);
        let mapped = "[::ffff:10.0.0.1]:5555".parse().unwrap();
        assert_eq!(client_address(mapped, None), peer);
    }

    #[test]
    fn traceparent_has_the_shape_of_the_standard() {
        let value = traceparent();
        let parts: Vec<_> = value.split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2], "{value}");
    }
}
