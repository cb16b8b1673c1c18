//! Culvert's node agent.
//!
//! # Layout
//!
//! In the order a connection meets them:
//!
//! * [`identity`]: SPIFFE ids, the CA, certificates and how a peer's identity is checked.
//! * [`proxy`]: what the kernel hands over: outbound, inbound, and the relay between two sockets.
//! * [`sys`]: the few system calls that need `unsafe` or a network namespace.
#![deny(unsafe_code)]

pub mod bpf;
pub mod control;
pub mod hbone;
pub mod identity;
pub mod model;
pub mod pods;
pub mod policy;
pub mod proxy;
pub mod sys;
pub mod telemetry;
