//! `culvert waypoint`: the Gateways of a folder of manifests that are waypoints; made, judged and taken out again.
//!
//! # Layout
//!
//! * [`Folder`]: what is in the folder, as the agents that follow it see it.
//! * [`State`]: whether a waypoint would take connections, by the model's own resolution, and why not.
//! * [`Wanted`]: a Gateway to be made. [`Staged`]: changes of files, all of them made out before the first is written.
//!
//! In a cluster istiod gives a waypoint its address, in `status.addresses`, once its Service has a ready endpoint, and never takes it
//! back. Nobody does so in a folder; [`Staged::apply`] does it in istiod's place and by the same rule.

mod change;
mod folder;
mod gateway;
mod state;

pub use change::{Applied, Enrolment, Staged};
pub use folder::Folder;
pub use gateway::{CLASS, REVISION, TrafficType, Wanted};
pub use state::State;

#[cfg(test)]
mod tests;
