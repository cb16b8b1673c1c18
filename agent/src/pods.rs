//! Local pods: found, enrolled, released; and their sockets.

mod conntrack;
mod destroy;
pub mod discovery;
mod dump;
mod enroll;
mod interface;
mod older;
mod sockets;
mod tracked;
mod wanted;

pub use enroll::{PodState, Pods, Seen};
pub use older::OlderConnection;
pub use sockets::PodSockets;
pub use tracked::Ended;
pub use wanted::Wanted;
