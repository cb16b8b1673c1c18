//! `cargo xtask bench count`: instructions of the agent's pure parts, under callgrind. Their number hardly depends on what else
//! the machine does, so a change of some per cent is a change of the code.
//!
//! Without `--part` it runs itself under valgrind, once for each part; with it, that part alone. What is outside of [`measured`]
//! does not count. Hash maps have random seeds: numbers of the same code differ by up to a per cent.

#![expect(clippy::expect_used, reason = "a bench ends where its machine does not give what it needs")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use culvert::control::{Update, manifests};
use culvert::hbone::{HboneConfig, authority, baggage, client_port, forwarded, parse_authority};
use culvert::identity::SpiffeId;
use culvert::model::{Mesh, Settings, World};
use culvert::policy::{Interner, compile};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::FORWARDED;
use http::{Method, Request, Response};
use tokio::runtime::Runtime;

const NAMESPACES: usize = 20;
const APPS: usize = 50;
const WORKLOADS: usize = 1000;

/// A part: its name, what it does, how often [`measured`] does it, and itself.
type Part = (&'static str, &'static str, u64, fn(u64));

const PARTS: [Part; 11] = [
    ("decide", "a verdict from compiled tables", 100_000, decide),
    ("decide-by-address", "a verdict where the policy asks for addresses", 100_000, decide_by_address),
    ("compile-100", "100 policies, 1000 workloads, from nothing", 1, |n| compile_all(100, n)),
    ("compile-2000", "2000 policies, 1000 workloads, from nothing", 1, |n| compile_all(2000, n)),
    ("change-2000", "one of 2000 policies changed", 10, change),
    ("read-2000", "2000 policies read from text", 1, read),
    ("write-headers", "authority, forwarded and baggage of a CONNECT", 10_000, write_headers),
    ("read-headers", "authority and forwarded of a CONNECT", 10_000, read_headers),
    ("open-tunnel", "a tunnel opened and ended, HTTP/2 at both ends, no TLS", 2_000, open_tunnel),
    ("frame-64", "64 B there and back on a tunnel, HTTP/2 at both ends, no TLS", 5_000, |n| echo(64, n)),
    ("frame-256k", "256 KiB there and back on a tunnel, HTTP/2 at both ends, no TLS", 50, |n| {
        echo(256 << 10, n)
    }),
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut json, mut before, mut only) = (None, BTreeMap::new(), Vec::new());
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--part" => {
                run(&value()?);
                return Ok(());
            }
            "--json" => json = Some(value()?),
            "--compare" => before = read_figures(&value()?)?,
            _ => only.push(arg),
        }
    }
    if let Some(unknown) = only.iter().find(|name| !PARTS.iter().any(|part| part.0 == *name)) {
        let names: Vec<&str> = PARTS.iter().map(|part| part.0).collect();
        bail!("there is no part {unknown}; there are: {}", names.join(", "));
    }
    let mut figures = BTreeMap::new();
    let columns = if before.is_empty() { String::new() } else { format!("  {:>14}", "before") };
    println!("{:18} {:>16}{columns}", "part", "instructions");
    for (name, what, times, _) in PARTS {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            let each = count(name)? / times;
            println!("{name:18} {each:>16}{}  {what}", change_since(before.get(name).copied(), each));
            figures.insert(name.to_owned(), each);
        }
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("--json {path}"))?;
    }
    Ok(())
}

fn read_figures(path: &str) -> Result<BTreeMap<String, u64>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--compare {path}"))?;
    serde_json::from_str(&text).with_context(|| format!("--compare {path} was not written by --json"))
}

fn change_since(before: Option<u64>, now: u64) -> String {
    match before {
        Some(before) => {
            let change = (now as f64 / before.max(1) as f64 - 1.0) * 100.0;
            format!("  {before:>14} {change:+6.1} %")
        }
        None => String::new(),
    }
}

/// Instructions of the part, all its repetitions.
fn count(name: &str) -> Result<u64> {
    let program = std::env::current_exe()?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*::measured*"]);
    let output =
        valgrind.arg(program).args(["--part", name]).output().context("valgrind cannot be started")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    collected.filter(|count| *count > 0).with_context(|| format!("callgrind counted nothing of {name}"))
}

