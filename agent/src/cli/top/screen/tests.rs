use crossterm::event::KeyEvent;

use super::*;
use crate::telemetry::flows::{End, FlowRecord, Requested};
use crate::telemetry::pairs::By;

const NOW: i64 = 1_767_323_045_000;

fn record(n: u16, from: &str, stage: &'static str) -> FlowRecord {
    let end = |workload: &str, port| End {
        address: "10.0.0.1".parse().unwrap(),
        port,
        workload: workload.to_owned(),
        owner: workload.to_owned(),
        identity: String::new(),
    };
    FlowRecord {
        seq: u64::from(n),
        time: "2026-01-02T03:04:05Z".to_owned(),
        node: "n1".to_owned(),
        stage,
        verdict: if stage == "refused" { "refused" } else { "allowed" },
        path: "direct",
        side: "source",
        reason: "denied by policy",
        policy: String::new(),
        note: String::new(),
        error: String::new(),
        source: end(from, n),
        destination: end("shop/web", 80),
        requested: Requested { address: "10.0.0.1".parse().unwrap(), port: 80, service: String::new() },
        bytes_sent: 0,
        bytes_received: 0,
        duration_ms: 0,
    }
}

fn pairs() -> Pairs {
    let mut pairs = Pairs::new(By::Workload);
    for n in 0..30 {
        pairs.add(&record(n + 1, "test/curl", "opened")).unwrap();
    }
    for n in 0..3 {
        pairs.add(&record(n + 100, "test/mallory", "refused")).unwrap();
    }
    pairs
}

fn key(screen: &mut Screen, code: KeyCode) -> Asked {
    screen.handle(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn typed(screen: &mut Screen, text: &str) {
    text.chars().for_each(|c| {
        key(screen, KeyCode::Char(c));
    });
}

fn lines(screen: &Screen, room: (usize, usize)) -> Vec<String> {
    screen.lines(&pairs(), NOW, room, Style::none())
}

#[test]
fn the_busiest_is_first_and_keys_change_that() {
    let mut screen = Screen::new(Sort::Connections, None);
    let shown = lines(&screen, (110, 8));
    assert_eq!(
        shown,
        [
            "culvert top   3.00 conn/s   30 open   0.30 refused/s   0 B/s",
            "",
            "FROM                       TO                         PATH          CONN/S    OPEN  REFUSED    BYTES/S   LAST",
            "test/curl                  shop/web                   direct          3.00      30        0        0 B     0s",
            "test/mallory               shop/web                   direct             0       0        3        0 B     0s",
            "",
            "",
            "q quit   s sort [CONN/S]   p pause   / filter   rates of 10 s; bytes of direct and passthrough at their end",
        ]
    );
    key(&mut screen, KeyCode::Char('s'));
    key(&mut screen, KeyCode::Char('s'));
    let shown = lines(&screen, (110, 8));
    assert!(shown[3].starts_with("test/mallory") && shown[7].contains("s sort [REFUSED]"), "{shown:?}");
    for _ in 0..4 {
        key(&mut screen, KeyCode::Char('s'));
    }
    assert_eq!(lines(&screen, (110, 8)), lines(&Screen::new(Sort::Connections, None), (110, 8)), "all round");
}

#[test]
fn what_is_typed_filters_and_does_not_command() {
    let mut screen = Screen::new(Sort::Connections, None);
    typed(&mut screen, "/malq");
    key(&mut screen, KeyCode::Backspace);
    let shown = lines(&screen, (80, 6));
    assert!(shown[3].starts_with("test/mallory") && shown[4].is_empty(), "{shown:?}");
    assert!(shown[5].starts_with("filter: mal_"), "{shown:?}");
    key(&mut screen, KeyCode::Enter);
    assert!(lines(&screen, (80, 6))[5].contains("/ filter [mal]"));
    key(&mut screen, KeyCode::Esc);
    assert!(lines(&screen, (80, 6))[3].starts_with("test/curl"));
    assert!(!screen.is_paused());
    typed(&mut screen, "p");
    assert!(screen.is_paused() && lines(&screen, (80, 6))[0].ends_with("PAUSED"));
    assert_eq!(key(&mut screen, KeyCode::Char('q')), Asked::End);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(screen.handle(&Event::Key(interrupt)), Asked::End);
    assert_eq!(screen.handle(&Event::Resize(1, 1)), Asked::More);
}

#[test]
fn it_fits_whatever_room_there_is() {
    let screen = Screen::new(Sort::Connections, None);
    for width in [0, 1, 10, 40, 79, 200] {
        for height in [0, 1, 2, 3, 4, 5, 50] {
            let shown = lines(&screen, (width, height));
            assert_eq!(shown.len(), height.max(1), "{width} x {height}");
            assert!(shown.iter().all(|line| line.chars().count() <= width), "{width} x {height}: {shown:?}");
        }
    }
    assert!(lines(&screen, (90, 5))[4].starts_with("1 more rows"));
    assert!(lines(&Screen::new(Sort::Connections, Some(1)), (90, 50))[49].starts_with("1 more rows"));
}
