//! Who a peer is: SPIFFE ids, the CA that vouches for them, and the TLS settings that check them.
//!
//! A [`CertStore`] asks a [`Ca`] for one certificate per identity, keeps key and certificate in memory only, and renews
//! them at half life, or when there are other roots. A [`WorkloadCert`] makes the TLS settings of both ends of a tunnel; whoever opens a tunnel asks the
//! store again, so a renewed certificate is used from the next connection on, and open connections are left alone.

mod ca;
mod crl;
mod crypto;
mod expected;
mod explain;
mod spiffe;
mod store;
mod tls;
mod verify;

pub use ca::{
    Ca, CaError, CaFiles, CaService, DEFAULT_TTL, EmbeddedCa, RemoteCa, RemoteConfig, ServiceConfig,
    SignedChain,
};
pub use crl::{Proof, Revocations, Role};
pub use crypto::{Compliance, FIPS_BUILD, VERSION};
pub use expected::Expected;
pub use explain::Finding;
pub(crate) use explain::{explain, explain_later};
pub use spiffe::{SpiffeError, SpiffeId};
pub use store::{CertError, CertInfo, CertLease, CertStore, PeerRules};
pub use tls::{PublicChain, WorkloadCert};
pub use verify::{PeerError, spiffe_id};
