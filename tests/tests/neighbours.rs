//! Culvert beside programs of others on the same hooks, attached before it and after it: each does its work, and none is touched by
//! an agent that starts, dies or is removed. The others are in ebpf/others. Needs root.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test's helpers say what they expect by panicking"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, SockMap};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, SchedClassifier, SkLookup, SockOps};
use culvert_lab::lab::{Lab, Options, Placement};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");
const LIMIT: Duration = Duration::from_secs(10);
const SERVER: &str = "shop/server";
const CLIENT: &str = "shop/client";
/// Not in the mesh.
const STRANGER: &str = "other/stranger";
/// What the others count: see ebpf/others/main.rs.
const CONNECTS: u32 = 0;
const CLOSED: u32 = 1;
const LOOKUPS: u32 = 2;
const PACKETS: u32 = 3;
const FLAGS: u32 = 4;
/// `BPF_SOCK_OPS_RTO_CB_FLAG` and `BPF_SOCK_OPS_STATE_CB_FLAG`.
const RTO: u32 = 1;
const STATE: u32 = 4;

/// A node with a client and a server on 8080 whose namespace is in the mesh, a stranger, and no agent yet.
fn lab(guard: &str) -> Lab {
    let options = Options::built(LAB, &["n1"], &[&format!("--source-guard={guard}")]).unwrap();
    let place = |http| Placement { node: "n1".to_owned(), http, tcp: Vec::new() };
    let pods = [(SERVER, place(vec![8080])), (CLIENT, place(Vec::new())), (STRANGER, place(Vec::new()))];
    let mut lab = Lab::new(options, pods.map(|(name, place)| (name.to_owned(), place)).into()).unwrap();
    lab.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\n\
         spec: {mtls: {mode: STRICT}}",
    )
    .unwrap();
    lab.declare_missing_pods().unwrap();
    lab
}

/// Programs of somebody else; they go with this value.
struct Others(Ebpf);

impl Others {
    fn load() -> Self {
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/others.o");
        Self(Ebpf::load_file(&object).expect("`cargo xtask build-ebpf` makes others.o"))
    }

    fn on_connect(&mut self, lab: &Lab) {
        let cgroup = File::open(lab.node_cgroup("n1")).unwrap();
        for name in ["other_connect4", "other_connect6"] {
            let program: &mut CgroupSockAddr = self.0.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            program.attach(&cgroup, CgroupAttachMode::Single).unwrap();
        }
    }

    fn on_sockets(&mut self, lab: &Lab, flags: u32) {
        self.order(0, flags);
        let cgroup = File::open(lab.node_cgroup("n1")).unwrap();
        let program: &mut SockOps = self.0.program_mut("other_sockets").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(cgroup, CgroupAttachMode::Single).unwrap();
    }

    fn on_lookup(&mut self, lab: &Lab) {
        let program: &mut SkLookup = self.0.program_mut("other_lookup").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(netns(lab, SERVER)).unwrap();
    }

    /// On what arrives from the client; `verdict` as of tc.
    fn on_packets(&mut self, lab: &Lab, verdict: i32) {
        self.order(3, verdict as u32);
        let node = File::open(Path::new("/run/netns").join(lab.node_netns("n1").unwrap())).unwrap();
        let interface = interface_to(lab, CLIENT);
        let program: &mut SchedClassifier = self.0.program_mut("other_filter").unwrap().try_into().unwrap();
        program.load().unwrap();
        std::thread::scope(|scope| {
            let attach = || {
                setns(&node, CloneFlags::CLONE_NEWNET).unwrap();
                program.attach(&interface, aya::programs::TcAttachType::Ingress).unwrap();
            };
            scope.spawn(attach).join().unwrap();
        });
    }

