//! Every byte of some hundred connections arrives, both ways, and then the end. Needs root.

#![expect(clippy::expect_used, reason = "a test's helpers say what they expect by panicking")]

use std::process::{Command, Output};

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");

fn transfers(arguments: &[&str]) -> Output {
    let culvert = culvert_lab::lab::agent_beside(LAB).expect("the agent");
    let mut command = Command::new(LAB);
    command.arg("transfers").args(arguments).arg("--culvert").arg(culvert);
    command.output().expect("culvert-lab starts")
}

fn pass(path: &str) {
    let output = transfers(&["--path", path, "--connections", "500", "--max-size", "16MiB"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("connections  500: IPv4 250, IPv6 250; to virtual addresses 250"), "{text}");
}

#[test]
fn direct_connections_carry_every_byte() {
    pass("direct");
}

#[test]
fn tunnelled_connections_carry_every_byte() {
    pass("tunnel");
}

/// What the others rest on: the same without a mesh.
#[test]
fn raw_connections_carry_every_byte() {
    pass("raw");
}

#[test]
fn connections_that_take_another_path_are_a_failure() {
    let arguments = ["--path", "direct", "--connections", "20", "--agent-arg=--same-node=tunnel"];
    let output = transfers(&arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("failures     0 connections"), "{text}");
    assert!(text.contains("WRONG        wrong path: "), "{text}");
}
