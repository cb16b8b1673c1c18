//! `culvert-lab bench` measures every leg, and notices one that did not take its path. What the figures are is not asked: other
//! tests run at the same time. Needs root.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test's helpers say what they expect by panicking"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");

fn bench(dir: &Path, arguments: &[&str]) -> (Output, Value) {
    let culvert = culvert_lab::lab::agent_beside(LAB).expect("the agent");
    let json = dir.join("results.json");
    let mut command = Command::new(LAB);
    command.args(["bench", "--quick", "--rounds", "1", "--duration", "50ms"]).args(arguments);
    command.arg("--json").arg(&json).arg("--culvert").arg(culvert);
    let output = command.output().expect("culvert-lab starts");
    let results = fs::read_to_string(json).ok().and_then(|text| serde_json::from_str(&text).ok());
    (output, results.unwrap_or_default())
}

fn legs(results: &Value, kind: &str) -> Vec<String> {
    let samples = results["samples"].as_array().unwrap().iter();
    let of_kind = samples.filter(|sample| sample["workload"]["kind"] == kind);
    of_kind.map(|sample| sample["leg"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_leg_is_measured_and_a_peer_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let (svg, seen) = (dir.path().join("results.svg"), dir.path().join("seen"));
    // A peer that carries nothing: its pods stay as they are.
    let start = format!(
        "env > {0} && cat $CULVERT_BENCH_PODS >> {0} && echo $$ > $CULVERT_BENCH_PIDS && exec sleep 600",
        seen.display()
    );
    let stop = format!("echo stopped >> {}", seen.display());
    let peer =
        ["--peer", "none", "--peer-start", &start, "--peer-stop", &stop, "--svg", svg.to_str().unwrap()];
    let (output, results) = bench(dir.path(), &peer);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for kind in ["rr", "stream", "connect"] {
        let mut legs = legs(&results, kind);
        legs.dedup();
        legs.truncate(5);
        assert_eq!(legs, ["raw-near", "direct", "raw-far", "tunnel", "peer"], "{kind}");
    }
    for sample in results["samples"].as_array().unwrap() {
        assert!(sample["value"].as_f64().unwrap() > 0.0 && sample["failures"] == 0, "{sample}");
    }
    assert!(fs::read_to_string(svg).unwrap().contains("class=\"peer\""));
    let seen = fs::read_to_string(seen).unwrap();
    for part in [
        "CULVERT_BENCH_CLIENT_IP=10.244.1.",
        "CULVERT_BENCH_SERVER_IP6=fd00:10:244:2:",
        "\nfar\tn2\t",
        "stopped",
    ] {
        assert!(seen.contains(part), "{part:?} is missing in:\n{seen}");
    }
    println!("{text}");
}

#[test]
fn a_leg_that_takes_another_path_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--only", "connect", "--agent-arg=--same-node=tunnel"];
    let (output, results) = bench(dir.path(), &arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let problems = results["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{text}");
    assert!(text.contains("direct: not the path that it claims: "), "{text}");
}
