//! The one list of verdicts, reasons, paths and counters: BPF, agent, metrics, logs and docs all use it.

use bytemuck::{Pod, Zeroable};

use crate::{Endpoint, Tuple, assert_size};

/// What happens to a connection.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Verdict {
    /// It fails: ECONNREFUSED at the client.
    Refused = 0,
    /// It goes on.
    Allowed = 1,
}

/// How a connection travels.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Path {
    /// Plain TCP outside the mesh's guarantees.
    Passthrough = 0,
    /// Plain TCP inside this node, admitted by identity.
    Direct = 1,
    /// HBONE.
    Tunnel = 2,
}

/// The hook that reports an event.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Hook {
    /// cgroup/connect4|6: a refusal at the source. No source port is known yet.
    Connect = 0,
    /// sockops: an allowed connection leaves the source.
    Sockops = 1,
    /// sk_lookup: the destination's verdict, unless [`Hook::Accepted`] will tell it.
    Admit = 2,
    /// sockops: the connection ended at its source; bytes and duration are set.
    Close = 3,
    /// The agent: the open connection was destroyed, because policy changed or because it could not be kept in sight.
    Destroy = 4,
    /// The agent: an open connection was destroyed at its source.
    DestroyAtSource = 5,
    /// sockops: an accepted connection has no room in `connections`. The agent destroys it, and reports that as
    /// [`Hook::Destroy`].
    Untracked = 6,
    /// sockops: a connection that goes directly or comes in plaintext has been accepted, at its destination; of one that goes directly
    /// the verdict is told by this.
    Accepted = 7,
    /// sockops: what [`Hook::Accepted`] told of has ended; bytes and duration are set.
    CloseAccepted = 8,
    /// sockops: the connection ended before the other end had accepted it.
    Failed = 9,
}

