//! Local pods: found, enrolled, released.

mod diag;
pub mod discovery;
mod ending;
mod enroll;
mod interface;
mod older;

pub use enroll::{PodState, Pods, Wanted};
pub use older::OlderConnection;
