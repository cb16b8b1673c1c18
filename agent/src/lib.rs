//! Culvert's node agent.
//!
//! # Layout
//!
//! In the order in which the world reaches a connection:
//!
//! * [`control`]: where the agent learns of pods, services and policies: a watched folder of manifests, and DNS for
//!   the names in them.
//! * [`model`]: all objects, and the mesh that follows from them: workloads, services, endpoints.
//! * [`policy`]: AuthorizationPolicy and PeerAuthentication, compiled into the rows that the kernel reads.
//! * [`bpf`]: the kernel side: loading, pinning, the order in which maps are written, flow events. Only it knows aya.
//! * [`pods`]: local pods: found by their cgroup, enrolled, released.
//! * [`proxy`]: what the kernel hands over: outbound, inbound, and the relay between a socket and a tunnel.
//! * [`hbone`]: HTTP/2 CONNECT over mutual TLS, both ends.
//! * [`identity`]: SPIFFE ids, the CA, certificates and how a peer's identity is checked.
//! * [`telemetry`]: flow records and metrics. [`admin`]: the socket that shows them. [`cli`]: who asks.
//! * [`graph`]: pictures of flow records.
//! * [`profile`]: where the agent's own time and memory go; with the allocator that can be looked at.
//! * [`analyze`]: what is notable about manifests, without an agent.
//! * [`waypoint`]: the waypoints of a folder of manifests, made and judged for `culvert waypoint`.
//! * [`claim`]: one agent for an instance and a part of the cgroup tree.
//! * [`sys`]: the few system calls that need `unsafe` or a network namespace.
//! * [`app`]: the only place that knows everyone.
#![deny(unsafe_code)]

pub mod admin;
pub mod analyze;
pub mod app;
pub mod bpf;
pub mod claim;
pub mod cli;
pub mod control;
pub mod graph;
pub mod hbone;
pub mod identity;
pub mod model;
pub mod pods;
pub mod policy;
pub mod profile;
pub mod proxy;
pub mod sys;
pub mod telemetry;
pub mod waypoint;
