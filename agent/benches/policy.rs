//! `cargo xtask bench policy`: what policy costs at scale, on the running kernel. Needs root.
//!
//! The pipeline is the agent's own, from the manifests folder to the kernel's maps; only the enrolment of real pods is left
//! out: this process plays the one pod, inside a cgroup of its own. A decision in the kernel is timed twice: the
//! destination's program alone (BPF_PROG_TEST_RUN: look-ups, verdict, event), and a refused connect(), which never leaves the
//! source's hook.

#![expect(clippy::expect_used, reason = "a bench ends where its machine does not give what it needs")]

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert::bpf::{Kernel, Scratch, Trial};
use culvert::control::{Update, manifests};
use culvert::model::{Settings, Snapshot, World, desired};
use culvert::policy::{Interner, compile};
use culvert::sys;
use culvert_common::{Ip, Pod, Tuple, cut};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

const NODE_PODS: usize = 110;
const NAMESPACES: usize = 100;
const APPS: usize = 50;
const CHANGES: usize = 21;
const CONNECTS: usize = 20_000;
const BATCHES: usize = 21;
/// An identity that no policy names: every policy's workload refuses it.
const STRANGER: u32 = 15;

fn main() {
    let json = std::env::args().skip_while(|a| a != "--json").nth(1).map(PathBuf::from);
    let quick = std::env::args().any(|a| a == "--quick");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (policies, workloads): (&[usize], &[usize]) =
        if quick { (&[10, 1_000], &[100]) } else { (&[10, 1_000, 10_000], &[100, 10_000, 100_000]) };
    let sizes =
        workloads.iter().flat_map(|workloads| policies.iter().map(move |policies| (*policies, *workloads)));
    println!(
        "A node of {NODE_PODS} pods; medians of {CHANGES} changes, {BATCHES} x 10,000 SYNs, {CONNECTS} connects."
    );
    println!(
        "policies  workloads  full start  compile  incremental  one change in force      rows     map memory  program on a SYN  refused connect()"
    );
    let mut rows = Vec::new();
    for (policies, workloads) in sizes {
        let row = runtime.block_on(measure(policies, workloads));
        println!(
            "{:>8}  {:>9}  {:>7.0} ms  {:>4.0} ms  {:>8.2} ms  {:>6.1} ms (max {:>5.1})  {:>7}  {:>7.1} MiB  {:>13.0} ns  {:>14.2} µs",
            row.policies,
            row.workloads,
            ms(row.start),
            ms(row.compile),
            ms(row.incremental),
            ms(row.change),
            ms(row.change_max),
            row.rows,
            row.map_bytes as f64 / f64::from(1 << 20),
            row.program.as_secs_f64() * 1e9,
            row.refused.as_secs_f64() * 1e6,
        );
        rows.push(row.json());
    }
    if let Some(path) = json {
        fs::write(&path, format!("[\n{}\n]\n", rows.join(",\n"))).expect("writing the JSON file");
        println!("figures as JSON: {}", path.display());
    }
}

struct Row {
    policies: usize,
    workloads: usize,
    start: Duration,
    compile: Duration,
    incremental: Duration,
    change: Duration,
    change_max: Duration,
    rows: usize,
    map_bytes: u64,
    program: Duration,
    refused: Duration,
}