/// An enum of the maps whose numbers have texts.
macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal => $text:literal,)* }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant = $number,)* }

        impl $name {
            /// Every variant, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The variant with this number.
            #[inline(always)]
            pub const fn from_u32(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The text that users read: in flow events, logs, metric labels and documents.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}
pub(crate) use numbered;

numbered! {
    /// Why a verdict is what it is.
    Reason {
        /// No policy row could be found: the tables are not filled. Closed.
        NoPolicyState = 0 => "no policy state for this workload",
        /// An ALLOW policy matched.
        Allowed = 1 => "allowed by policy",
        /// No ALLOW policy selects the workload, and no DENY matched.
        NoPolicy = 2 => "no policy applies",
        /// A DENY policy matched.
        DeniedByPolicy = 3 => "denied by policy",
        /// ALLOW policies select the workload and none matched.
        NotAllowed = 4 => "allow policies exist, but none allowed",
        /// PeerAuthentication STRICT, and the peer proved no identity.
        StrictPlaintext = 5 => "mTLS is STRICT and the peer is plaintext",
        /// The peer is a process of this node.
        NodeProcess = 6 => "process of this node",
        /// The destination is outside the mesh.
        OutsideMesh = 7 => "destination outside the mesh",
        /// The service has no endpoint.
        NoEndpoint = 8 => "service has no ready endpoint",
        /// A port that only the mesh itself may use.
        MeshPort = 9 => "port is reserved for the mesh",
        /// The address does not belong to an enrolled pod of this node.
        UnknownDestination = 10 => "destination address is not an enrolled pod of this node",
        /// A kernel map has no room or could not be written. Closed.
        KernelState = 11 => "kernel state could not be written",
        /// The peer's certificate does not carry the identity that is expected.
        WrongPeer = 12 => "peer certificate carries another identity",
        /// The HBONE connection to the peer could not be opened.
        TunnelFailed = 13 => "HBONE connection failed",
        /// The peer refused the CONNECT request.
        PeerRefused = 14 => "refused by the peer's node",
        /// The app behind the tunnel could not be reached.
        UpstreamFailed = 15 => "destination did not accept the connection",
        /// The connection was not led here by the kernel.
        NoOriginalDst = 16 => "no original destination is known",
        /// A CONNECT request that is malformed or for another pod.
        BadRequest = 17 => "malformed or misdirected CONNECT request",
        /// The connection does not leave the pod.
        OwnPod = 18 => "connection inside the pod",
        /// A CUSTOM policy matched: only a waypoint can ask its provider. Closed.
        NoAuthorizer = 19 => "policy asks an external authorizer, which L4 cannot",
        /// `--end-older-connections`: the connection was opened before its pod joined the mesh.
        OlderThanEnrolment = 20 => "opened before the pod joined the mesh",
        /// The destination has a waypoint, and the connection goes there.
        Waypoint = 21 => "goes to the waypoint, which decides",
        /// The destination has a waypoint that cannot be reached. Closed.
        NoWaypoint = 22 => "waypoint has no ready endpoint",
        /// A program of somebody else, later on the same hook, gave the socket another destination.
        Diverted = 23 => "another BPF program changed the destination after the decision",
        /// The pod that opened the connection is gone.
        ClientGone = 24 => "the client's pod is gone",
        /// `internalTrafficPolicy: Local`, and no endpoint is on the client's node.
        NoLocalEndpoint = 25 => "service takes endpoints of this node only, and none is ready",
        /// An open connection: it was judged when it was let in.
        Judged = 26 => "judged when it was let in",
    }
}

numbered! {
    /// What the programs count, per CPU, in the `counters` map.
    Counter {
        /// Connections that left directly.
        Direct = 0 => "direct",
        /// Connections led into a tunnel.
        Tunnel = 1 => "tunnel",
        /// Connections of enrolled pods that left the mesh.
        Passthrough = 2 => "passthrough",
        /// Connections refused at the source.
        RefusedAtSource = 3 => "refused_at_source",
        /// Connections let in at the destination.
        Admitted = 4 => "admitted",
        /// Connections refused at the destination.
        RefusedAtDestination = 5 => "refused_at_destination",
        /// Events that found no room in the ring buffer.
        EventsLost = 6 => "events_lost",
        /// Map writes that failed: the connection was closed.
        MapFull = 7 => "map_full",
        /// Apps that wanted a port of the mesh in an enrolled pod.
        RefusedBind = 8 => "refused_bind",
        /// Packets of enrolled pods that bore an address not their own.
        Spoofed = 9 => "spoofed",
        /// Multipath TCP sockets that apps of enrolled pods wanted.
        RefusedMultipath = 10 => "refused_multipath",
        /// Connections that another program led elsewhere after Culvert's decision.
        Diverted = 11 => "diverted",
        /// Accepted connections that found no room in `connections`: the agent destroys them.
        Untracked = 12 => "untracked",
        /// Connections whose note (AUDIT, dry run) found no room and was not counted; the verdict stood.
        NotesLost = 13 => "notes_lost",
    }
}

/// What a program tells the agent about one connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEvent {
    /// `bpf_ktime_get_ns()`: CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Netns cookie of the pod that reports; 0 from sk_lookup, which cannot know it.
    pub netns: u64,
    /// At the end only: bytes of the client's app that the server's end has acknowledged, or has received.
    pub bytes_sent: u64,
    /// At the end only: bytes of the server's app, likewise.
    pub bytes_received: u64,
    /// At the end only: nanoseconds since connect(), or since it was accepted.
    pub duration_ns: u64,
    /// Cookie (SO_COOKIE) of the socket that the agent is to destroy, else 0: at the destination for [`Hook::Untracked`], at the
    /// source otherwise.
    pub socket: u64,
    /// Both ends. At the source of a tunnel the true target, not the agent's listener.
    pub tuple: Tuple,
    /// What the app asked for (a service's virtual address), else equal to the tuple's destination.
    pub requested: Endpoint,
    /// [`Verdict`].
    pub verdict: u32,
    /// [`Reason`].
    pub reason: u32,
    /// Index of the policy that decided; 0: none.
    pub policy: u32,
    /// [`Path`].
    pub path: u32,
    /// [`Hook`].
    pub hook: u32,
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// What AUDIT and dry-run policies say beside the verdict; 0: nothing.
    pub note: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(FlowEvent, 144);

impl FlowEvent {
    /// Whether the server's end of the connection reports, not the client's.
    pub fn is_at_destination(&self) -> bool {
        const AT_DESTINATION: [Hook; 5] =
            [Hook::Admit, Hook::Destroy, Hook::Untracked, Hook::Accepted, Hook::CloseAccepted];
        AT_DESTINATION.iter().any(|hook| self.hook == *hook as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_unique() {
        for (n, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(Reason::from_u32(n as u32), Some(*reason));
            assert_eq!(Reason::ALL.iter().filter(|r| r.as_str() == reason.as_str()).count(), 1);
        }
        assert_eq!(Reason::from_u32(Reason::ALL.len() as u32), None);
    }
}
