//! Local pods: found, enrolled, released.

mod destroy;
pub mod discovery;
mod enroll;
mod interface;

pub use enroll::{PodState, Pods, Wanted};
