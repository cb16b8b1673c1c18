//! What is remembered of one connection between two hooks.

use bytemuck::{Pod, Zeroable};

use crate::flow::numbered;
use crate::{Endpoint, assert_size};

numbered! {
    /// What the connect hook decided for a socket, as a number in [`SocketState`].
    SocketKind {
        /// An unenrolled or untouched socket.
        None = 0 => "none",
        /// To a pod of this node: admitted by its 4-tuple.
        Direct = 1 => "direct",
        /// Through the agent.
        Tunnel = 2 => "tunnel",
        /// To outside the mesh; only reported.
        Passthrough = 3 => "passthrough",
        /// A node process (kubelet probe) to a pod of this node: admitted as the node.
        Host = 4 => "node-process",
        /// An accepted socket whose client came through a tunnel.
        Accepted = 5 => "tunnelled-client",
        /// Inside one pod: its own, or the agent's delivery. Admitted as [`crate::OWN_IDENTITY`].
        Own = 6 => "own-pod",
        /// An accepted socket whose client came directly or in plaintext: it has an entry in `connections`.
        Inbound = 7 => "inbound",
    }
}

/// Per-socket state (SK_STORAGE): written by the connect hook, read by sockops and getpeername.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketState {
    /// `bpf_ktime_get_ns()` at connect, or when the connection was accepted.
    pub opened_ns: u64,
    /// The address that getpeername() reports: what the app asked for, or the tunnelled client's real address.
    pub peer: Endpoint,
    /// Where the connection really leads: the chosen backend.
    pub target: Endpoint,
    /// [`SocketKind`].
    pub kind: u32,
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// The policy index that allowed it.
    pub policy: u32,
    /// [`crate::Reason`] of the allowance.
    pub reason: u32,
    /// What the socket had received (`rcv_nxt`) when its own FIN was acknowledged; 0 before.
    pub heard: u32,
}
assert_size!(SocketState, 72);

/// Proof that a socket of an enrolled pod (or of the node) opened this 4-tuple.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Admission {
    /// Netns cookie of the socket's network namespace.
    pub netns: u64,
    /// The identity it is admitted with.
    pub identity: u32,
    /// The destination's identity. This and the next three: the destination's verdict, once it has let the SYN in.
    pub destination: u32,
    /// [`crate::Reason`] of the allowance; before it [`crate::Reason::NoPolicyState`].
    pub reason: u32,
    /// The policy index that allowed it.
    pub policy: u32,
    /// What AUDIT and dry-run policies say beside it.
    pub note: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(Admission, 32);

impl Admission {
    /// Of a SYN that the destination has not judged.
    #[inline(always)]
    pub const fn new(netns: u64, identity: u32) -> Self {
        Self { netns, identity, destination: 0, reason: 0, policy: 0, note: 0, reserved: 0 }
    }
}

/// An open connection into an enrolled pod that does not go through the agent: what a change of policy is held against.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Connection {
    /// `bpf_ktime_get_ns()` when it was accepted.
    pub opened_ns: u64,
    /// Netns cookie of the pod that accepted it.
    pub netns: u64,
    /// Cookie of the accepted socket (SO_COOKIE).
    pub socket: u64,
    /// The client's identity; 0 in plaintext.
    pub identity: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(Connection, 32);

/// One end of a connection inside a pod's network namespace. Loopback tuples repeat in every namespace: the cookie
/// tells them apart.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct LocalKey {
    netns: u64,
    end: Endpoint,
    reserved: u32,
}
assert_size!(LocalKey, 32);

impl LocalKey {
    /// The key of `end` in the namespace with cookie `netns`.
    #[inline(always)]
    pub const fn new(netns: u64, end: Endpoint) -> Self {
        Self { netns, end, reserved: 0 }
    }
}

/// Where a tunnelled connection was going before it was led to the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct OriginalDst {
    /// What the app asked for: a service's virtual address or a pod's.
    pub requested: Endpoint,
    /// The chosen backend; equal to `requested` when that is a pod.
    pub target: Endpoint,
}
assert_size!(OriginalDst, 40);
