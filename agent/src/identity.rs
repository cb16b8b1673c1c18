//! Who a peer is: SPIFFE ids, the CA that vouches for them, and the TLS settings that check them.

mod spiffe;

pub use spiffe::{SpiffeError, SpiffeId};
