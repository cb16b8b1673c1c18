use proptest::prelude::*;

use super::*;
use crate::telemetry::flows::Requested;

const START: i64 = 1_767_323_045_000;

fn end(address: &str, port: u16, workload: &str) -> End {
    let (namespace, name) = workload.split_once('/').unwrap_or(("", ""));
    let identity =
        if name.is_empty() { String::new() } else { format!("spiffe://td/ns/{namespace}/sa/of-{name}") };
    End {
        address: address.parse().unwrap(),
        port,
        workload: workload.to_owned(),
        owner: workload.trim_end_matches(char::is_numeric).trim_end_matches('-').to_owned(),
        identity,
    }
}

/// `at` milliseconds after the start: what `side` tells of the connection of `port`.
fn record(at: i64, stage: Word, side: Word, port: u16) -> FlowRecord {
    FlowRecord {
        seq: 0,
        time: Timestamp::from_millisecond(START + at).unwrap().to_string(),
        node: "n1".to_owned(),
        stage,
        verdict: if matches!(stage, "opened" | "closed") { "allowed" } else { "refused" },
        path: "direct",
        side,
        reason: "no policy applies",
        policy: String::new(),
        note: String::new(),
        error: String::new(),
        source: end("10.244.1.2", port, "test/curl"),
        destination: end("10.244.1.3", 9000, "shop/web-1"),
        requested: Requested {
            address: "10.96.0.1".parse().unwrap(),
            port: 80,
            service: "shop/web".to_owned(),
        },
        bytes_sent: if stage == "closed" { 10 } else { 0 },
        bytes_received: if stage == "closed" { 100 } else { 0 },
        duration_ms: 0,
    }
}

fn sum(records: &[FlowRecord]) -> Pairs {
    let mut pairs = Pairs::new(By::Workload);
    records.iter().for_each(|record| pairs.add(record).unwrap());
    pairs
}

fn only(pairs: &Pairs) -> &Pair {
    assert_eq!(pairs.iter().count(), 1, "{pairs:?}");
    pairs.iter().next().unwrap().1
}

fn refused(by: &str) -> Why {
    Why { reason: "no policy applies", policy: by.to_owned() }
}

#[test]
fn a_connection_told_by_both_ends_is_one() {
    let all = [
        record(0, "opened", "source", 1),
        record(0, "opened", "destination", 1),
        record(5, "closed", "source", 1),
        record(6, "closed", "destination", 1),
    ];
    for until in 1..=4 {
        let pairs = sum(&all[..until]);
        let pair = only(&pairs);
        assert_eq!((pair.connections, pair.open), (1, u64::from(until < 3)), "{until}");
        assert_eq!(pair.bytes_sent + pair.bytes_received, if until < 3 { 0 } else { 110 });
    }
    let pairs = sum(&all);
    let (key, pair) = pairs.iter().next().unwrap();
    assert_eq!(
        (key.from.full().as_str(), key.to.full().as_str(), key.path),
        ("test/curl", "shop/web", "direct")
    );
    assert_eq!(pair.ports, [9000].into());
    assert_eq!(pair.services, ["shop/web".to_owned()].into());
    // The slower end tells after the faster one has closed.
    let late = [&all[1], &all[3], &all[0], &all[2]].map(Clone::clone);
    let pairs = sum(&late);
    assert_eq!((only(&pairs).connections, only(&pairs).open, only(&pairs).bytes_sent), (1, 0, 10));
}

#[test]
fn the_same_port_again_is_another_connection() {
    let pairs = sum(&[
        record(0, "opened", "source", 1),
        record(1, "closed", "source", 1),
        record(2, "opened", "source", 1),
        record(2, "opened", "destination", 1),
        record(3, "closed", "source", 1),
        record(3, "closed", "destination", 1),
        // Its end was lost.
        record(10, "opened", "source", 1),
        record(11, "opened", "source", 1),
    ]);
    assert_eq!((only(&pairs).connections, only(&pairs).open), (4, 1));
}

