//! `culvert graph` and `culvert top` of the real binary, over saved flow records.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn record(seq: u64, stage: &str, side: &str, path: &str, from: (&str, u16), to: &str) -> Value {
    let verdict = if matches!(stage, "opened" | "closed") { "allowed" } else { "refused" };
    let (workload, port) = from;
    let address = |workload: &str| if workload.is_empty() { "192.0.2.7" } else { "10.244.1.2" };
    json!({
        "seq": seq, "time": format!("2026-01-02T03:04:{:02}.5Z", seq), "node": "n1", "stage": stage, "verdict": verdict,
        "path": path, "side": side, "reason": if verdict == "refused" { "denied by policy" } else { "no policy applies" },
        "policy": if verdict == "refused" { "shop/no-mallory" } else { "" }, "note": "", "error": "",
        "source": {"address": address(workload), "port": port, "workload": workload, "owner": workload.trim_end_matches("-1"), "identity": ""},
        "destination": {"address": "10.244.1.3", "port": 9000, "workload": to, "owner": to, "identity": ""},
        "requested": {"address": "10.96.0.1", "port": 80, "service": "shop/web"},
        "bytes_sent": if stage == "closed" { 1000 } else { 0 }, "bytes_received": if stage == "closed" { 9000 } else { 0 }, "duration_ms": 0
    })
}

