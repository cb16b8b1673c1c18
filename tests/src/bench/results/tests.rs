use super::*;

/// Three rounds of request/response and of streaming, IPv4; `tunnel` is what the tunnel reached of raw.
pub(crate) fn example(tunnel: f64) -> Results {
    let mut samples = Vec::new();
    let workloads = [
        Workload::Rr { size: 64, connections: 1 },
        Workload::Stream { write: 65536, flows: 1 },
        Workload::Connect { parallel: 1 },
    ];
    for (round, raw) in [(1, 10_000.0), (2, 12_000.0), (3, 8000.0)] {
        for workload in workloads {
            for (leg, share) in
                [(Leg::RawNear, 1.1), (Leg::Direct, 1.09), (Leg::RawFar, 1.0), (Leg::Tunnel, tunnel)]
            {
                samples.push(sample(round, workload, leg, raw * share));
            }
        }
    }
    samples.push(Sample {
        memory: Some(Memory { pss: 90 << 20, rss: 100 << 20 }),
        ..sample(1, Workload::Idle { connections: 2000 }, Leg::Tunnel, 31_000.0)
    });
    samples.push(Sample { second: Some(0.2), ..sample(1, Workload::First, Leg::Tunnel, 3.5) });
    Results {
        format: FORMAT,
        machine: Machine::example(),
        rounds: 3,
        duration_ms: 1000,
        pods: 0,
        policies: 0,
        peer: None,
        samples,
        agents: [Memory { pss: 40 << 20, rss: 60 << 20 }, Memory { pss: 44 << 20, rss: 64 << 20 }],
        problems: Vec::new(),
    }
}

fn sample(round: u32, workload: Workload, leg: Leg, value: f64) -> Sample {
    let latency = Latency { p50: 58.25, p99: 120.0, p999: 1500.0 };
    let carried = leg == Leg::Tunnel;
    Sample {
        round,
        family: Family::V4,
        workload,
        leg,
        value,
        second: None,
        latency: matches!(workload, Workload::Rr { .. } | Workload::Connect { .. }).then_some(latency),
        connections: 1,
        requests: 20_000,
        bytes: 2 << 30,
        failures: 0,
        processor: if carried { 1.0 } else { 0.0 },
        memory: None,
    }
}

#[test]
fn ratios_are_to_the_raw_leg_of_the_same_round() {
    let results = example(0.5);
    let rr = Workload::Rr { size: 64, connections: 1 };
    let row = results.row(Family::V4, rr, Leg::Tunnel).unwrap();
    assert_eq!(row.value, Spread { median: 5000.0, min: 4000.0, max: 6000.0 });
    // Rounds of another speed are none of the ratio's spread.
    assert_eq!(row.ratio, Some(Spread { median: 0.5, min: 0.5, max: 0.5 }));
    assert_eq!(row.cost, Some(0.5), "seconds for 10,000 requests");
    assert_eq!(results.row(Family::V4, rr, Leg::RawFar).unwrap().ratio, None);
    assert_eq!(results.row(Family::V4, rr, Leg::RawFar).unwrap().cost, None);
    assert_eq!(results.row(Family::V6, rr, Leg::Tunnel), None);
    let stream = results.row(Family::V4, Workload::Stream { write: 65536, flows: 1 }, Leg::Tunnel).unwrap();
    assert_eq!(stream.cost, Some(0.5), "seconds for a GiB");
    assert_eq!(results.groups().len(), 5);
}

#[test]
fn json_is_read_as_it_was_written() {
    let (dir, results) = (tempfile::tempdir().unwrap(), example(0.5));
    let path = dir.path().join("results.json");
    results.write(&path).unwrap();
    assert_eq!(Results::read(&path).unwrap(), results);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"format\": 1", "\"format\": 2", 1)).unwrap();
    let error = format!("{:#}", Results::read(&path).unwrap_err());
    assert!(error.contains("its format is 2, this program reads 1"), "{error}");
}
