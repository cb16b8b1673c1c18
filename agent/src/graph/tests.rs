use super::*;
use crate::telemetry::flows::{End, FlowRecord, Requested};
use crate::telemetry::pairs::By;

fn record(at: &str, from: &str, to: &str, path: &'static str, refused: bool) -> FlowRecord {
    let end = |workload: &str, address: &str, port| End {
        address: address.parse().unwrap(),
        port,
        workload: workload.to_owned(),
        owner: workload.to_owned(),
        identity: String::new(),
    };
    FlowRecord {
        seq: 1,
        time: format!("2026-01-02T03:04:{at}Z"),
        node: "n1".to_owned(),
        stage: if refused { "refused" } else { "opened" },
        verdict: if refused { "refused" } else { "allowed" },
        path,
        side: "source",
        reason: if refused { "denied by policy" } else { "no policy applies" },
        policy: if refused { "shop/no".to_owned() } else { String::new() },
        note: String::new(),
        error: String::new(),
        source: end(from, "10.0.0.1", 1000 + at.bytes().map(u16::from).sum::<u16>()),
        destination: end(to, "10.0.0.2", 80),
        requested: Requested { address: "10.0.0.9".parse().unwrap(), port: 80, service: String::new() },
        bytes_sent: 0,
        bytes_received: 0,
        duration_ms: 0,
    }
}

fn pairs(records: &[FlowRecord]) -> Pairs {
    let mut pairs = Pairs::new(By::Workload);
    records.iter().for_each(|record| pairs.add(record).unwrap());
    pairs
}

fn some() -> Pairs {
    pairs(&[
        record("01", "test/curl", "shop/web", "direct", false),
        record("02", "test/curl", "shop/web", "direct", true),
        record("03", "test/curl", "shop/web", "direct", true),
        record("04", "", "shop/web", "passthrough", false),
        record("05", "shop/web", "", "passthrough", false),
        record("06", "shop/web", "shop/db", "tunnel", false),
    ])
}

#[test]
fn the_busiest_edges_are_drawn_and_the_rest_is_told() {
    let pairs = some();
    let selection = Selection::new(&pairs, 1);
    assert!(selection.edges.iter().all(|edge| edge.refused) && selection.edges.len() == 1);
    assert_eq!(
        (selection.left_out.edges, selection.left_out.connections, selection.left_out.refused),
        (4, 4, 0)
    );
    let notices = selection.picture().notices;
    assert_eq!(notices, ["4 more edges are left out (4 connections, 0 refused): --top shows more"]);
    assert!(Selection::new(&pairs, 5).picture().notices.is_empty());
}

#[test]
fn who_is_no_workload_is_outside_once_for_each_direction() {
    let pairs = some();
    let picture = Selection::new(&pairs, 60).picture();
    let outside: Vec<_> = picture.nodes.iter().filter(|node| node.shape == Shape::Outside).collect();
    assert_eq!(outside.iter().map(|node| node.detail.as_str()).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
    assert!(outside.iter().all(|node| node.group.is_none()));
    assert_eq!(picture.groups, ["shop", "test"]);
}

#[test]
fn every_form_is_the_same_each_time() {
    for form in Form::value_variants() {
        let once = draw(&some(), 60, *form).unwrap();
        assert_eq!(once, draw(&some(), 60, *form).unwrap());
    }
}

#[test]
fn mermaid_and_dot_keep_names_apart_from_their_own_words() {
    let pairs = pairs(&[record("01", "x\"];y/a\n-->\\N&lt;", "end/`#quot;`", "direct", true)]);
    let mermaid = draw(&pairs, 60, Form::Mermaid).unwrap();
    assert!(mermaid.contains("[\"a\u{fffd}--#62;#92;N#38;lt#59;\"]"), "{mermaid}");
    assert!(mermaid.contains("subgraph g1[\"x#34;#93;#59;y\"]"), "{mermaid}");
    assert!(mermaid.contains("[\"#96;#35;quot#59;#96;\"]"), "{mermaid}");
    let dot = draw(&pairs, 60, Form::Dot).unwrap();
    assert!(dot.contains("label=\"x\\\"];y\""), "{dot}");
    assert!(dot.contains("label=\"a\u{fffd}-->\\\\N&amp;lt;\""), "{dot}");
}

#[test]
fn figures_are_short() {
    for (value, text) in [
        (0.0, "0"),
        (0.123, "0.12"),
        (9.99, "9.99"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (12345.6, "12346"),
    ] {
        assert_eq!(words::number(value), text);
    }
    for (bytes, text) in [
        (0.0, "0 B"),
        (999.0, "999 B"),
        (999.6, "1.00 kB"),
        (1234.0, "1.23 kB"),
        (5e6, "5.00 MB"),
        (2e9, "2.00 GB"),
        (3e12, "3.00 TB"),
        (4e15, "4000 TB"),
    ] {
        assert_eq!(words::size(bytes), text);
    }
}
