//! Which requests of HBONE peers are served at all.

use std::net::{IpAddr, SocketAddr};

use culvert_common::Reason;
use http::{Method, StatusCode};

use crate::hbone::parse_authority;

/// A request that gets another answer than 200.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The answer.
    pub status: StatusCode,
    /// For flow events.
    pub reason: Reason,
    /// For people; empty when there is nothing to say.
    pub text: String,
}

/// Where a request leads: a CONNECT, to an address of the pod `name`, and not to a port of the mesh (which would lead in
/// circles).
///
/// # Errors
///
/// 400 for what is not that, 503 for a port of the mesh.
pub fn check(
    method: &Method,
    authority: &str,
    (name, ips): (&str, &[IpAddr]),
    reserved_ports: &[u16],
) -> Result<SocketAddr, Refusal> {
    let bad = |text| Refusal { status: StatusCode::BAD_REQUEST, reason: Reason::BadRequest, text };
    if method != Method::CONNECT {
        return Err(bad(format!("only CONNECT is served on the HBONE port, got {method}")));
    }
    let Some(target) = parse_authority(authority) else {
        return Err(bad(format!("{authority:?} is not an IP address and a port")));
    };
    if !ips.contains(&target.ip()) {
        return Err(bad(format!("{} is not an address of the pod {name}", target.ip())));
    }
    if target.port() == 0 {
        return Err(bad("port 0 cannot be connected to".to_owned()));
    }
    if reserved_ports.contains(&target.port()) {
        return Err(Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            reason: Reason::MeshPort,
            text: format!("port {} is the mesh's own", target.port()),
        });
    }
    Ok(target)
}
