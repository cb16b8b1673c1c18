use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_common::{Decision, Reason};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::proxy::{Side, Stage, TunnelFlow};
use crate::telemetry::flows::CAPACITY;

/// Names nobody.
struct Nameless;

impl Names for Nameless {
    fn workload(&self, _: IpAddr) -> Option<String> {
        None
    }
    fn owner(&self, _: IpAddr) -> Option<String> {
        None
    }
    fn service(&self, _: IpAddr) -> Option<String> {
        None
    }
    fn identity(&self, _: u32) -> Option<String> {
        None
    }
    fn policy(&self, _: u32) -> Option<String> {
        None
    }
    fn note(&self, _: u32) -> Option<String> {
        None
    }
}

struct Agent {
    flows: Arc<FlowLog>,
    log: LogControl,
    quits: Arc<AtomicU64>,
}

impl View for Agent {
    fn pending(&self) -> Vec<String> {
        Vec::new()
    }
    fn metrics(&self, format: Format) -> String {
        let samples = "metric 1\n".repeat(1000);
        if format == Format::OpenMetrics { samples + "# EOF\n" } else { samples }
    }
    fn flow_log(&self) -> Arc<FlowLog> {
        self.flows.clone()
    }
    fn open(&self, _: bool) -> Result<Vec<FlowRecord>, String> {
        Ok(self.flows.since(0, &Nameless))
    }
    fn names(&self) -> Arc<dyn Names + Send + Sync> {
        Arc::new(Nameless)
    }
    fn events_lost(&self) -> u64 {
        0
    }
    fn dump(&self) -> String {
        "{}".to_owned()
    }
    fn config_dump(&self) -> String {
        "{\"workloads\":[]}".to_owned()
    }
    fn quit(&self) {
        self.quits.fetch_add(1, Ordering::Relaxed);
    }
    fn explain(&self, from: &str, to: &str) -> Result<String, String> {
        if from.is_empty() { Err("nobody".to_owned()) } else { Ok(format!("{from} {to}")) }
    }
    fn log(&self) -> &LogControl {
        &self.log
    }
}

fn agent() -> Arc<Agent> {
    let log = LogControl::new("info", |_| Ok(()));
    Arc::new(Agent { flows: Arc::new(FlowLog::new("n1")), log, quits: Arc::default() })
}

/// A server on a socket of its own, and the log of flows behind it.
async fn served() -> (Arc<FlowLog>, PathBuf, tempfile::TempDir) {
    let agent = agent();
    let (path, dir) = serve_unix(agent.clone());
    (agent.flows.clone(), path, dir)
}

fn serve_unix(view: Arc<dyn View>) -> (PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let unix = socket::bind_unix(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = unix.accept().await {
            spawn_connection(stream, view.clone(), Audience::Operator);
        }
    });
    (path, dir)
}

/// A port as istioctl's, and what serves there.
async fn serve_port() -> (Arc<Agent>, SocketAddr) {
    let agent = agent();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept_tcp(listener, agent.clone(), Audience::Istioctl, CancellationToken::new()));
    (agent, address)
}

