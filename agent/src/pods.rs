//! Local pods: found, enrolled, released.

mod diag;
pub mod discovery;
mod ending;
mod enroll;
mod interface;
mod older;
mod wanted;

pub use enroll::{PodState, Pods, Seen};
pub use older::OlderConnection;
pub use wanted::Wanted;
