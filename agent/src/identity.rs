//! Who a peer is: SPIFFE ids, the CA that vouches for them, and the TLS settings that check them.

mod ca;
mod spiffe;
mod store;
mod tls;

pub use ca::{Ca, CaError, EmbeddedCa, Issued};
pub use spiffe::{SpiffeError, SpiffeId};
pub use store::{CertStore, CertificateRow};
pub use tls::{Certified, PeerError, peer_identity};