fn run(name: &str) {
    let (_, _, times, part) = PARTS.iter().find(|part| part.0 == name).expect("a part");
    part(*times);
}

/// What happens in here counts.
#[inline(never)]
fn measured(times: u64, mut work: impl FnMut(u64)) {
    for n in 0..times {
        work(n);
    }
}

fn decide(times: u64) {
    decide_for("principals: [cluster.local/ns/ns3/sa/sa3]", times);
}

fn decide_by_address(times: u64) {
    decide_for("ipBlocks: [10.64.0.0/16, 10.64.3.0/24]", times);
}

/// Verdicts for peers that the policies of every workload know, and for others.
fn decide_for(source: &str, times: u64) {
    let mesh = world(&(0..200).map(|n| policy(n, 0, source)).collect::<String>()).1;
    let compiled = compile(&mesh, &mut Interner::new());
    let asked: Vec<(u32, SpiffeId, IpAddr)> = (mesh.workloads.iter().enumerate().take(64))
        .filter_map(|(n, workload)| {
            let address = *workload.addresses.first()?;
            let peer = SpiffeId::new("cluster.local", &format!("ns{}", n % 8), &format!("sa{}", n % 8));
            Some((compiled.class_of(n, address)?, peer, address))
        })
        .collect();
    assert!(asked.len() == 64, "{}", asked.len());
    let ports = [8000, 9999];
    measured(times, |n| {
        let (class, peer, address) = &asked[n as usize % asked.len()];
        black_box(compiled.decide(*class, Some(peer), *address, ports[n as usize % 2]));
    });
}

fn compile_all(policies: usize, times: u64) {
    let mesh = world(&text(policies)).1;
    measured(times, |_| {
        black_box(compile(&mesh, &mut Interner::new()).rows.len());
    });
}

fn change(times: u64) {
    let (mut world, mut mesh) = world(&text(2000));
    let mut interner = Interner::new();
    black_box(compile(&mesh, &mut interner));
    for n in 1..=times {
        world.apply(updates(&policy(7, n as usize, SOURCE)));
        mesh = world.resolve(&Settings::default());
        measured(1, |_| {
            black_box(compile(&mesh, &mut interner).rows.len());
        });
    }
}

fn read(times: u64) {
    let text = text(2000);
    measured(times, |_| {
        black_box(updates(&text).len());
    });
}

fn write_headers(times: u64) {
    let client = "10.244.1.7:41000".parse().expect("an address");
    let target = "10.244.2.9:8080".parse().expect("an address");
    measured(times, |_| {
        let pairs = [
            ("k8s.cluster.name", "Kubernetes"),
            ("k8s.namespace.name", "checkout"),
            ("k8s.deployment.name", "checkout-frontend"),
            ("service.name", "checkout"),
            ("service.version", "v1.2.3"),
        ];
        let host = Some("orders.shop.svc.cluster.local");
        black_box((authority(target), forwarded(client, host), baggage(pairs)));
    });
}

fn read_headers(times: u64) {
    let peer = "10.244.1.7".parse().expect("an address");
    measured(times, |_| {
        let target: Option<SocketAddr> = parse_authority(black_box("10.244.2.9:8080"));
        let header = black_box("for=\"10.244.1.7:41000\";host=orders.shop.svc.cluster.local");
        black_box((target, client_port(header, peer)));
    });
}

/// Two ends of an HBONE connection over a pipe in memory. The server sends back what it gets.
fn connection() -> (Runtime, SendRequest<Bytes>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let send = runtime.block_on(async {
        let (here, there) = tokio::io::duplex(4 << 20);
        tokio::spawn(async move {
            let mut server = HboneConfig::default().server(there).await.expect("a server");
            while let Some(Ok((request, respond))) = server.accept().await {
                tokio::spawn(send_back(request.into_body(), respond));
            }
        });
        let (send, connection) = HboneConfig::default().client(here).await.expect("a client");
        tokio::spawn(connection);
        send
    });
    (runtime, send)
}