/// The whole answer to these bytes.
async fn ask_port(address: SocketAddr, request: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

/// The status and the body of the answer to these bytes.
async fn ask(path: &Path, request: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // A server that answers before it has read everything may have closed.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
}

async fn get(path: &Path, page: &str) -> (u16, String) {
    ask(path, format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes()).await
}

fn flow(port: u16) -> TunnelFlow {
    let end = |n, port| SocketAddr::from((Ipv4Addr::new(10, 0, 0, n), port));
    TunnelFlow {
        side: Side::Source,
        stage: Stage::Opened,
        client: end(1, port),
        requested: end(2, 80),
        target: end(2, 80),
        hop: None,
        source: None,
        destination: None,
        decision: Decision::allow(Reason::Allowed),
        error: String::new(),
    }
}

#[tokio::test]
async fn only_root_may_ask() {
    let (_, path, _dir) = served().await;
    let meta = std::fs::metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn a_bad_request_is_answered_and_the_next_one_too() {
    let (_, path, _dir) = served().await;
    let long = "x".repeat(100_000);
    for (request, status) in [
        ("GET /nothing HTTP/1.0\r\n\r\n".to_owned(), 404),
        ("DELETE /dump HTTP/1.0\r\n\r\n".to_owned(), 405),
        ("POST /flows HTTP/1.0\r\n\r\n".to_owned(), 405),
        ("PUT /log HTTP/1.0\r\n\r\n".to_owned(), 405),
        ("GET /quitquitquit HTTP/1.0\r\n\r\n".to_owned(), 405),
        ("GET /logging?level=debug HTTP/1.0\r\n\r\n".to_owned(), 405),
        ("POST /logging?level=loud HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("POST /config_dump HTTP/1.0\r\n\r\n".to_owned(), 405),
        ("GET /debug/pprof/heap HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /debug/pprof/profile?seconds=0 HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /debug/pprof/profile?seconds=301 HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /log?filter=debug HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("POST /log?filter=loud HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /explain?to=%zz HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /flows?since=x HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /flows?form=shop HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /flows?verdict=no HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), 400),
        (format!("GET /{long} HTTP/1.0\r\n\r\n"), 431),
        (format!("GET /dump HTTP/1.0\r\nx: {long}\r\n\r\n"), 431),
        ("GET /dump HTTP/1.0\r\n\r\n".to_owned(), 200),
    ] {
        let (answered, body) = ask(&path, request.as_bytes()).await;
        let shown: String = request.chars().take(60).collect();
        assert!(answered == status || (status == 431 && answered == 414), "{shown:?}: {answered} {body}");
    }
}

#[tokio::test]
async fn the_log_is_shown_changed_and_reset() {
    let (_, path, _dir) = served().await;
    assert_eq!(get(&path, "/log").await, (200, "{\"filter\":\"info\",\"start\":\"info\"}\n".to_owned()));
    let (status, body) = ask(&path, b"POST /log?filter=culvert=trace HTTP/1.0\r\n\r\n").await;
    assert_eq!((status, body.contains("info,culvert=trace")), (200, true), "{body}");
    assert!(get(&path, "/log").await.1.contains("info,culvert=trace"));
    assert_eq!(ask(&path, b"POST /log?reset HTTP/1.0\r\n\r\n").await.0, 200);
    assert_eq!(get(&path, "/log").await.1, "{\"filter\":\"info\",\"start\":\"info\"}\n");
}

#[tokio::test]
async fn records_are_filtered_and_the_last_ones_counted_after_that() {
    let (flows, path, _dir) = served().await;
    for port in 1..=2000 {
        flows.tunnel(TunnelFlow { client: ([10, 0, 0, (port % 2) as u8], port).into(), ..flow(port) });
    }
    let ports = |body: String| -> Vec<u64> {
        let value = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        body.lines().map(|line| value(line)["source"]["port"].as_u64().unwrap()).collect()
    };
    assert_eq!(ports(get(&path, "/flows").await.1).len(), 2000);
    assert_eq!(ports(get(&path, "/flows?since=1990").await.1), (1991..=2000).collect::<Vec<_>>());
    assert_eq!(ports(get(&path, "/flows?from=10.0.0.1&last=3").await.1), [1995, 1997, 1999]);
    assert_eq!(ports(get(&path, "/flows?from=10.0.0.1&last=0").await.1), Vec::<u64>::new());
    assert_eq!(ports(get(&path, "/flows?verdict=refused").await.1), Vec::<u64>::new());
}

#[tokio::test]
async fn a_follower_gets_every_record_in_order() {
    let (flows, path, _dir) = served().await;
    let total = 20_000_u64;
    flows.tunnel(flow(1));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /flows?follow HTTP/1.0\r\n\r\n").await.unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        for _ in 1..total {
            flows.tunnel(flow(1));
        }
    });
    let mut lines = BufReader::new(stream).lines();
    while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
    for seq in 1..=total {
        let line = lines.next_line().await.unwrap().unwrap();
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record["seq"], seq, "{line}");
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_follower_that_is_too_slow_is_told_how_many_it_missed() {
    let (flows, path, _dir) = served().await;
    flows.tunnel(flow(1));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /flows?follow HTTP/1.0\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
    let total = 3 * CAPACITY as u64;
    for _ in 1..total {
        flows.tunnel(flow(1));
    }
    let (mut seen, mut lost) = (BTreeSet::new(), 0);
    while seen.last() != Some(&total) {
        let line = lines.next_line().await.unwrap().unwrap();
        let record: Value = serde_json::from_str(&line).unwrap();
        match record["lost"].as_u64() {
            Some(more) => {
                assert!(record["reason"].as_str().unwrap().contains("read too slowly"), "{line}");
                lost += more;
            }
            None => {
                let seq = record["seq"].as_u64().unwrap();
                assert!(seen.last().is_none_or(|last| *last < seq), "{line}");
                seen.insert(seq);
            }
        }
    }
    assert!(lost > 0);
    assert_eq!(seen.len() as u64 + lost, total);
}