#[test]
fn segments_that_come_late_or_again_are_no_connections() {
    let pairs = sum(&[
        record(0, "opened", "destination", 1),
        record(900, "opened", "destination", 1),
        record(1000, "closed", "destination", 1),
        record(1100, "opened", "destination", 1),
        record(1200, "refused", "destination", 1),
    ]);
    assert_eq!((only(&pairs).connections, only(&pairs).open, only(&pairs).refusals()), (1, 0, 0));
    let again = sum(&[
        record(0, "opened", "destination", 1),
        record(1, "closed", "destination", 1),
        record(10_000, "opened", "destination", 1),
    ]);
    assert_eq!((only(&again).connections, only(&again).open), (2, 1));
}

#[test]
fn what_either_end_refuses_is_refused_once_with_the_better_reason() {
    let by = |policy: &str, record: FlowRecord| FlowRecord { policy: policy.to_owned(), ..record };
    // connect() has no port to tell.
    let pairs = sum(&[record(0, "refused", "source", 0), record(0, "refused", "source", 0)]);
    assert_eq!((only(&pairs).refusals(), only(&pairs).connections), (2, 0));
    let pairs = sum(&[
        record(0, "opened", "source", 1),
        by("shop/no", record(0, "refused", "destination", 1)),
        record(1, "closed", "source", 1),
    ]);
    assert_eq!((only(&pairs).refusals(), only(&pairs).connections, only(&pairs).open), (1, 0, 0));
    let tunnel = |record| FlowRecord { path: "tunnel", ..record };
    let pairs = sum(&[
        tunnel(record(0, "refused", "source", 1)),
        tunnel(by("shop/no", record(0, "refused", "destination", 1))),
        tunnel(by("shop/no", record(1, "refused", "source", 1))),
    ]);
    assert_eq!(only(&pairs).refused, [(refused("shop/no"), 2)].into());
}

#[test]
fn a_cut_connection_was_let_in_and_did_not_fail() {
    let reset = |record| FlowRecord { error: "reset".to_owned(), ..record };
    let pairs = sum(&[
        record(0, "opened", "source", 1),
        record(0, "opened", "destination", 1),
        reset(record(9, "closed", "source", 1)),
        record(9, "closed", "destination", 1),
        record(9, "ended", "destination", 1),
    ]);
    let pair = only(&pairs);
    assert_eq!((pair.connections, pair.failed, pair.open, pair.refusals()), (1, 0, 0, 0));
    assert_eq!(pair.cut, [(refused(""), 1)].into());
    let pairs = sum(&[record(0, "opened", "source", 2), reset(record(9, "closed", "source", 2))]);
    assert_eq!((only(&pairs).failed, only(&pairs).cut.len()), (1, 0));
}

#[test]
fn what_is_open_already_is_found_and_its_bytes_are_live() {
    let so_far = |record, bytes_sent| FlowRecord { bytes_sent, path: "tunnel", ..record };
    let open = |bytes| so_far(record(0, "opened", "destination", 1), bytes);
    let mut pairs = Pairs::new(By::Workload);
    pairs.is_open(&open(1000), START);
    assert_eq!((only(&pairs).connections, only(&pairs).open, only(&pairs).bytes_sent), (1, 1, 0));
    // The record of its opening was behind.
    pairs.add(&so_far(record(10, "opened", "destination", 1), 0)).unwrap();
    assert_eq!((only(&pairs).connections, only(&pairs).open), (1, 1));
    pairs.is_open(&open(1500), START + 1000);
    assert_eq!((only(&pairs).connections, only(&pairs).bytes_sent), (1, 500));
    assert_eq!(only(&pairs).rates(START + 1000, 10).bytes, 50.0);
    pairs.add(&so_far(record(2000, "closed", "destination", 1), 1800)).unwrap();
    assert_eq!((only(&pairs).open, only(&pairs).bytes_sent), (0, 800));
    // An answer that was on its way.
    pairs.is_open(&open(1700), START + 2100);
    assert_eq!((only(&pairs).connections, only(&pairs).open, only(&pairs).bytes_sent), (1, 0, 800));
    pairs.forget_before(START + 2101);
    assert_eq!(pairs.iter().count(), 0);
}

#[test]
fn rates_are_of_the_last_seconds() {
    let records: Vec<_> = (0..200).map(|n| record(n * 100, "opened", "source", 1000 + n as u16)).collect();
    let pairs = sum(&records);
    let last = START + 19_900;
    assert_eq!(only(&pairs).rates(last, 10).opened, 10.0);
    assert_eq!(only(&pairs).rates(last + 5_000, 10).opened, 5.0);
    assert_eq!(only(&pairs).rates(last + 10_000, 10), Rates::default());
    assert!(only(&pairs).past.len() <= 60);
}