impl Row {
    fn json(&self) -> String {
        format!(
            "  {{\"policies\": {}, \"workloads\": {}, \"full_start_ms\": {:.1}, \"compile_ms\": {:.2}, \"incremental_compile_ms\": {:.3}, \"change_ms\": {:.2}, \
             \"change_max_ms\": {:.2}, \"rows\": {}, \"map_bytes\": {}, \"program_ns\": {}, \"refused_connect_us\": {:.3}}}",
            self.policies,
            self.workloads,
            ms(self.start),
            ms(self.compile),
            ms(self.incremental),
            ms(self.change),
            ms(self.change_max),
            self.rows,
            self.map_bytes,
            self.program.as_nanos(),
            self.refused.as_secs_f64() * 1e6,
        )
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A place in the kernel and a manifests folder that go with the measurement, and the way back out of its cgroup.
struct Place {
    home: PathBuf,
    kernel: Scratch,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let home = sys::own_cgroup().expect("own cgroup");
        let kernel = Scratch::new("bench").expect("a cgroup and a bpffs");
        Self { home, kernel, dir: tempfile::tempdir().expect("a folder") }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A cgroup with a process in it stays.
        let _ = fs::write(self.home.join("cgroup.procs"), "0");
    }
}

/// The agent's pipeline without pods.
struct Agent {
    settings: Settings,
    world: World,
    interner: Interner,
    kernel: Kernel,
    /// What readers hold: the last state is not free to be changed in place.
    snapshot: Option<Snapshot>,
    compile: Duration,
    rows: usize,
}

impl Agent {
    fn take(&mut self, updates: Vec<Update>) -> bool {
        self.world.apply(updates);
        if !self.world.synced() {
            return false;
        }
        let mesh = self.world.resolve(&self.settings);
        let begun = Instant::now();
        let compiled = compile(&mesh, &mut self.interner);
        self.compile = begun.elapsed();
        self.rows = compiled.rows.len();
        let serving: HashSet<String> =
            mesh.workloads.iter().filter(|w| w.node == self.settings.node).map(|w| w.uid.clone()).collect();
        let (mesh, compiled) = (Arc::new(mesh), Arc::new(compiled));
        let desired = desired(&mesh, &compiled, &serving, &mut self.interner);
        self.kernel.maps.sync_before(&desired).expect("the maps take it");
        self.snapshot = Some(Snapshot::new(mesh, compiled));
        self.kernel.maps.sync_after(&desired).expect("the maps let go");
        true
    }
}

async fn measure(policies: usize, workloads: usize) -> Row {
    let place = Place::new();
    write_world(place.dir.path(), policies, workloads);
    let begun = Instant::now();
    let kernel = Kernel::load(&place.kernel.config()).expect("the programs load");
    let settings = Settings { node: "n1".to_owned(), ..Settings::default() };
    let interner = Interner::new();
    let mut agent = Agent {
        settings,
        world: World::default(),
        interner,
        kernel,
        snapshot: None,
        compile: Duration::ZERO,
        rows: 0,
    };
    let stop = CancellationToken::new();
    let mut updates = manifests::spawn(place.dir.path().to_owned(), stop.clone());
    while !agent.take(next(&mut updates).await) {}
    let start = begun.elapsed();
    let (compile, rows) = (agent.compile, agent.rows);
    let (mut changes, mut compiles) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        changes.push(change(&mut agent, &mut updates, place.dir.path(), n).await);
        compiles.push(agent.compile);
    }
    changes.sort();
    compiles.sort();
    let program = program(&agent);
    let refused = connects(&place, &agent);
    stop.cancel();
    Row {
        policies,
        workloads,
        start,
        compile,
        incremental: compiles[CHANGES / 2],
        change: changes[CHANGES / 2],
        change_max: changes[CHANGES - 1],
        rows,
        map_bytes: map_memory(&place.kernel.pins),
        program,
        refused,
    }
}

async fn next(updates: &mut Receiver<Vec<Update>>) -> Vec<Update> {
    updates.recv().await.expect("the source goes on")
}

/// One policy's file replaced: until the kernel's maps say so.
async fn change(agent: &mut Agent, updates: &mut Receiver<Vec<Update>>, dir: &Path, n: usize) -> Duration {
    let half = dir.join(".changing");
    fs::write(&half, policy(0, n + 1)).expect("writing a policy");
    let begun = Instant::now();
    fs::rename(&half, dir.join("changing.yaml")).expect("replacing a policy");
    agent.take(next(updates).await);
    begun.elapsed()
}

fn namespace(n: usize) -> String {
    format!("ns{}", n % NAMESPACES)
}

