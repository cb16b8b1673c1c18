//! What the agent tells: flow records, metrics, logs.

pub mod flows;
pub mod metrics;