#[test]
fn ends_are_named_as_asked() {
    let named = |by, change: fn(&mut FlowRecord)| {
        let mut record = record(0, "opened", "source", 1);
        change(&mut record);
        let mut pairs = Pairs::new(by);
        pairs.add(&record).unwrap();
        let (key, _) = pairs.iter().next().unwrap();
        format!("{} {}", key.from.full(), key.to.full())
    };
    assert_eq!(named(By::Workload, |_| {}), "test/curl shop/web");
    assert_eq!(named(By::Pod, |_| {}), "test/curl shop/web-1");
    assert_eq!(named(By::Namespace, |_| {}), "test/ shop/");
    assert_eq!(named(By::ServiceAccount, |_| {}), "test/of-curl shop/of-web-1");
    let nobody = |record: &mut FlowRecord| {
        record.source.workload.clear();
        record.destination = end("10.96.0.1", 80, "");
    };
    // A waypoint is asked for a service.
    assert_eq!(named(By::Workload, nobody), "outside shop/web");
    assert_eq!(named(By::Namespace, |record| record.source.owner.clear()), "test/ shop/");
}

#[derive(Clone, Debug)]
struct Case {
    refused: bool,
    by: u8,
    cut: bool,
    bytes: u64,
    length: i64,
}

fn case() -> impl Strategy<Value = Case> {
    (any::<bool>(), 1..=3_u8, any::<bool>(), 0..1000_u64, 0..5000_i64)
        .prop_map(|(refused, by, cut, bytes, length)| Case { refused, by, cut, bytes, length })
}

/// What the ends that `by` has (1 source, 2 destination, 3 both) tell of each connection, in the order of time.
fn told(cases: &[Case]) -> Vec<(i64, FlowRecord)> {
    let mut all = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let (at, port) = (n as i64 * 37, 1000 + n as u16);
        for side in ["source", "destination"]
            .into_iter()
            .filter(|side| case.by & if *side == "source" { 1 } else { 2 } != 0)
        {
            if case.refused {
                all.push((at, FlowRecord { path: "tunnel", ..record(at, "refused", side, port) }));
                continue;
            }
            all.push((at, record(at, "opened", side, port)));
            let end = at + case.length;
            all.push((end, FlowRecord { bytes_sent: case.bytes, ..record(end, "closed", side, port) }));
            if case.cut && (side == "destination" || case.by == 1) {
                all.push((end, record(end, "ended", side, port)));
            }
        }
    }
    all.sort_by_key(|(time, _)| *time);
    all
}

proptest! {
    #[test]
    fn counts_are_those_of_the_connections(cases in proptest::collection::vec(case(), 1..200)) {
        let records: Vec<_> = told(&cases).into_iter().map(|(_, record)| record).collect();
        let pairs = sum(&records);
        let total = |of: fn(&Pair) -> u64| pairs.iter().map(|(_, pair)| of(pair)).sum::<u64>();
        let count = |wanted: fn(&Case) -> bool| cases.iter().filter(|case| wanted(case)).count() as u64;
        prop_assert_eq!(pairs.records(), records.len() as u64);
        prop_assert_eq!(total(|pair| pair.connections), count(|case| !case.refused));
        prop_assert_eq!(total(Pair::refusals), count(|case| case.refused));
        prop_assert_eq!(total(|pair| pair.cut.values().sum()), count(|case| !case.refused && case.cut));
        prop_assert_eq!(total(|pair| pair.bytes_sent), cases.iter().filter(|case| !case.refused).map(|case| case.bytes).sum::<u64>());
        prop_assert_eq!(total(|pair| pair.open + pair.failed), 0);
    }

    #[test]
    fn a_record_is_read_as_it_was_written(cases in proptest::collection::vec(case(), 1..20)) {
        for (_, record) in told(&cases) {
            let text = serde_json::to_string(&record).unwrap();
            prop_assert_eq!(serde_json::from_str::<FlowRecord>(&text).unwrap(), record);
        }
    }
}
