//! Local pods: found, enrolled, released.

mod destroy;
pub mod discovery;
mod enroll;
mod interface;
mod wanted;

pub use enroll::{PodState, Pods};
pub use wanted::Wanted;
