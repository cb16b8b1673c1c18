//! What the kernel hands over to userspace: HBONE out of and into enrolled pods.
//!
//! [`serve_pod`] runs the two accept loops of one pod on the [`PodListeners`] that [`open`] made in its network
//! namespace. `outbound` carries what the pod's apps opened to the destination's node; `inbound` takes what comes
//! from other nodes, decides, and opens the connection to the app. Both end in `relay`.

mod busy_poll;
mod first_reply;
mod guests;
mod habits;
mod inbound;
mod listeners;
mod open;
mod outbound;
mod pod;
mod ports;
mod relay;
mod request;
mod shared;
mod socket;
mod workers;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_common::{Decision, OriginalDst, Reason};

pub use busy_poll::polls;
pub use listeners::{PodListeners, open, open_at};
pub use open::{OpenTunnel, OpenTunnels};
pub use pod::{Baggage, PodProxy, serve_pod};
pub use request::{Refusal, check};
pub use shared::{Counters, Pools, ProxyConfig, Shared};

use crate::identity::{Expected, SpiffeId};

/// What the proxy asks of the rest of the agent. Implemented by `app`, so that the proxy knows neither the model nor
/// the maps.
pub trait Mesh: Send + Sync + 'static {
    /// Where a connection to `target`, which an app reached by asking for `requested`, goes next: the first choice first,
    /// then what may be tried instead when that cannot be reached. `own` are the pod's own addresses.
    ///
    /// # Errors
    ///
    /// Nowhere: why, and for people what that means.
    fn hops(
        &self,
        requested: SocketAddr,
        target: SocketAddr,
        own: &[IpAddr],
    ) -> Result<Vec<Hop>, (Reason, String)>;

    /// `name.namespace.svc.<domain>` of the service with this virtual address, for the `forwarded` header.
    fn service_host(&self, vip: IpAddr) -> Option<String>;

    /// May `peer`, connecting from `client`, have this port of a local pod?
    fn decide(&self, destination: SocketAddr, client: IpAddr, peer: &SpiffeId) -> Decision;

    /// Where the connection from `client` (as accepted on the outbound listener of the namespace with cookie `netns`)
    /// was going. Taken: a second call finds nothing.
    fn take_original_dst(&self, netns: u64, client: SocketAddr) -> io::Result<Option<OriginalDst>>;

    /// Makes the app in namespace `netns` see `client` as the peer of the connection that the agent is about to open
    /// from `local`.
    fn put_original_src(&self, netns: u64, local: SocketAddr, client: SocketAddr) -> io::Result<()>;

    /// Forgets what [`Mesh::put_original_src`] said, when the connection failed. Missing is no error.
    fn remove_original_src(&self, netns: u64, local: SocketAddr);

    /// The connection of the pod in namespace `netns` that asked for `requested` got to `target`, which is not the one that the
    /// kernel chose: a service with session affinity is to remember this one.
    fn went_elsewhere(&self, netns: u64, requested: SocketAddr, target: SocketAddr);

    /// Reports the opening, the refusal or the end of a tunnelled connection.
    fn report(&self, flow: TunnelFlow);
}

/// The next HBONE listener of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// Where: a pod's address. The port is a waypoint's own, `None` the mesh's.
    pub address: IpAddr,
    /// The listener's port, where it is not the mesh's.
    pub port: Option<u16>,
    /// Who must answer there.
    pub expected: Expected,
    /// The `:authority` to ask for: the destination pod, or what the app asked a waypoint for.
    pub authority: SocketAddr,
    /// A waypoint's, not the destination's.
    pub waypoint: bool,
}

/// The end of a tunnel that reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
}

/// When a tunnelled connection is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Both ends are connected.
    Opened,
    /// It was refused or failed; [`TunnelFlow::decision`] says why.
    Refused,
    /// It ended.
    Closed {
        /// Bytes from client to server.
        bytes_sent: u64,
        /// Bytes from server to client.
        bytes_received: u64,
        /// Since it was accepted.
        duration: Duration,
    },
}

/// One tunnelled connection, as it is reported.
#[derive(Clone, Debug)]
pub struct TunnelFlow {
    /// Who reports.
    pub side: Side,
    /// When.
    pub stage: Stage,
    /// The client: the pod's own address and the port of the app's socket.
    pub client: SocketAddr,
    /// What the app asked for: a virtual address or the pod's.
    pub requested: SocketAddr,
    /// The destination pod.
    pub target: SocketAddr,
    /// The HBONE listener that the tunnel leads to: the destination pod's, or that of an instance of the waypoint; `None` before
    /// one is chosen.
    pub hop: Option<SocketAddr>,
    /// The client's identity, proven by its certificate at the destination.
    pub source: Option<SpiffeId>,
    /// The server's identity, proven by its certificate at the source.
    pub destination: Option<SpiffeId>,
    /// The verdict and its reason.
    pub decision: Decision,
    /// What went wrong, for people; empty when nothing did.
    pub error: String,
}

impl TunnelFlow {
    /// Turns the flow into a refusal for `reason`, explained by `error`.
    pub fn refused(mut self, reason: Reason, error: impl std::fmt::Display) -> Self {
        self.stage = Stage::Refused;
        self.decision = Decision::refuse(reason);
        self.error = error.to_string();
        self
    }
}
