//! What the agent tells: flow records, metrics, logs.

pub mod filter;
pub mod flows;
pub mod log;
pub mod metrics;