#[tokio::test]
async fn the_admin_port_serves_what_istioctl_asks_and_nothing_that_harms() {
    let (agent, address) = serve_port().await;
    let host = format!("Host: localhost:{}\r\n", address.port());
    let status = async |line: &str, headers: &str| {
        let answer = ask_port(address, &format!("{line} HTTP/1.0\r\n{headers}\r\n")).await;
        let answer = String::from_utf8(answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap(), answer)
    };
    for line in ["GET /", "GET /config_dump", "POST /logging", "POST /logging?level=debug&reset"] {
        assert_eq!(status(line, &host).await.0, 200, "{line}");
    }
    assert!(status("POST /logging?level=access:debug,info", &host).await.1.ends_with("access=debug,info\n"));
    for line in [
        "POST /quitquitquit",
        "GET /debug/pprof/profile?seconds=1",
        "GET /dump",
        "GET /flows",
        "GET /log",
        "GET /metrics",
        "GET /healthz/ready",
        "GET /nothing",
    ] {
        assert_eq!(status(line, &host).await.0, 404, "{line}");
    }
    assert!(status("POST /quitquitquit", &host).await.1.contains("unix socket only"));
    assert_eq!(agent.quits.load(Ordering::Relaxed), 0);
    for (line, headers) in [
        ("GET /config_dump", "Host: evil.example\r\n"),
        ("GET /config_dump", ""),
        ("POST /logging?level=off", "Host: localhost\r\nOrigin: http://evil.example\r\n"),
    ] {
        assert_eq!(status(line, headers).await.0, 403, "{line} {headers}");
    }
    assert_eq!(agent.log.state().filter, "access=debug,info");
}

#[tokio::test]
async fn quit_is_asked_for_by_post_and_again_without_harm() {
    let agent = agent();
    let (path, _dir) = serve_unix(agent.clone());
    for times in 1..=2 {
        let (status, body) = ask(&path, b"POST /quitquitquit HTTP/1.0\r\n\r\n").await;
        assert_eq!((status, body.starts_with("stopping")), (200, true));
        assert_eq!(agent.quits.load(Ordering::Relaxed), times);
    }
}

#[tokio::test]
async fn metrics_come_in_the_form_and_the_coding_that_were_asked_for() {
    let (path, _dir) = serve_unix(agent());
    let get = async |headers: &str| {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(format!("GET /metrics HTTP/1.0\r\n{headers}\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        (String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase(), answer[end + 4..].to_vec())
    };
    let (head, plain) = get("").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(!head.contains("content-encoding"), "{head}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1\r\nAccept-Encoding: gzip\r\n";
    let (head, packed) = get(accept).await;
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    assert!(
        head.contains("content-encoding: gzip") && head.contains("vary: accept, accept-encoding"),
        "{head}"
    );
    let mut text = String::new();
    io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut text).unwrap();
    assert_eq!(text.into_bytes(), [&plain[..], b"# EOF\n"].concat());
}

#[tokio::test]
async fn a_profile_ends_with_its_reader_and_a_second_one_is_turned_away() {
    let _alone = crate::profile::tests::ALONE.lock().await;
    let (path, _dir) = serve_unix(agent());
    let mut first = UnixStream::connect(&path).await.unwrap();
    first.write_all(b"GET /debug/pprof/profile?seconds=300 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let second =
        async || ask(&path, b"GET /debug/pprof/profile?seconds=1&format=folded HTTP/1.0\r\n\r\n").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while second().await.0 != 503 {
        assert!(tokio::time::Instant::now() < deadline, "nobody is turned away");
    }
    drop(first);
    while second().await.0 != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the first profile goes on");
    }
}

#[tokio::test]
async fn what_is_open_is_told_as_records_and_filtered() {
    let (flows, path, _dir) = served().await;
    flows.tunnel(flow(1));
    flows.tunnel(flow(2));
    for (page, count) in [("open=all", 2), ("open=tunnel&from=10.0.0.1", 2), ("open=all&from=10.0.0.3", 0)] {
        let (status, body) = get(&path, &format!("/flows?{page}")).await;
        assert_eq!((status, body.lines().count()), (200, count), "{page}: {body}");
        for line in body.lines() {
            let record: FlowRecord = serde_json::from_str(line).unwrap();
            assert_eq!(record.stage, "opened");
        }
    }
    for (page, says) in
        [("open=some", "write all or tunnel"), ("open=all&follow", "leave open or follow out")]
    {
        let (status, body) = get(&path, &format!("/flows?{page}")).await;
        assert!(status == 400 && body.contains(says), "{page}: {status} {body}");
    }
}