async fn send_back(mut recv: RecvStream, mut respond: SendResponse<Bytes>) {
    let mut send = respond.send_response(Response::new(()), false).expect("an answer");
    while let Some(Ok(data)) = recv.data().await {
        recv.flow_control().release_capacity(data.len()).expect("a window");
        // The last one is empty. An empty one that is not the last is what h2 takes few of.
        if !data.is_empty() {
            send.send_data(data, false).expect("a tunnel");
        }
    }
    send.send_data(Bytes::new(), true).expect("a tunnel");
}

async fn tunnel(send: &SendRequest<Bytes>, client: u64) -> (SendStream<Bytes>, RecvStream) {
    let target = "10.244.2.9:8080".parse().expect("an address");
    let client = SocketAddr::from(([10, 244, 1, 7], 40_000 + (client % 20_000) as u16));
    let request = Request::builder().method(Method::CONNECT).uri(authority(target));
    let request = request.header(FORWARDED, forwarded(client, None)).body(()).expect("a request");
    let mut send = send.clone().ready().await.expect("a connection");
    let (response, send) = send.send_request(request, false).expect("a request");
    (send, response.await.expect("an answer").into_body())
}

fn open_tunnel(times: u64) {
    let (runtime, send) = connection();
    measured(times, |n| {
        runtime.block_on(async {
            let (mut send, mut recv) = tunnel(&send, n).await;
            send.send_data(Bytes::new(), true).expect("a tunnel");
            while let Some(Ok(data)) = recv.data().await {
                black_box(data);
            }
        });
    });
}

fn echo(size: usize, times: u64) {
    let (runtime, send) = connection();
    let (mut send, mut recv) = runtime.block_on(tunnel(&send, 0));
    let data = Bytes::from(vec![7; size]);
    measured(times, |_| {
        runtime.block_on(async {
            send.send_data(data.clone(), false).expect("a tunnel");
            let mut missing = size;
            while missing > 0 {
                let data = recv.data().await.expect("an answer").expect("a tunnel");
                recv.flow_control().release_capacity(data.len()).expect("a window");
                missing -= data.len();
            }
        });
    });
}

const SOURCE: &str = "principals: [cluster.local/ns/ns3/sa/sa3]";

fn text(policies: usize) -> String {
    (0..policies).map(|n| policy(n, 0, SOURCE)).collect()
}

/// Policy `n`, with a port that `version` changes. The first 20 select all pods of their namespace.
fn policy(n: usize, version: usize, source: &str) -> String {
    let selector = format!("selector: {{matchLabels: {{app: app{}}}}}, ", n % APPS);
    let selector = if n < NAMESPACES { "" } else { &selector };
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{n}, namespace: ns{}}}\n\
         spec: {{{selector}rules: [{{from: [{{source: {{{source}}}}}], to: [{{operation: {{ports: [\"{}\"]}}}}]}}]}}\n",
        n % NAMESPACES,
        8000 + version,
    )
}

/// A mesh of 1000 workloads and the policies in `text`.
fn world(text: &str) -> (World, Mesh) {
    let mut all = String::new();
    for n in 0..NAMESPACES {
        let _ = write!(
            all,
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{n}, labels: {{istio.io/dataplane-mode: ambient}}}}\n"
        );
    }
    for n in 0..WORKLOADS {
        let _ = write!(
            all,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod{n}, namespace: ns{}, uid: uid-{n}, labels: {{app: app{}}}}}\n\
             spec: {{nodeName: n1, serviceAccountName: sa{}}}\nstatus: {{podIP: 10.64.{}.{}}}\n",
            n % NAMESPACES,
            n / NAMESPACES % APPS,
            n % 20,
            n / 200,
            n % 200 + 2
        );
    }
    let mut world = World::default();
    world.apply(updates(&(all + text)));
    let mesh = world.resolve(&Settings::default());
    (world, mesh)
}

fn updates(text: &str) -> Vec<Update> {
    let objects = manifests::parse(Path::new("bench.yaml"), text.as_bytes()).expect("valid manifests");
    objects.into_iter().map(Update::Upsert).collect()
}
