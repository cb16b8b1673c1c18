//! Local pods: found, enrolled, released.

mod destroy;
pub mod discovery;
mod enroll;

pub use enroll::{PodState, Pods, Wanted};
