//! Policies, pods and agents change under load for some seconds, and every connection is judged. Needs root.

use std::process::Command;

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");
/// Beside building the lab and looking for leaks; `CULVERT_SOAK_MINUTES` asks for more.
const MINUTES: &str = "0.2";

#[test]
fn every_connection_is_as_it_should_be_whatever_changes() {
    let culvert = culvert_lab::lab::agent_beside(LAB).expect("the agent");
    let minutes = std::env::var("CULVERT_SOAK_MINUTES").unwrap_or_else(|_| MINUTES.to_owned());
    let mut command = Command::new(LAB);
    command.args(["soak", "--seed", "4", "--minutes", &minutes, "--culvert"]).arg(culvert);
    let output = command.output().expect("culvert-lab starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
}
