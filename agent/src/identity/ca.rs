//! The certificate authorities: whoever signs this mesh's workload certificates.

mod answer;
mod authority;
mod embedded;
mod remote;
mod service;
mod wire;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;

use super::SpiffeId;
pub use embedded::{CaFiles, EmbeddedCa};
pub use remote::{RemoteCa, RemoteConfig};
pub use service::{CaService, ServiceConfig};

/// How long a workload certificate is valid unless told otherwise: Istio's 24 hours.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// A certificate counts from this much before it was signed, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(300);

/// Who signs workload certificates.
#[derive(Debug)]
pub enum Ca {
    /// In this process, with a root that the agents of the mesh share through a directory.
    Embedded(EmbeddedCa),
    /// Elsewhere: istiod, or `culvert ca`.
    Remote(RemoteCa),
}

/// A signed certificate and what it is checked against.
#[derive(Debug)]
pub struct SignedChain {
    /// The leaf first; the root is left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that this CA's peers are checked against.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a CA could not be opened or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the CA could not be read or written.
    #[error("cannot {action} {}: check that its folder exists and that this program may read and write it", .path.display())]
    File {
        /// `read`, `create`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of the CA holds something else than it should.
    #[error("{}: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Signing failed.
    #[error("cannot sign a certificate for {identity}")]
    Sign {
        /// For whom.
        identity: String,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// A CA elsewhere did not sign.
    #[error("the CA at {address}: {problem}")]
    Remote {
        /// `host:port`.
        address: String,
        /// What happened, with a hint.
        problem: String,
    },
}

impl Ca {
    /// Signs a certificate for `identity` with the public half of `key`.
    pub async fn sign(&self, identity: &SpiffeId, key: &KeyPair) -> Result<SignedChain, CaError> {
        match self {
            Self::Embedded(ca) => ca.sign(identity, key),
            Self::Remote(ca) => ca.sign(identity, key).await,
        }
    }

    /// Looks for changed files. True when what was signed before should be signed again now: there are other roots.
    pub(super) fn refresh(&self) -> bool {
        match self {
            Self::Embedded(ca) => ca.refresh(),
            // Its roots come with each certificate.
            Self::Remote(_) => false,
        }
    }
}

/// Whether issuer and subject are one, as a root's are.
fn is_self_issued(cert: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(cert)
        .is_ok_and(|(_, cert)| cert.issuer().as_raw() == cert.subject().as_raw())
}
