//! What a CONNECT request says besides its method.

use std::net::{IpAddr, SocketAddr};

/// `:authority` of a tunnel to `target`: `10.244.2.3:5000` or `[fd00::3]:5000`.
pub fn authority(target: SocketAddr) -> String {
    target.to_string()
}

/// The address in an `:authority`. `None` for host names, zone ids and missing ports: Culvert serves addresses.
pub fn parse_authority(text: &str) -> Option<SocketAddr> {
    if text.contains('%') {
        return None;
    }
    let target: SocketAddr = text.parse().ok()?;
    Some(SocketAddr::new(target.ip().to_canonical(), target.port()))
}

/// `forwarded` (RFC 7239): the app's own end and, when it asked for a service, the service's name.
pub fn forwarded(client: SocketAddr, host: Option<&str>) -> String {
    match host {
        Some(host) => format!("for=\"{client}\";host={host}"),
        None => format!("for=\"{client}\""),
    }
}

/// The client's port in a `forwarded` header, when the header speaks of `peer`.
///
/// A peer may name the port of its own client's socket; another address than its own would be a lie.
pub fn client_port(forwarded: &str, peer: IpAddr) -> Option<u16> {
    let value = forwarded
        .split([';', ','])
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("for").then_some(value))?;
    let client = parse_authority(value.trim_matches('"'))?;
    (client.ip() == peer && client.port() != 0).then_some(client.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_addresses_with_ports() {
        for text in ["10.0.0.1:80", "[fd00::1]:80"] {
            assert_eq!(authority(parse_authority(text).unwrap()), text);
        }
        assert_eq!(parse_authority("[::ffff:10.0.0.1]:80").unwrap().to_string(), "10.0.0.1:80");
        for text in ["", "10.0.0.1", "db.hello:80", "10.0.0.1:99999", "fd00::1:80", "[fe80::1%2]:80"] {
            assert_eq!(parse_authority(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_peers_own_address_lends_its_port() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let v4 = forwarded("10.0.0.1:4000".parse().unwrap(), Some("db.hello.svc.cluster.local"));
        assert_eq!(v4, "for=\"10.0.0.1:4000\";host=db.hello.svc.cluster.local");
        assert_eq!(client_port(&v4, ip("10.0.0.1")), Some(4000));
        assert_eq!(client_port(&v4, ip("10.0.0.2")), None);
        let v6 = forwarded("[fd00::1]:4000".parse().unwrap(), None);
        assert_eq!(client_port(&v6, ip("fd00::1")), Some(4000));
        for text in ["", "for=", "for=10.0.0.1", "for=\"10.0.0.1:0\"", "by=\"10.0.0.1:1\""] {
            assert_eq!(client_port(text, ip("10.0.0.1")), None, "{text}");
        }
    }
}
