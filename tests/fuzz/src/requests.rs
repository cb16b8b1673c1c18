//! Requests of HBONE peers: text of any kind, and text that is nearly right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert::hbone::{authority, baggage, client_port, forwarded, parse_authority};
use culvert::proxy::check;
use http::{HeaderValue, Method, StatusCode};
use libfuzzer_sys::arbitrary::{self, Arbitrary};

const RESERVED: [u16; 3] = [15001, 15006, 15008];
const POD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))];

/// A request, its sender, and a pod's labels.
#[derive(Arbitrary, Debug)]
pub struct PeerRequest {
    method: Vec<u8>,
    connect: bool,
    authority: Text,
    forwarded: Text,
    peer: Address,
    host: Option<String>,
    labels: [String; 4],
}

#[derive(Arbitrary, Debug)]
enum Text {
    Any(String),
    /// What a peer writes, with something in front and behind.
    Nearly(String, Address, u16, String),
}

#[derive(Arbitrary, Debug)]
enum Address {
    Pod,
    Pod6,
    Mapped,
    V4(u32),
    V6(u128),
}

impl Address {
    fn ip(&self) -> IpAddr {
        match self {
            Self::Pod => Ipv4Addr::new(10, 0, 0, 1).into(),
            Self::Pod6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
            Self::Mapped => Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into(),
            Self::V4(bits) => Ipv4Addr::from(*bits).into(),
            Self::V6(bits) => Ipv6Addr::from(*bits).into(),
        }
    }
}

impl Text {
    fn text(&self) -> String {
        match self {
            Self::Any(text) => text.clone(),
            Self::Nearly(before, address, port, after) => {
                format!("{before}{}{after}", SocketAddr::new(address.ip(), *port))
            }
        }
    }
}

/// A request is served only when it is a CONNECT to an address of the pod and a port that is not the mesh's, and what is
/// written is read again.
pub fn requests(request: &PeerRequest) {
    served_requests_are_for_the_pod(request);
    only_the_peer_lends_its_port(request);
    baggage_is_a_header(request);
}

fn served_requests_are_for_the_pod(request: &PeerRequest) {
    let method = if request.connect { Ok(Method::CONNECT) } else { Method::from_bytes(&request.method) };
    let Ok(method) = method else { return };
    let text = request.authority.text();
    match check(&method, &text, ("ns/pod", &POD), &RESERVED) {
        Ok(target) => {
            assert_eq!(method, Method::CONNECT);
            assert!(POD.contains(&target.ip()) && target.port() != 0, "{text:?} led to {target}");
            assert!(!RESERVED.contains(&target.port()), "{text:?} led to {target}");
            assert_eq!(parse_authority(&authority(target)), Some(target));
            assert!(text.ends_with(&format!(":{}", target.port())) || text.contains(":0"), "{text:?}");
        }
        Err(refusal) => {
            let known = [StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE];
            assert!(known.contains(&refusal.status) && !refusal.text.is_empty(), "{refusal:?}");
        }
    }
}

fn only_the_peer_lends_its_port(request: &PeerRequest) {
    let peer = request.peer.ip().to_canonical();
    let text = request.forwarded.text();
    if let Some(port) = client_port(&text, peer) {
        assert!(port != 0 && text.to_ascii_lowercase().contains("for"), "{text:?}");
    }
    let Text::Nearly(_, address, port, _) = &request.forwarded else { return };
    let client = SocketAddr::new(address.ip().to_canonical(), *port);
    let host = request.host.as_deref().filter(|host| HeaderValue::from_str(host).is_ok());
    let read = client_port(&forwarded(client, host), peer);
    assert_eq!(read, (client.ip() == peer && *port != 0).then_some(*port), "{client} {host:?}");
}

/// Any labels give a header value whose entries are the ones that were put in.
fn baggage_is_a_header(request: &PeerRequest) {
    let keys = ["k8s.namespace.name", "k8s.pod.name", "service.name", "service.version"];
    let text = baggage(keys.into_iter().zip(request.labels.iter().map(String::as_str)));
    assert!(HeaderValue::from_str(&text).is_ok(), "{text:?}");
    let told: Vec<_> = text.split(',').filter_map(|entry| entry.split_once('=')).collect();
    let given = keys.into_iter().zip(&request.labels).filter(|(_, value)| !value.is_empty());
    let given: Vec<_> = given.collect();
    assert_eq!(told.len(), given.len(), "{text:?}");
    for ((key, encoded), (name, value)) in told.into_iter().zip(given) {
        assert_eq!(key, name);
        let decoded = decode(encoded);
        assert!(value.starts_with(&decoded), "{encoded:?} is not {value:?}");
        assert!(decoded == *value || encoded.len() > 240, "{encoded:?} is cut short");
    }
}

/// Percent-decoding, and nothing else.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digits = if byte == b'%' { [rest.next(), rest.next()] } else { [None, None] };
        match digits {
            [Some(high), Some(low)] => {
                let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
                bytes.push(digit(high) * 16 + digit(low));
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
