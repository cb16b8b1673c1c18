//! L4 policy with the meaning that it has in Istio's ambient mode.
//!
//! For one destination workload, in this order:
//!
//! 1. PeerAuthentication: STRICT for the port and the peer proved no identity → refused.
//! 2. Any DENY policy matches → refused. 3. No ALLOW policy applies → allowed. 4. Any ALLOW policy matches → allowed.
//! 5. Refused.
//!
//! Policies apply by scope: all workloads (root namespace, no selector), a namespace's (no selector), or those that the
//! selector matches (in every namespace for the root namespace). Policies with targetRefs are a waypoint's business. What L4 cannot
//! decide fails safe: an ALLOW rule with such parts never matches, a DENY rule ignores them and refuses on the rest.

pub mod compile;
mod matching;
mod peer_auth;
mod select;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use compile::{Compiled, Interner, compile};
pub use select::{Finding, PolicyRow, PolicySet};
