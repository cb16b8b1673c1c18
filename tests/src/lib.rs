//! A lab builds a small cluster on one machine: nodes and pods are network namespaces, the kernel is the real one.
//!
//! * [`scenario`]: the file format. [`runner`]: plays a scenario and explains what failed. [`expect`]: expectations.
//! * [`lab`]: nodes, pods, agents, names, kube-proxy; [`objects`]: the API server.
//! * [`transfers`]: thousands of connections whose every byte is checked.
//! * [`soak`]: everything changes while everybody connects.
//! * [`bench`]: what connections cost, against the raw network.
//! * `pod_process`: the servers and the client in every pod. `net`, `sys`: namespaces and processes.
#![deny(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod demo;
mod dice;
pub mod expect;
pub mod lab;
pub mod net;
pub mod objects;
mod pod_process;
pub mod runner;
pub mod scenario;
pub mod soak;
mod sys;
pub mod transfers;

pub use pod_process::Try;
