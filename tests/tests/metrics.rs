//! The agents' metrics against what truly happened, and the dashboard and the alerts against the metrics. Needs root.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test's helpers say what they expect by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use culvert_lab::lab::{Lab, Options, Placement};
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");
const LIMIT: Duration = Duration::from_secs(20);

const SERVER: &str = "shop/server";
const NEAR: &str = "shop/near";
const FAR: &str = "shop/far";
const PLAIN: &str = "edge/plain";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server, version: v2}}
spec: {nodeName: n1, serviceAccountName: server}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 7000}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-there, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {ports: ["9000"]}}]}]}
"#;

/// Connects so often, one after the other, sends so many bytes each time, and reads them again; on its port 9000 it is refused.
const CLIENT: &str = r#"
use Socket; my ($times, $bytes, $port, $to) = @ARGV; my $said = "x" x $bytes; my $failed = 0; $SIG{PIPE} = "IGNORE";
for (1..$times) {
  socket(my $s, AF_INET, SOCK_STREAM, 6) or die;
  unless (connect($s, pack_sockaddr_in($port, inet_aton($to)))) { $failed++; next }
  unless ((syswrite($s, $said) // 0) == $bytes) { $failed++; next } # a tunnel is refused after connect()
  shutdown($s, 1) unless $_ % 2;
  my $heard = 0; while ($heard < $bytes) { $heard += sysread($s, my $part, 65536) || last }
  if ($heard < $bytes) { $failed++ }
}
print $failed;
"#;

struct World(Lab);

impl World {
    fn new() -> Self {
        let culvert = Path::new(LAB).with_file_name("culvert");
        assert!(culvert.exists(), "{} is missing: `cargo xtask build` makes it", culvert.display());
        let options = Options {
            nodes: vec!["n1".to_owned(), "n2".to_owned()],
            agent_args: vec!["--access-log=all".to_owned(), "--log-format=json".to_owned()],
            culvert: Some(culvert),
            lab: Some(PathBuf::from(LAB)),
            ..Options::default()
        };
        let on = |node: &str, tcp| Placement { node: node.to_owned(), http: Vec::new(), tcp };
        let pods = [
            (SERVER, on("n1", vec![7000])),
            (NEAR, on("n1", vec![])),
            (FAR, on("n2", vec![])),
            (PLAIN, on("n2", vec![])),
        ];
        let mut lab = Lab::new(options, pods.map(|(name, place)| (name.to_owned(), place)).into()).unwrap();
        lab.apply(OBJECTS).unwrap();
        lab.declare_missing_pods().unwrap();
        lab.start_agents().unwrap();
        Self(lab)
    }

    /// How many of so many connections failed.
    fn connect(&self, from: &str, times: u64, bytes: u64, port: u16, to: &str) -> u64 {
        let words = ["perl", "-e", CLIENT, &times.to_string(), &bytes.to_string(), &port.to_string(), to];
        let output = self.0.exec(from, &words.map(str::to_owned), LIMIT).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.parse().unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    fn metrics(&self, node: &str) -> String {
        let output = self.0.run_on(node, &["culvert", "metrics"].map(str::to_owned), LIMIT).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until the sum of these series is this.
    fn expect(&self, node: &str, family: &str, labels: &[&str], expected: u64) {
        let begun = Instant::now();
        loop {
            let text = self.metrics(node);
            let got = sum(&text, family, labels);
            if got == expected {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{family} {labels:?} on {node}: {got}, not {expected}\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn lines(&self) -> Vec<Value> {
        let log = self.0.agent_logs(usize::MAX);
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["target"] == "access").map(|line| line["fields"].clone()).collect()
    }
}

fn sum(text: &str, family: &str, labels: &[&str]) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(&format!("{family}{{")));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn connections_and_bytes_are_counted_exactly_at_both_ends() {
    let world = World::new();
    let server = world.0.pod_addresses(SERVER).unwrap().v4.to_string();
    let vip = world.0.substitute("${vip:shop/server}").unwrap();
    // By a virtual address, in the kernel and by tunnel; and from outside the mesh.
    assert_eq!(world.connect(NEAR, 40, 3001, 80, &vip), 0);
    assert_eq!(world.connect(FAR, 30, 70_001, 80, &vip), 0);
    assert_eq!(world.connect(PLAIN, 20, 503, 7000, &server), 0);
    // Policy says no, and nobody listens.
    assert_eq!(world.connect(NEAR, 5, 1, 9000, &server), 5);
    assert_eq!(world.connect(FAR, 6, 1, 9000, &server), 6);
    assert_eq!(world.connect(PLAIN, 7, 1, 9000, &server), 7);
    assert_eq!(world.connect(NEAR, 4, 1, 7001, &server), 4);
    assert_eq!(world.connect(FAR, 3, 1, 7001, &server), 3);

    let (source, destination) = ("reporter=\"source\"", "reporter=\"destination\"");
    let (near, far, plain) =
        ("source_workload=\"near\"", "source_workload=\"far\"", "source_workload=\"plain\"");
    let (none, deny, connect) =
        ("response_flags=\"-\"", "response_flags=\"DENY\"", "response_flags=\"CONNECT\"");
    let (opened, closed) = ("istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total");
    let failed = "istio_tcp_connections_failed_total";
    for (node, side, who, good, bytes) in [
        ("n1", source, near, 40, 3001),
        ("n1", destination, near, 40, 3001),
        ("n2", source, far, 30, 70_001),
        ("n1", destination, far, 30, 70_001),
        ("n1", destination, plain, 20, 503),
    ] {
        world.expect(node, closed, &[side, who, none], good);
        world.expect(node, "istio_tcp_sent_bytes_total", &[side, who], good * bytes);
        world.expect(node, "istio_tcp_received_bytes_total", &[side, who], good * bytes);
    }
    for (node, side, who, flags, bad) in [
        ("n1", source, near, deny, 5),
        ("n1", source, near, connect, 4),
        ("n1", destination, near, deny, 0),
        ("n2", source, far, deny, 6),
        ("n2", source, far, connect, 3),
        ("n1", destination, far, connect, 3),
        ("n1", destination, plain, deny, 7),
    ] {
        world.expect(node, failed, &[side, who, flags], bad);
        world.expect(node, closed, &[side, who, flags], bad);
    }
    for (node, side, who, all) in [
        ("n1", source, near, 49),
        ("n1", destination, near, 40),
        ("n2", source, far, 39),
        ("n1", destination, far, 33),
        ("n1", destination, plain, 27),
    ] {
        world.expect(node, opened, &[side, who], all);
    }
    let (by, of) = ("policy=\"shop/not-there\"", "reason=\"denied by policy\"");
    world.expect("n1", "culvert_refusals_total", &[source, by, of], 5);
    world.expect("n1", "culvert_refusals_total", &[destination, by, of], 7);

    let text = world.metrics("n1");
    let line =
        text.lines().find(|l| l.starts_with(opened) && l.contains(destination) && l.contains(near)).unwrap();
    let spiffe = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    for (name, value) in [
        ("source_canonical_service", "near"),
        ("source_principal", &*spiffe("default")),
        ("source_cluster", "Kubernetes"),
        ("destination_service", "server.shop.svc.cluster.local"),
        ("destination_service_name", "server"),
        ("destination_service_namespace", "shop"),
        ("destination_workload", "server"),
        ("destination_version", "v2"),
        ("destination_principal", &spiffe("server")),
        ("request_protocol", "tcp"),
        ("connection_security_policy", "unknown"),
    ] {
        assert!(line.contains(&format!("{name}=\"{value}\"")), "{name} in {line}");
    }
    let secure = ["connection_security_policy=\"mutual_tls\"", source];
    assert_eq!(sum(&world.metrics("n2"), opened, &secure), 39);
    assert_eq!(sum(&text, "culvert_kernel_connections_total", &["events_lost"]), 0);

    // A line for each connection at each end that tells of it.
    let lines = world.lines();
    let count = |has: &[(&str, &str)]| {
        lines.iter().filter(|line| has.iter().all(|(key, value)| line[*key] == *value)).count()
    };
    for (direction, who, all) in [
        ("outbound", "near", 49),
        ("inbound", "near", 40),
        ("outbound", "far", 39),
        ("inbound", "far", 33),
        ("inbound", "plain", 27),
    ] {
        assert_eq!(
            count(&[("direction", direction), ("src.workload", who)]),
            all,
            "{direction} {who}: {lines:?}"
        );
    }
    assert_eq!(count(&[("error", "denied by policy [shop/not-there]")]), 18);
    let tunnelled = lines.iter().find(|l| l["src.workload"] == "far" && l["bytes_sent"] == 70_001).unwrap();
    assert_eq!(tunnelled["dst.hbone_addr"], format!("{server}:7000"));
    assert_eq!(tunnelled["dst.addr"], format!("{server}:15008"));
    assert_eq!(tunnelled["dst.service"], "server.shop.svc.cluster.local");
    the_files_name_only_what_there_is(&(text + &world.metrics("n2")));
    world.0.stop().unwrap();
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Every expression of the dashboard and of the alerts.
fn expressions() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value.as_str() {
                        Some(text) if key == "expr" => found.push(text.to_owned()),
                        _ => collect(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    let dashboard = std::fs::read_to_string(deploy().join("grafana/culvert.json")).unwrap();
    collect(&serde_json::from_str(&dashboard).unwrap(), &mut found);
    let alerts = std::fs::read_to_string(deploy().join("prometheus/culvert-alerts.yaml")).unwrap();
    collect(&serde_saphyr::from_str(&alerts).unwrap(), &mut found);
    assert!(found.len() > 20, "{found:?}");
    found
}

/// What looks like a metric of an agent in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours =
        words.filter(|word| ["istio_", "culvert_", "process_"].iter().any(|start| word.starts_with(start)));
    ours.map(str::to_owned).collect()
}

fn the_files_name_only_what_there_is(metrics: &str) {
    let there: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for expression in expressions() {
        for name in names(&expression) {
            assert!(there.contains(&*name), "no agent has {name}, of {expression}");
        }
    }
}

#[test]
fn every_expression_of_the_files_parses() {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/prometheus/usr/bin/promtool");
    let promtool = if unpacked.exists() { unpacked } else { "promtool".into() };
    if Command::new(&promtool).arg("--version").output().is_err() {
        println!("skipped: promtool is missing (Debian's package prometheus has it)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rules: Vec<Value> = expressions()
        .iter()
        .enumerate()
        // Grafana puts these in.
        .map(|(n, e)| serde_json::json!({"record": format!("e:{n}"), "expr": e.replace("$__rate_interval", "5m")}))
        .collect();
    let file = dir.path().join("rules.yaml");
    let text = serde_json::json!({"groups": [{"name": "all", "rules": rules}]});
    std::fs::write(&file, text.to_string()).unwrap();
    for file in [file, deploy().join("prometheus/culvert-alerts.yaml")] {
        let output = Command::new(&promtool).args(["check", "rules"]).arg(&file).output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