    /// Connections to `port` go to `to` instead.
    fn redirect(&mut self, port: u16, to: SocketAddr) {
        let words = match to.ip() {
            IpAddr::V4(ip) => [0, 0, 0, u32::from_ne_bytes(ip.octets())],
            IpAddr::V6(ip) => {
                let bytes = ip.octets();
                std::array::from_fn(|n| u32::from_ne_bytes(bytes[n * 4..][..4].try_into().unwrap()))
            }
        };
        let [a, b, c, d] = words;
        let mut map: HashMap<_, u32, [u32; 5]> = self.0.map_mut("BACKENDS").unwrap().try_into().unwrap();
        map.insert(u32::from(port.to_be()), [a, b, c, d, u32::from(to.port().to_be())], 0).unwrap();
    }

    fn order(&mut self, index: u32, value: u32) {
        let mut map: Array<_, u32> = self.0.map_mut("ORDERS").unwrap().try_into().unwrap();
        map.set(index, value, 0).unwrap();
    }

    fn runs(&self, what: u32) -> u64 {
        let map: Array<_, u64> = self.0.map("RUNS").unwrap().try_into().unwrap();
        map.get(&what, 0).unwrap()
    }
}

fn netns(lab: &Lab, pod: &str) -> File {
    let (_, netns, _) = lab.pods().find(|(name, ..)| *name == pod).unwrap();
    File::open(Path::new("/run/netns").join(netns)).unwrap()
}

/// The name of the node's end of a pod's interface: the route to the pod leads there.
fn interface_to(lab: &Lab, pod: &str) -> String {
    let address = lab.pod_addresses(pod).unwrap().v4.to_string();
    let route = run(lab, &["ip", "route", "get", &address]);
    route.split_whitespace().skip_while(|word| *word != "dev").nth(1).expect("a route").to_owned()
}

fn run(lab: &Lab, command: &[&str]) -> String {
    let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    let output = lab.run_on("n1", &command, LIMIT).unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Both addresses of the server, with a port.
fn server(lab: &Lab, port: u16) -> [SocketAddr; 2] {
    let addresses = lab.pod_addresses(SERVER).unwrap();
    [(IpAddr::from(addresses.v4), port).into(), (IpAddr::from(addresses.v6), port).into()]
}

/// Whether the client gets an answer there.
fn answers(lab: &Lab, to: SocketAddr) -> bool {
    let url = format!("http://{to}/");
    let command = ["curl", "-s", "-S", "-m", "3", "-o", "/dev/null", &url].map(str::to_owned);
    let output = lab.exec(CLIENT, &command, LIMIT).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || output.status.code() == Some(7), "not refused but {text}");
    output.status.success()
}

fn counter(lab: &Lab, kind: &str) -> u64 {
    let metrics = run(lab, &["culvert", "metrics"]);
    let series = format!("culvert_kernel_connections_total{{kind=\"{kind}\"}} ");
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&series))
        .and_then(|n| n.parse().ok())
        .expect("a counter")
}

