//! What Culvert's BPF programs and its agent share: the layout of every map, and the decision they both take.
//!
//! # Byte order
//!
//! Addresses are 16 bytes in network order, IPv4 as IPv4-mapped IPv6 (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2), so there is
//! one map and one path for both families. Ports are host order everywhere inside Culvert; only the BPF context
//! accessors (`ebpf/src/ctx.rs`) convert. Everything else is native order: maps never leave the machine.
//!
//! # Maps
//!
//! | map | key | value | written by | read by |
//! | --- | --- | --- | --- | --- |
//! | `config` | 0 | [`Config`] | agent | all programs |
//! | `pods` | netns cookie | [`Pod`] | agent | bind, connect, create |
//! | `guards` | interface index | [`Guard`] | agent | guard |
//! | `workloads` | [`Ip`] | [`Workload`] | agent | connect, admit |
//! | `services` | [`ServiceKey`] | [`Service`] | agent | connect |
//! | `backends` | [`BackendKey`] | [`Endpoint`] | agent | connect |
//! | `members` | [`Member`] | 1 | agent | connect |
//! | `affinity` | [`AffinityKey`] (LRU) | [`Affinity`] | connect, agent | connect |
//! | `policy` | [`PolicyKey`] | [`PolicyRow`] | agent | connect, admit |
//! | `sources` | class and block: [`SourceKey`] (LPM) | class | agent | connect, admit |
//! | `notes` | note | `u64` per CPU: how often | connect, admit | agent |
//! | `policy_names` | policy index | [`Name`] | agent | the reader |
//! | `identities` | identity | [`Name`] | agent | the reader |
//! | `admitted` | [`Tuple`] | [`Admission`] | sockets | admit |
//! | `connections` | [`Tuple`] | [`Connection`] | sockets | agent |
//! | `unlisted` | block: [`SourceKey`] of class 0 (LPM) | 1 | agent | connect |
//! | `original_dst` | [`LocalKey`] | [`OriginalDst`] | sockets | agent |
//! | `original_src` | [`LocalKey`] | [`Endpoint`] | agent | sockets |
//! | `socket_state` | socket (SK_STORAGE) | [`SocketState`] | connect, sockets | sockets, peername |
//! | `counters` | [`Counter`] | `u64` per CPU | all programs | agent |
//! | `events` | ring buffer | [`FlowEvent`] | all programs | agent |
#![cfg_attr(not(any(test, feature = "user")), no_std)]
#![forbid(unsafe_op_in_unsafe_fn)]

mod addr;
mod affinity;
mod flow;
mod limits;
mod policy;
mod socket;
mod workload;

#[cfg(feature = "user")]
mod user;

pub use addr::{Endpoint, Ip, Tuple};
pub use affinity::{Affinity, AffinityKey};
pub use flow::{Counter, FlowEvent, Hook, Path, Reason, Verdict};
pub use limits::*;
pub use policy::{
    ANY_IDENTITY, ANY_PORT, CLASS_BY_SOURCE, Decision, PolicyKey, PolicyRow, PolicyTable, SourceKey, decide,
};
pub use socket::{Admission, Connection, LocalKey, OriginalDst, SocketKind, SocketState};
#[cfg(feature = "user")]
pub use user::cut;
pub use workload::{BackendKey, Config, Guard, Member, Name, Pod, Service, ServiceKey, Workload, flags};

/// Version of every layout in this crate. The loader refuses to adopt pinned maps of another version; bump it with
/// any change of a size, a field or a meaning.
pub const ABI_VERSION: u32 = 6;

/// A peer that proved no identity: plaintext from another node, from an unenrolled pod, from a NodePort.
pub const UNKNOWN_IDENTITY: u32 = 0;
/// This node's own host processes (kubelet probes), proven by the network namespace of their socket.
pub const HOST_IDENTITY: u32 = 1;
/// The pod itself, or the agent delivering what it has judged already: proven by a socket inside the pod's own network
/// namespace that connects to the pod's own address.
pub const OWN_IDENTITY: u32 = 2;
/// The first number given to a SPIFFE identity.
pub const FIRST_IDENTITY: u32 = 16;

/// Outbound listener of the agent, on loopback in each enrolled pod's network namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Inbound HBONE listener of the agent, in each enrolled pod's network namespace (Istio's port).
pub const HBONE_PORT: u16 = 15008;

/// Refuses to compile when `$t` is not exactly `$n` bytes.
macro_rules! assert_size {
    ($t:ty, $n:expr) => {
        const _: () = assert!(core::mem::size_of::<$t>() == $n);
    };
}
pub(crate) use assert_size;
