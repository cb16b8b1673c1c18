//! Who speaks to whom, as Istio's metrics label it: ztunnel's set of labels and its words (`src/proxy/metrics.rs` there).

use std::fmt::{self, Write};
use std::sync::{Arc, LazyLock};

use culvert_common::Reason;

/// What ztunnel says where it does not know.
const UNKNOWN: &str = "unknown";
/// In the place of names that there is no room for.
const OVERFLOW: &str = "overflow";

/// The end of a connection that a series counts for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reporter {
    /// The client's.
    Source,
    /// The server's.
    Destination,
}

impl Reporter {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How a connection ended (label `response_flags`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Flags {
    /// It was open, or is.
    None,
    /// Policy refused it.
    Deny,
    /// The other end could not be reached, or refused it.
    Connect,
    /// The TLS handshake of a peer failed.
    TlsFailure,
    /// The peer's certificate was revoked.
    CertRevoked,
}

impl Flags {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }

    /// Those of a refusal for this reason.
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::NoEndpoint
            | Reason::NoLocalEndpoint
            | Reason::NoWaypoint
            | Reason::OutsideMesh
            | Reason::TunnelFailed
            | Reason::PeerRefused
            | Reason::UpstreamFailed
            | Reason::NoOriginalDst
            | Reason::BadRequest => Self::Connect,
            Reason::WrongPeer => Self::TlsFailure,
            _ => Self::Deny,
        }
    }
}

/// A workload in labels. Pods of one owner and version have the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Peer {
    /// What the pod is a part of: its Deployment, CronJob or Job, else itself.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Canonical service, which is `app` too.
    pub app: String,
    /// Canonical revision, which is `version` too.
    pub version: String,
    /// Its cluster.
    pub cluster: String,
}

impl Peer {
    fn all(word: &str) -> Arc<Self> {
        let word = || word.to_owned();
        let (workload, namespace, app, version, cluster) = (word(), word(), word(), word(), word());
        Arc::new(Self { workload, namespace, app, version, cluster })
    }

    /// Nobody whom the mesh knows.
    pub fn unknown() -> Arc<Self> {
        static UNKNOWN_PEER: LazyLock<Arc<Peer>> = LazyLock::new(|| Peer::all(UNKNOWN));
        UNKNOWN_PEER.clone()
    }
}

/// A service in labels.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServiceName {
    /// `name.namespace.svc.<domain>`, or the host of a ServiceEntry.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServiceName {
    fn all(word: &str) -> Arc<Self> {
        let word = || word.to_owned();
        Arc::new(Self { host: word(), namespace: word(), name: word() })
    }

    /// None that the mesh knows.
    pub fn unknown() -> Arc<Self> {
        static UNKNOWN_SERVICE: LazyLock<Arc<ServiceName>> = LazyLock::new(|| ServiceName::all(UNKNOWN));
        UNKNOWN_SERVICE.clone()
    }
}

/// Who speaks to whom.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Labels {
    /// Who counts.
    pub reporter: Reporter,
    /// The client.
    pub source: Arc<Peer>,
    /// The client's SPIFFE id where it was proven, else empty.
    pub source_principal: String,
    /// The server.
    pub destination: Arc<Peer>,
    /// The server's SPIFFE id, or empty.
    pub destination_principal: String,
    /// What the client asked for; at the destination, what it is likely to have asked for.
    pub service: Arc<ServiceName>,
    /// Whether it is mutual TLS.
    pub encrypted: bool,
}

impl Labels {
    /// These without names: what is counted together when there is no room for more series.
    pub(super) fn overflow(&self) -> Self {
        static PEER: LazyLock<Arc<Peer>> = LazyLock::new(|| Peer::all(OVERFLOW));
        static SERVICE: LazyLock<Arc<ServiceName>> = LazyLock::new(|| ServiceName::all(OVERFLOW));
        Self {
            reporter: self.reporter,
            source: PEER.clone(),
            source_principal: OVERFLOW.to_owned(),
            destination: PEER.clone(),
            destination_principal: OVERFLOW.to_owned(),
            service: SERVICE.clone(),
            encrypted: self.encrypted,
        }
    }

    /// `name="value",…`, all but `response_flags`.
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let principal = |text: &str| if text.is_empty() { UNKNOWN.to_owned() } else { text.to_owned() };
        write!(out, "reporter=\"{}\"", self.reporter.as_str())?;
        peer(out, "source", &self.source, &principal(&self.source_principal))?;
        let ServiceName { host, namespace, name } = &*self.service;
        write!(
            out,
            ",destination_service=\"{}\",destination_service_namespace=\"{}\",destination_service_name=\"{}\"",
            Escaped(host),
            Escaped(namespace),
            Escaped(name)
        )?;
        peer(out, "destination", &self.destination, &principal(&self.destination_principal))?;
        let policy = if self.encrypted { "mutual_tls" } else { UNKNOWN };
        write!(out, ",request_protocol=\"tcp\",connection_security_policy=\"{policy}\"")
    }
}

fn peer(out: &mut String, end: &str, peer: &Peer, principal: &str) -> fmt::Result {
    let pairs = [
        ("workload", &*peer.workload),
        ("canonical_service", &peer.app),
        ("canonical_revision", &peer.version),
        ("workload_namespace", &peer.namespace),
        ("principal", principal),
        ("app", &peer.app),
        ("version", &peer.version),
        ("cluster", &peer.cluster),
    ];
    pairs.iter().try_for_each(|(name, value)| write!(out, ",{end}_{name}=\"{}\"", Escaped(value)))
}

/// A label's value, as the text format wants it.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}
