//! Who may ask at the admin port. It listens on loopback alone; what follows keeps out those who get there on somebody's behalf.
//!
//! * Another machine on the link, where `net.ipv4.conf.*.route_localnet` is set (kube-proxy does that): it comes to 127.0.0.1 from an
//!   address that is not loopback.
//! * A web page in a browser of the node: by a name of its own that leads to 127.0.0.1 (DNS rebinding), it could read; by a form, it
//!   could post.

use std::net::{IpAddr, SocketAddr};

use http::Method;
use http::header::{HOST, ORIGIN};
use http::request::Parts;

/// Whether the peer is on this machine.
pub(super) fn is_local(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// # Errors
///
/// What is wrong with the request: it names another host, or comes from a web page.
pub(super) fn check(request: &Parts) -> Result<(), String> {
    let host = match (request.uri.authority(), request.headers.get(HOST)) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().unwrap_or(""),
        (None, None) => "",
    };
    if !is_local_name(host) {
        return Err(format!("host {host:?}: only localhost, 127.0.0.1 and [::1] are served here"));
    }
    let changes = request.method != Method::GET && request.method != Method::HEAD;
    if changes && request.headers.contains_key(ORIGIN) {
        return Err("a web page changes nothing here (header Origin)".to_owned());
    }
    Ok(())
}

/// `localhost` or a loopback address, with a port or without.
fn is_local_name(host: &str) -> bool {
    let (name, is_name) = match host.strip_prefix('[') {
        Some(rest) => (rest.split(']').next().unwrap_or(""), false),
        None => (host.split(':').next().unwrap_or(""), true),
    };
    let is_loopback = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_loopback || (is_name && name.eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_somebody_else_is_refused() {
        let passes = |method: &str, uri: &str, headers: &[(&str, &str)]| {
            let mut request = http::Request::builder().method(method).uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            check(&request.body(()).unwrap().into_parts().0).is_ok()
        };
        for host in ["localhost", "LOCALHOST:15000", "127.0.0.1:41234", "[::1]:15000", "[::1]", "127.0.0.2"] {
            assert!(passes("GET", "/config_dump", &[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example:15000",
            "localhost.evil.example",
            "10.0.0.1:15000",
            "[::2]",
            "[localhost",
            "[]",
        ] {
            assert!(!passes("GET", "/config_dump", &[("host", host)]), "{host}");
        }
        assert!(!passes("GET", "/config_dump", &[]));
        assert!(!passes("GET", "http://evil.example/config_dump", &[("host", "localhost")]));
        assert!(passes("POST", "/logging", &[("host", "localhost:15000")]));
        assert!(!passes("POST", "/logging", &[("host", "localhost:15000"), ("origin", "null")]));
    }

    #[test]
    fn another_machine_is_not_local() {
        for (peer, local) in [
            ("127.0.0.1:1", true),
            ("127.8.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
            ("[fe80::1]:1", false),
        ] {
            assert_eq!(is_local(peer.parse().unwrap()), local, "{peer}");
        }
    }
}
