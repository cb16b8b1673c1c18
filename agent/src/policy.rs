//! L4 policy: what Istio's AuthorizationPolicy and PeerAuthentication mean for one connection.
//!
//! # Which policies apply
//!
//! A policy without a selector in the root namespace applies to the whole mesh, elsewhere to its namespace; with a
//! selector to the matching workloads of its namespace (of all namespaces, when it lies in the root namespace). Those
//! with `targetRefs` belong to waypoints. (istio: `pilot/pkg/serviceregistry/ambient/authorization.go`.)
//!
//! # How they decide
//!
//! 1. A plaintext peer where PeerAuthentication says STRICT is refused.
//! 2. A DENY policy matches: refused. 3. No ALLOW policy applies: allowed. 4. An ALLOW policy matches: allowed.
//! 5. Refused.
//!
//! Rules are OR; inside a rule `from`, `to` and every `when` are AND; the entries of `from` (or `to`) are OR; inside an
//! entry fields are AND, values OR, and every `not` field must miss. A policy without rules never matches.
//! (ztunnel: `src/state.rs`, `src/rbac.rs`.)
//!
//! # What L4 cannot see
//!
//! An ALLOW rule with an attribute that L4 cannot decide never matches; a DENY rule is enforced without the attribute,
//! so it denies more, not less. Each case is a [`Finding`].

mod authn;
pub mod compile;
pub mod evaluate;
pub mod explain;
mod finding;
mod intern;
pub(crate) mod istio;
mod lower;
mod matching;
mod notes;
mod parse;
mod raw;
mod select;
mod types;

pub use authn::{MtlsMode, PeerAuthentication, StrictBy, Strictness, strictness};
pub use compile::{Compiled, SourceBlock, compile};
pub use finding::{Code, Finding};
pub use intern::Interner;
pub use notes::{Note, Notes, Tally, Would};
pub use parse::InvalidField;
pub(crate) use raw::{RawAuthorizationPolicy, RawPeerAuthentication};
pub use select::Applicable;
pub(crate) use select::matches_labels;
pub use types::{
    Action, Attachment, AuthorizationPolicy, Condition, ConditionKey, L7Deny, Operation, Rule, Scope,
    ServiceAccountName, Source, StringMatch,
};
