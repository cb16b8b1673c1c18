//! What the agent tells: flow records, metrics, logs.

pub mod access;
pub mod exposition;
pub mod filter;
pub mod flows;
pub mod labels;
pub mod log;
pub mod metrics;
pub mod pairs;
pub mod process;
pub mod traffic;
