//! Local pods: found, enrolled, released.

pub mod discovery;
mod enroll;

pub use enroll::{Numbers, PodState, Pods, Wanted};
