//! What the lab promises: it explains failures, and it leaves nothing behind, however it ends. Needs root.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test's helpers say what they expect by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");

fn culvert() -> PathBuf {
    culvert_lab::lab::agent_beside(LAB).unwrap()
}

fn scenario(dir: &tempfile::TempDir, steps: &str) -> PathBuf {
    let path = dir.path().join("scenario.yaml");
    let text = format!(
        "name: under test\nnodes: [n1, n2]\nmanifests:\n- inline: |\n    apiVersion: v1\n    kind: Namespace\n    \
         metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient}}}}\n    ---\n    \
         apiVersion: security.istio.io/v1\n    kind: AuthorizationPolicy\n    metadata: {{name: nobody, namespace: shop}}\n    \
         spec: {{}}\npods:\n- {{pod: shop/server, node: n1, serve: [{{http: 8080}}]}}\n- {{pod: shop/client, node: n2}}\nsteps:\n{steps}"
    );
    fs::write(&path, text).unwrap();
    path
}

/// Everything on this machine that carries the name of a lab whose process is `pid`.
fn lab_of(pid: u32) -> Option<String> {
    let labs = fs::read_dir("/run/culvert-lab").ok()?;
    labs.flatten().find_map(|lab| {
        let owner = fs::read_to_string(lab.path().join("pid")).ok()?;
        (owner.trim() == pid.to_string()).then(|| lab.file_name().into_string().ok())?
    })
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(file: &Path) -> Child {
    let mut command = Command::new(LAB);
    command.args(["run", "--culvert"]).arg(culvert()).arg(file);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("culvert-lab starts")
}

#[test]
fn a_wrong_expectation_fails_and_explains_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let file = scenario(
        &dir,
        "- probe: {from: shop/client, url: \"http://${pod:shop/server}:8080/\"}\n  expect: {status: 200}\n  within: 1s\n",
    );
    let output = start(&file).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "expected an answer, got error refused",
        "REFUSED tunnel shop/client:0 -> shop/server:8080",
        "allow policies exist, but none allowed",
        "policy shop/nobody",
        "log of the agent of n2",
        "0 passed, 1 failed",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn an_interrupted_lab_leaves_nothing_behind() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let file = scenario(&dir, "- sleep: 60s\n");
        let mut child = start(&file);
        let id = wait_for("the lab", || lab_of(child.id()));
        let socket = PathBuf::from(format!("/run/culvert/lab-{id}-n1/admin.sock"));
        wait_for("the agent", || socket.exists().then_some(()));
        assert!(!culvert_lab::lab::leftovers(&id).is_empty());
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        child.wait().unwrap();
        assert_eq!(culvert_lab::lab::leftovers(&id), Vec::<PathBuf>::new(), "after {signal}");
    }
}

#[test]
fn a_killed_lab_is_cleaned_up_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = scenario(&dir, "- sleep: 60s\n");
    let mut child = start(&file);
    let id = wait_for("the lab", || lab_of(child.id()));
    wait_for("the pods", || {
        Path::new(&format!("/run/netns/clab-{id}-n2-shop-client")).exists().then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(Command::new(LAB).arg("clean").status().unwrap().success());
    assert_eq!(culvert_lab::lab::leftovers(&id), Vec::<PathBuf>::new());
}