/// Policy `n`, with something that `version` changes.
fn policy(n: usize, version: usize) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{n}, namespace: {}}}\n\
         spec:\n  selector: {{matchLabels: {{app: app{}}}}}\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/{}/sa/sa{}]}}}}]\n    \
         to: [{{operation: {{ports: [\"{}\"]}}}}]\n",
        namespace(n),
        n / NAMESPACES % APPS,
        namespace(n + version + 1),
        n % 20,
        8000 + version % 7
    )
}

fn write_world(dir: &Path, policies: usize, workloads: usize) {
    let mut text = String::new();
    for n in 0..NAMESPACES {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{n}, labels: {{istio.io/dataplane-mode: ambient}}}}\n"
        );
    }
    fs::write(dir.join("namespaces.yaml"), text).expect("writing namespaces");
    fs::write(dir.join("changing.yaml"), policy(0, 0)).expect("writing a policy");
    for chunk in (1..policies).collect::<Vec<_>>().chunks(1000) {
        let text: String = chunk.iter().map(|n| policy(*n, 0)).collect();
        fs::write(dir.join(format!("policies-{}.yaml", chunk[0])), text).expect("writing policies");
    }
    for chunk in (0..workloads + NODE_PODS).collect::<Vec<_>>().chunks(1000) {
        let mut text = String::new();
        for n in chunk {
            let node = if *n < NODE_PODS { "n1" } else { "n2" };
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod{n}, namespace: {}, uid: uid-{n}, labels: {{app: app{}}}}}\n\
                 spec: {{nodeName: {node}, serviceAccountName: sa{}}}\nstatus: {{podIP: {}}}\n",
                namespace(*n),
                n / NAMESPACES % APPS,
                n % 20,
                address(*n)
            );
        }
        fs::write(dir.join(format!("pods-{}.yaml", chunk[0])), text).expect("writing pods");
    }
}

fn address(n: usize) -> Ipv4Addr {
    let number = u32::from(Ipv4Addr::new(10, 64, 0, 2)) + u32::try_from(n).expect("few pods");
    Ipv4Addr::from(number)
}

/// Median of the destination's program on a SYN to the first pod, whose policy refuses the peer.
fn program(agent: &Agent) -> Duration {
    let end = |ip: [u8; 4], port| SocketAddr::from((ip, port)).into();
    let tuple = Tuple::new(end([10, 63, 255, 254], 40_000), SocketAddr::from((address(0), 9999)).into());
    let mut times: Vec<Duration> = (0..BATCHES)
        .map(|_| {
            let Trial { let_in, time, .. } =
                agent.kernel.try_syn(&tuple, Some(STRANGER), 10_000).expect("a trial run");
            assert!(!let_in, "a peer that no policy names is refused");
            time
        })
        .collect();
    times.sort();
    times[BATCHES / 2]
}

/// Median of a refused connect() of this process, as a pod.
fn connects(place: &Place, agent: &Agent) -> Duration {
    let cookie = sys::own_netns_cookie().expect("netns cookie");
    let stranger = Pod {
        identity: STRANGER,
        ip4: Ip::from(IpAddr::V4(Ipv4Addr::new(10, 63, 255, 254))),
        ip6: Ip::from_words([0; 4]),
        name: cut("bench/pod"),
    };
    fs::write(place.kernel.cgroup.join("cgroup.procs"), "0").expect("entering the cgroup");
    agent.kernel.maps.put_pod(cookie, stranger).expect("pods entry");
    // Pod 0 is selected by policy 0, whatever their number.
    let target = SocketAddr::from((address(0), 9999));
    let refused = median_connect(target);
    agent.kernel.maps.remove_pod(cookie).expect("pods entry");
    fs::write(place.home.join("cgroup.procs"), "0").expect("leaving the cgroup");
    refused
}

fn median_connect(target: SocketAddr) -> Duration {
    let mut times = Vec::with_capacity(CONNECTS);
    for _ in 0..CONNECTS {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let begun = Instant::now();
        let result = socket.connect(&target.into());
        times.push(begun.elapsed());
        let kind = result.expect_err("refused").kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{target}");
    }
    times.sort();
    times[CONNECTS / 2]
}

/// `memlock` of every pinned map (proc(5), fdinfo): what the kernel has set aside, in bytes.
fn map_memory(pins: &Path) -> u64 {
    let output =
        std::process::Command::new("bpftool").args(["-j", "-f", "map", "show"]).output().expect("bpftool");
    let maps: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("bpftool's JSON");
    let ours = maps.iter().filter(|map| {
        let pinned = map["pinned"].as_array().into_iter().flatten();
        pinned.filter_map(|p| p.as_str()).any(|p| Path::new(p).starts_with(pins))
    });
    ours.filter_map(|map| map["bytes_memlock"].as_u64()).sum()
}
