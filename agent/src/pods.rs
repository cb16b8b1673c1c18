//! Local pods: found, enrolled, released.

pub mod discovery;