/// Both ends tell of the first connection; one of the second is a tunnel, one comes from outside, one is refused, and 8192 are missing.
fn saved() -> String {
    let lines = [
        record(1, "opened", "source", "direct", ("test/curl-1", 40000), "shop/web"),
        record(1, "opened", "destination", "direct", ("test/curl-1", 40000), "shop/web"),
        record(2, "closed", "source", "direct", ("test/curl-1", 40000), "shop/web"),
        record(2, "closed", "destination", "direct", ("test/curl-1", 40000), "shop/web"),
        record(3, "opened", "destination", "tunnel", ("test/far", 40001), "shop/web"),
        record(4, "opened", "destination", "passthrough", ("", 40002), "shop/web"),
        json!({"lost": 8192, "reason": "the agent read the kernel's events too slowly"}),
        record(11, "refused", "source", "direct", ("test/mallory", 0), "shop/web"),
    ];
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn culvert(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_culvert"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(args: &[&str], input: &str) -> String {
    let output = culvert(args, input);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_mermaid_flowchart() {
    let text = r##"---
title: "Who talked to whom: 3 connections, 1 refused, 10.0 kB, 2026-01-02 03:04:01 to 03:04:11 UTC"
---
flowchart LR
  subgraph g0["shop"]
    n1["web"]
  end
  subgraph g1["test"]
    n2["curl"]
    n3["far"]
    n4["mallory"]
  end
  n0(["outside the mesh<br/>192.0.2.7"])
  n0 -.->|"1 · 0.10/s"| n1
  n2 -->|"1 · 0.10/s · 1.00 kB/s"| n1
  n3 ==>|"1 · 0.10/s"| n1
  n4 --x|"1 refused · shop/no-mallory"| n1
  note0["8192 flow records are missing: they came faster than they were read"]:::note
  linkStyle 3 stroke:#c62828,color:#c62828,stroke-dasharray:8 4
  classDef note fill:none,stroke:none
"##;
    assert_eq!(stdout(&["graph", "--file", "-", "-o", "mermaid"], &saved()), text);
}

#[test]
fn a_graph_for_graphviz() {
    let text = stdout(&["graph", "--file", "-", "-o", "dot", "--top", "2", "--by", "namespace"], &saved());
    let expected = r##"digraph flows {
  rankdir=LR;
  label="3 connections, 1 refused, 10.0 kB, 2026-01-02 03:04:01 to 03:04:11 UTC\l2 more edges are left out (1 connections, 1 refused): --top shows more\l8192 flow records are missing: they came faster than they were read\l";
  node [shape=box, style=rounded, fontname="sans-serif"];
  edge [fontname="sans-serif", fontsize=10];
  n0 [label="outside the mesh\n192.0.2.7", tooltip="outside\n192.0.2.7", style="rounded,dashed"];
  n1 [label="shop", tooltip="shop/"];
  n2 [label="test", tooltip="test/"];
  n0 -> n1 [label="1 · 0.10/s", tooltip="outside -> shop/ (passthrough)\n1 connections, 1 open\n0 B sent, 0 B received\nto port 9000\nfor shop/web\n2026-01-02T03:04:04.5Z to 2026-01-02T03:04:04.5Z", color="#7a5d10", style=dotted];
  n2 -> n1 [label="1 · 0.10/s · 1.00 kB/s", tooltip="test/ -> shop/ (direct)\n1 connections, 0 open\n1.00 kB sent, 9.00 kB received\nto port 9000\nfor shop/web\n2026-01-02T03:04:01.5Z to 2026-01-02T03:04:11.5Z", color="#33628f"];
}
"##;
    assert_eq!(text, expected);
}

#[test]
fn every_figure_as_json() {
    let text =
        stdout(&["graph", "--file", "-", "-o", "json", "--from", "test/", "--verdict", "allowed"], &saved());
    let expected = json!({
        "by": "workload", "first": "2026-01-02T03:04:01.5Z", "last": "2026-01-02T03:04:03.5Z", "seconds": 2.0, "records": 5, "lost": 8192,
        "nodes": [
            {"id": "shop/web", "kind": "workload", "namespace": "shop", "name": "web", "addresses": []},
            {"id": "test/curl", "kind": "workload", "namespace": "test", "name": "curl", "addresses": []},
            {"id": "test/far", "kind": "workload", "namespace": "test", "name": "far", "addresses": []},
        ],
        "edges": [
            {"from": "test/curl", "to": "shop/web", "path": "direct", "verdict": "allowed", "connections": 1, "connections_per_second": 0.5,
             "open": 0, "failed": 0, "cut": [], "bytes_sent": 1000, "bytes_received": 9000, "bytes_per_second": 5000.0,
             "ports": [9000], "services": ["shop/web"], "first": "2026-01-02T03:04:01.5Z", "last": "2026-01-02T03:04:02.5Z"},
            {"from": "test/far", "to": "shop/web", "path": "tunnel", "verdict": "allowed", "connections": 1, "connections_per_second": 0.5,
             "open": 1, "failed": 0, "cut": [], "bytes_sent": 0, "bytes_received": 0, "bytes_per_second": 0.0,
             "ports": [9000], "services": ["shop/web"], "first": "2026-01-02T03:04:03.5Z", "last": "2026-01-02T03:04:03.5Z"},
        ],
        "left_out": {"edges": 0, "connections": 0, "refused": 0},
    });
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
}

#[test]
fn a_table_of_the_busiest() {
    let text = "\
FROM           TO         PATH          CONN/S   OPEN   REFUSED   BYTES/S   LAST
outside        shop/web   passthrough   0.10     1      0         0 B       7s
test/far       shop/web   tunnel        0.10     1      0         0 B       8s
test/curl      shop/web   direct        0        0      0         1.00 kB   9s
test/mallory   shop/web   direct        0        0      1         0 B       0s
";
    let mut lines: Vec<&str> = text.lines().collect();
    // Refusals come before what is merely idle.
    lines.swap(3, 4);
    let expected = lines.join("\n") + "\n";
    assert_eq!(stdout(&["top", "--file", "-"], &saved()), expected);
    let sorted =
        stdout(&["top", "--once", "--file", "-", "--sort", "bytes", "--rows", "1", "--by", "pod"], &saved());
    assert!(sorted.lines().count() == 2 && sorted.contains("test/curl-1"), "{sorted}");
}

#[test]
fn several_files_make_one_picture_in_the_form_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, records: &[Value]| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, records.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        path
    };
    // The second file has the earlier records: in the order of time the connection is one.
    let end =
        write("server.json", &[record(2, "opened", "destination", "tunnel", ("test/far", 7), "shop/web")]);
    let start = write("client.json", &[record(1, "opened", "source", "tunnel", ("test/far", 7), "shop/web")]);
    for (name, begins) in
        [("x.svg", "<svg "), ("x.mmd", "---\ntitle"), ("x.dot", "digraph "), ("x.json", "{"), ("x", "<svg ")]
    {
        let picture = dir.path().join(name);
        let [end, start, out] = [&end, &start, &picture].map(|path| path.to_str().unwrap());
        let nothing = stdout(&["graph", "-f", end, "--file", start, "-O", out], "");
        assert!(nothing.is_empty(), "{nothing}");
        let text = std::fs::read_to_string(&picture).unwrap();
        assert!(
            text.starts_with(begins) && (name == "x.json" || text.contains("1 connections, 0 refused")),
            "{name}: {text}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_named_with_a_remedy() {
    for (args, input, code, says) in [
        (
            &["graph", "--file", "-"][..],
            "{\"seq\":1}\n",
            1,
            "standard input:1: no flow record: write them with `culvert flows -o json`",
        ),
        (&["top", "--file", "-"], "\nnonsense\n", 1, "standard input:2: no flow record"),
        (&["graph", "--file", "/nonexistent"], "", 1, "/nonexistent: No such file"),
        (&["graph", "--file", "-", "-O", "/nonexistent/x.svg"], "", 1, "cannot write /nonexistent/x.svg"),
        (&["graph", "--top", "0"], "", 2, "write a number from 1 to 1000"),
        (&["top", "--interval", "0"], "", 2, "write seconds, from 0.2 to 3600"),
        (&["top", "--once", "--count", "2"], "", 2, "cannot be used with"),
        (
            &["top", "--once", "--instance", "nobody"],
            "",
            1,
            "cannot reach the agent at /run/culvert/nobody/admin.sock",
        ),
    ] {
        let output = culvert(args, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
}