/// The neighbours that the agent tells of, as hook → (owner, before or after, level).
fn neighbours(lab: &Lab) -> BTreeMap<String, (String, String, String)> {
    let dump: Value = serde_json::from_str(&run(lab, &["culvert", "dump"])).unwrap();
    let text = |entry: &Value, field: &str| entry[field].as_str().expect("a text").to_owned();
    let entries = dump["neighbours"].as_array().expect("a list").iter();
    entries.map(|n| (text(n, "hook"), (text(n, "owner"), text(n, "runs"), text(n, "level")))).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A load balancer that runs first: Culvert decides about the destination that it leaves.
#[test]
fn a_load_balancer_before_culvert_keeps_its_destinations() {
    let mut lab = lab("enforce");
    let mut others = Others::load();
    others.on_connect(&lab);
    lab.start_agents().unwrap();
    for (to, virtual_port) in server(&lab, 8080).into_iter().zip([7704, 7706]) {
        others.redirect(virtual_port, to);
        assert!(answers(&lab, to), "{to} by itself");
        assert!(answers(&lab, SocketAddr::new(to.ip(), virtual_port)), "{to} by port {virtual_port}");
    }
    assert_eq!(counter(&lab, "diverted"), 0);
    assert_eq!(counter(&lab, "direct"), 4, "each of them decided and admitted");
    let wanted = ("somebody unknown".to_owned(), "before".to_owned(), "conflict".to_owned());
    let found = neighbours(&lab);
    assert_eq!((found.get("connect4"), found.get("connect6")), (Some(&wanted), Some(&wanted)));
    // It stays, whatever becomes of Culvert.
    let [to, _] = server(&lab, 7704);
    for act in ["restart", "kill", "uninstall", "start"] {
        match act {
            "uninstall" => drop(run(&lab, &["culvert", "uninstall"])),
            act => lab.control_agent("n1", act).unwrap(),
        }
        let before = others.runs(CONNECTS);
        assert!(answers(&lab, to), "after {act}");
        assert_eq!(others.runs(CONNECTS), before + 1, "after {act}");
    }
}

/// A load balancer that runs last: what it leaves alone works; what it leads elsewhere is a stranger there, and counted.
#[test]
fn a_load_balancer_after_culvert_cannot_lead_decided_connections_elsewhere_in_silence() {
    let mut lab = lab("enforce");
    lab.start_agents().unwrap();
    let mut others = Others::load();
    others.on_connect(&lab);
    for (to, virtual_port) in server(&lab, 8080).into_iter().zip([7704, 7706]) {
        others.redirect(virtual_port, to);
        assert!(answers(&lab, to), "{to} by itself");
        assert!(!answers(&lab, SocketAddr::new(to.ip(), virtual_port)), "STRICT, and nothing vouches for it");
    }
    assert_eq!(others.runs(CONNECTS), 4);
    assert_eq!(counter(&lab, "diverted"), 2);
    eventually("a flow record of the diversion", || {
        run(&lab, &["culvert", "flows"]).contains("another BPF program changed the destination")
    });
    assert_eq!(neighbours(&lab).get("connect4").map(|found| found.1.as_str()), Some("after"));
}

/// sockops programs share the callback flags of a socket: Culvert adds to what it finds, and again where another one, which runs
/// first, has erased what it did not ask for itself.
#[test]
fn callbacks_that_others_asked_for_stay() {
    let mut lab = lab("enforce");
    let mut others = Others::load();
    others.on_sockets(&lab, RTO);
    lab.start_agents().unwrap();
    let closed = || lab.flows().iter().filter(|flow| flow.stage == "closed" && flow.side == "source").count();
    let mut seen = 0;
    for to in server(&lab, 8080) {
        assert!(answers(&lab, to));
        assert_eq!(others.runs(FLAGS) as u32, RTO | STATE, "between connect() and the answer to the SYN");
    }
    eventually("a record of the end of each", || {
        seen += closed();
        seen == 2
    });
    assert!(others.runs(CLOSED) >= 4, "theirs at both ends of each");
    eventually("no open connection in the map", || open_connections(&lab) == 0);
    assert_eq!(
        neighbours(&lab).get("sock_ops"),
        Some(&("somebody unknown".to_owned(), "before".to_owned(), "harmless".to_owned()))
    );
}

fn open_connections(lab: &Lab) -> usize {
    let pin = format!("/sys/fs/bpf/culvert/{}/connections", lab.instance("n1"));
    run(lab, &["bpftool", "-j", "map", "dump", "pinned", &pin]).matches("\"formatted\"").count()
}

/// Lookup programs: one that refuses adds to Culvert's refusals; one that picks a socket overrules them, in the kernel's own rules.
#[test]
fn another_lookup_program_refuses_besides_culvert_and_steers_over_it() {
    let mut lab = lab("enforce");
    let mut others = Others::load();
    others.on_lookup(&lab);
    lab.start_agents().unwrap();
    let [to, _] = server(&lab, 8080);
    assert!(answers(&lab, to));
    others.order(2, 8080);
    others.order(1, 0);
    assert!(!answers(&lab, to), "the other one refuses");
    others.order(1, 1);
    assert!(answers(&lab, to), "both let it in");
    assert!(others.runs(LOOKUPS) >= 2);
    assert_eq!(knock(&lab, to), Some(7), "STRICT refuses the stranger, whatever the other one says");
    let steered = listener(&lab);
    let mut listeners: SockMap<_> = others.0.map_mut("LISTENERS").unwrap().try_into().unwrap();
    listeners.set(0, &steered, 0).unwrap();
    others.order(1, 2);
    // So is the kernel's rule, and so docs/kernel.md says.
    assert_eq!(knock(&lab, to), Some(28), "connected, to a socket that does not answer");
    assert_eq!(
        run(&lab, &["culvert", "flows", "--verdict", "refused"]).matches("mTLS is STRICT").count(),
        2,
        "Culvert said no both times"
    );
    assert_eq!(
        neighbours(&lab).get("sk_lookup"),
        Some(&("somebody unknown".to_owned(), "before".to_owned(), "conflict".to_owned()))
    );
}

/// What the stranger's curl ends with: 7 refused, 28 no answer in time.
fn knock(lab: &Lab, to: SocketAddr) -> Option<i32> {
    let url = format!("http://{to}/");
    let command = ["curl", "-s", "-m", "1", "-o", "/dev/null", &url].map(str::to_owned);
    lab.exec(STRANGER, &command, LIMIT).unwrap().status.code()
}

/// A socket of the server's namespace that nobody would find by its address.
fn listener(lab: &Lab) -> TcpListener {
    let netns = netns(lab, SERVER);
    std::thread::scope(|scope| {
        let bind = || {
            setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind("127.0.0.1:9").unwrap()
        };
        scope.spawn(bind).join().unwrap()
    })
}

/// A filter that has the last word on each packet, attached first: the guard still sees them all, and it sees what the guard lets pass.
#[test]
fn another_filter_on_the_interface_sees_what_the_guard_lets_pass() {
    let mut lab = lab("enforce");
    let mut others = Others::load();
    others.on_packets(&lab, 0);
    lab.start_agents().unwrap();
    let [to, _] = server(&lab, 8080);
    assert!(answers(&lab, to));
    let seen = others.runs(PACKETS);
    assert!(seen > 0);
    let found = neighbours(&lab).get("tcx_ingress").cloned();
    assert_eq!(found.map(|found| found.1), Some("after".to_owned()));
    let spoof = "ip address add 10.244.1.200/32 dev eth0; \
                 curl -s -m 1 --interface 10.244.1.200 -o /dev/null http://";
    let command = ["sh", "-c", &format!("{spoof}{to}/")].map(str::to_owned);
    let output = lab.exec(CLIENT, &command, LIMIT).unwrap();
    assert_eq!(output.status.code(), Some(28), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(counter(&lab, "spoofed") > 0);
}

/// tcx programs run before all filters of clsact: one that passes packets on leaves them to the guard.
#[test]
fn another_tcx_program_runs_before_a_guard_at_clsact() {
    let mut lab = lab("clsact");
    lab.start_agents().unwrap();
    let mut others = Others::load();
    others.on_packets(&lab, -1);
    let [to, _] = server(&lab, 8080);
    assert!(answers(&lab, to));
    assert!(others.runs(PACKETS) > 0);
    let found = neighbours(&lab).get("tcx_ingress").cloned();
    assert_eq!(found.map(|found| found.1), Some("before".to_owned()));
    lab.control_agent("n1", "kill").unwrap();
    run(&lab, &["culvert", "uninstall"]);
    let before = others.runs(PACKETS);
    assert!(answers(&lab, to));
    assert!(others.runs(PACKETS) > before, "it stays when Culvert goes");
}
