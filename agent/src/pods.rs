//! Local pods: found, enrolled, released; and their sockets.

mod destroy;
pub mod discovery;
mod dump;
mod enroll;
mod interface;
mod netlink;
mod sockets;
mod tracked;

pub use enroll::{PodState, Pods, Wanted};
pub use sockets::PodSockets;
pub use tracked::Ended;
