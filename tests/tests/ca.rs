//! One `culvert ca` and the agents that it signs for: across its absence, with other roots, with a wrong token. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use culvert_lab::lab::{Lab, Options, Placement, agent_beside};

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");
const LIMIT: Duration = Duration::from_secs(10);
const APP: &str = "shop/app";
/// On the other node.
const CLIENT: &str = "shop/client";
/// On the same node.
const NEAR: &str = "shop/near";
/// On the same node, outside the mesh.
const OUTSIDER: &str = "plain/outsider";
const PORT: u16 = 15012;

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"#;

/// How long the CA is away at least; `CULVERT_CA_AWAY=60` makes it a minute. Certificates live twice as long.
fn away() -> Duration {
    Duration::from_secs(std::env::var("CULVERT_CA_AWAY").map_or(3, |text| text.parse().unwrap()))
}

/// Two nodes; the CA is to run on the first.
struct Mesh {
    lab: Lab,
    /// The CA's files.
    dir: PathBuf,
    address: String,
}

impl Mesh {
    /// Agents that show `token`; the CA knows `right`.
    fn new(token: &str) -> Self {
        Self::with(token, &[], "")
    }

    /// With further arguments of the agents, and what they have in their environment.
    fn with(token: &str, args: &[&str], environment: &str) -> Self {
        let culvert = agent_beside(LAB).unwrap();
        let dir = tempfile::tempdir().unwrap().keep();
        let path = |name: &str| dir.join(name).display().to_string();
        let wrapper = dir.join("culvert");
        let script =
            format!("#!/bin/sh\ncd {}\n{environment} exec {} \"$@\"\n", dir.display(), culvert.display());
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path("tokens"), "another\nright\n").unwrap();
        fs::write(path("token"), format!("{token}\n")).unwrap();
        // The address of the first node, which the lab gives it.
        let address = "172.30.0.1".to_owned();
        let own = [
            format!("--ca-address={address}:{PORT}"),
            format!("--ca-root={}", path("ca.crt")),
            format!("--ca-token={}", path("token")),
            format!("--certificate-ttl={}", (2 * away()).as_secs().max(10)),
        ];
        let agent_args: Vec<&str> = own.iter().map(String::as_str).chain(args.iter().copied()).collect();
        let options = Options::built(LAB, &["n1", "n2"], &agent_args).unwrap();
        let options = Options { culvert: Some(wrapper), ..options };
        let place = |node: &str, http| Placement { node: node.to_owned(), http, tcp: Vec::new() };
        let pods = [
            (APP, place("n1", vec![5000])),
            (NEAR, place("n1", Vec::new())),
            (OUTSIDER, place("n1", Vec::new())),
            (CLIENT, place("n2", Vec::new())),
        ];
        let mut lab = Lab::new(options, pods.map(|(name, place)| (name.to_owned(), place)).into()).unwrap();
        assert_eq!(lab.node_addresses("n1").unwrap().v4.to_string(), address);
        lab.apply(OBJECTS).unwrap();
        lab.declare_missing_pods().unwrap();
        Self { lab, dir, address }
    }

    fn on(&self, node: &str, script: &str) -> String {
        let command = ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let output = self.lab.run_on(node, &command, LIMIT).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Starts the CA and waits until it listens.
    fn start_ca(&self) {
        let (dir, address) = (self.dir.display(), &self.address);
        self.on(
            "n1",
            &format!(
                "culvert ca --listen {address}:{PORT} --ca-cert {dir}/ca.crt --ca-key {dir}/ca.key --token {dir}/tokens \
                 --server-name {address} >>{dir}/log 2>&1 & echo $! >{dir}/pid"
            ),
        );
        self.until("the CA to listen", || {
            let sockets = self.on("n1", &format!("ss -Hltn 'sport = :{PORT}' || true"));
            sockets.contains(&PORT.to_string()).then_some(()).ok_or(sockets)
        });
    }

    fn stop_ca(&self) {
        self.on("n1", &format!("kill -KILL $(cat {}/pid)", self.dir.display()));
    }

    /// With the CA running; leaves nothing.
    fn end(self) {
        self.stop_ca();
        let _ = fs::remove_dir_all(&self.dir);
        self.lab.stop().unwrap();
    }

    fn ca_log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Serial number, end and problem of the client's certificate.
    fn certificate(&self) -> (String, String) {
        let text = self.on("n2", "culvert certificates -o json");
        let rows: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |name: &str| rows[0][name].as_str().unwrap_or_default().to_owned();
        (field("serial"), field("error"))
    }

    fn until<T>(&self, what: &str, get: impl Fn() -> Result<T, String>) -> T {
        let begun = Instant::now();
        loop {
            match get() {
                Ok(value) => return value,
                Err(last) => assert!(
                    begun.elapsed() < LIMIT,
                    "waited for {what}: {last}\n{}\n-- log of the CA --\n{}",
                    self.lab.agent_logs(20),
                    self.ca_log()
                ),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// One request over a tunnel.
    fn ask(&self) -> Result<(), String> {
        self.ask_from(CLIENT)
    }

    fn ask_from(&self, client: &str) -> Result<(), String> {
        let app = self.lab.pod_addresses(APP).unwrap();
        let script = format!("curl -sS -m 3 -w ' status=%{{http_code}}' http://{}:5000/ 2>&1", app.v4);
        let output = self.lab.exec(client, &["sh".to_owned(), "-c".to_owned(), script], LIMIT).unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if answer.contains("status=200") { Ok(()) } else { Err(answer) }
    }
}

#[test]
fn two_agents_have_their_certificates_from_one_ca_and_outlive_its_absence() {
    let mut mesh = Mesh::new("right");
    mesh.start_ca();
    mesh.lab.start_agents().unwrap();
    mesh.until("a tunnel", || mesh.ask());
    let flows = mesh.lab.flows();
    assert!(
        flows.iter().any(|f| f.path == "tunnel" && f.source.identity.ends_with("/ns/shop/sa/default")),
        "{flows:#?}"
    );
    assert!(
        mesh.ca_log().contains("signed identity=spiffe://cluster.local/ns/shop/sa/default"),
        "{}",
        mesh.ca_log()
    );

    // Gone over the time of a renewal: nothing breaks, and it is said.
    mesh.stop_ca();
    let begun = Instant::now();
    while begun.elapsed() < away().mul_f64(1.2) {
        assert_eq!(mesh.ask(), Ok(()), "{}", mesh.lab.agent_logs(20));
        std::thread::sleep(Duration::from_millis(100));
    }
    mesh.until("the failure to be shown", || {
        assert_eq!(mesh.ask(), Ok(()));
        let (_, error) = mesh.certificate();
        if error.contains("cannot be reached") { Ok(()) } else { Err(error) }
    });
    assert!(mesh.lab.agent_logs(50).contains("the one before stays in use"), "{}", mesh.lab.agent_logs(50));
    let table = mesh.on("n2", "culvert certificates");
    assert!(table.contains("PROBLEM") && table.contains("cannot be reached"), "{table}");
    let (during, _) = mesh.certificate();
    mesh.start_ca();
    mesh.until("a renewal", || {
        assert_eq!(mesh.ask(), Ok(()));
        let (serial, error) = mesh.certificate();
        if serial != during && error.is_empty() { Ok(()) } else { Err(error) }
    });
    assert!(mesh.lab.agent_logs(50).contains("is renewed again"), "{}", mesh.lab.agent_logs(50));
    mesh.end();
}

/// What is secret besides what `agent/tests/secrets.rs` knows: the token and the keys of a real agent and a real CA.
#[test]
fn neither_a_verbose_log_nor_a_key_log_file_has_a_secret() {
    let mut mesh = Mesh::with("right", &["--log=trace"], "SSLKEYLOGFILE=keys");
    // Not a word of any log by chance.
    let token = "b3BlbiBzZXNhbWU.not-for-anybody";
    fs::write(mesh.dir.join("tokens"), token).unwrap();
    fs::write(mesh.dir.join("token"), token).unwrap();
    mesh.start_ca();
    mesh.lab.start_agents().unwrap();
    mesh.until("a tunnel", || mesh.ask());
    let logs = ["n1", "n2"].map(|node| mesh.lab.dir().join(format!("agent-{node}.log")));
    let log: String = logs.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for part in ["TRACE rustls", "TRACE h2", "got a certificate"] {
        assert!(log.contains(part), "the log has no {part:?}, so this says nothing");
    }
    let key = fs::read_to_string(mesh.dir.join("ca.key")).unwrap();
    let body = key.lines().nth(1).unwrap();
    // PKCS#8 and SEC1 of any P-256 key, as base64 and as bytes.
    let keys = [
        "PRIVATE KEY",
        "MIGHAgEAMBMGByqGSM49",
        "MHcCAQEE",
        "308187020100301306072a8648ce3d",
        "48, 129, 135, 2, 1, 0, 48, 19",
    ];
    for secret in keys.into_iter().chain([token, body]) {
        assert!(!log.contains(secret), "the log has {secret:?}");
        assert!(!mesh.ca_log().contains(secret), "the log of the CA has {secret:?}");
    }
    assert!(!mesh.dir.join("keys").exists(), "SSLKEYLOGFILE is honoured");
    mesh.end();
}

#[test]
fn an_agent_that_comes_back_without_its_ca_keeps_in_force_what_was() {
    let mut mesh = Mesh::new("right");
    mesh.start_ca();
    mesh.lab.start_agents().unwrap();
    mesh.until("a tunnel", || mesh.ask());
    mesh.until("a direct connection", || mesh.ask_from(NEAR));
    mesh.stop_ca();
    mesh.lab.control_agent("n1", "kill").unwrap();
    mesh.lab.launch_agent("n1").unwrap();
    mesh.until("the agent to say that it has no certificate", || {
        let said = mesh.on("n1", "culvert ready 2>&1");
        let whole = said.contains("pending: a certificate for any of 1 identities: ")
            && said.contains("it cannot be reached");
        if whole { Ok(()) } else { Err(said) }
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(mesh.ask_from(NEAR), Ok(()), "{}", mesh.lab.agent_logs(30));
        assert!(mesh.ask_from(OUTSIDER).is_err(), "STRICT: {}", mesh.lab.agent_logs(30));
    }
    assert!(mesh.ask().is_err(), "a tunnel needs a certificate");
    mesh.start_ca();
    mesh.until("a tunnel again", || mesh.ask());
    assert_eq!(mesh.on("n1", "culvert ready 2>&1"), "ready\n");
    mesh.end();
}

#[test]
fn a_wrong_token_is_explained_at_the_pod_and_healed_without_a_restart() {
    let mut mesh = Mesh::new("wrong");
    mesh.start_ca();
    // Its pods wait, so the agents do not become whole.
    let _ = mesh.lab.start_agents();
    mesh.until("the pod to say why it waits", || {
        let pods = mesh.on("n2", "culvert pods");
        let said = [
            "pending",
            "refused (gRPC status 16)",
            "a bearer token that this CA knows is needed",
            "--ca-token",
        ];
        if said.iter().all(|part| pods.contains(part)) { Ok(()) } else { Err(pods) }
    });
    assert!(mesh.ca_log().contains("refused"), "{}", mesh.ca_log());
    assert!(!mesh.ca_log().contains("signed"), "{}", mesh.ca_log());
    fs::write(mesh.dir.join("token"), "right\n").unwrap();
    mesh.until("a tunnel", || mesh.ask());
    mesh.end();
}
