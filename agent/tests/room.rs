//! Maps of chosen sizes, on the running kernel: what has no room, and what a new size keeps. Needs root.

#![expect(clippy::expect_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::net::Ipv4Addr;

use culvert::bpf::{Capacities, Kernel, KernelConfig, Scratch};
use culvert::model::Desired;
use culvert_common::{Workload, flags};

fn config(scratch: &Scratch, sizes: &[&str]) -> KernelConfig {
    let sizes: Vec<_> = sizes.iter().map(|text| text.parse().expect("a size")).collect();
    KernelConfig { capacities: Capacities::with(&sizes), ..scratch.config() }
}

/// A mesh of so many remote pods.
fn pods(number: u32) -> Desired {
    let workload = Workload { identity: 16, class: 1, flags: flags::ENROLLED };
    let ip = |n| Ipv4Addr::from(0x0a00_0000 + n).into();
    Desired { workloads: (0..number).map(|n| (ip(n), workload)).collect(), ..Desired::default() }
}

/// Entries and room of a map.
fn usage(kernel: &Kernel, map: &str) -> (usize, usize) {
    let all = kernel.maps.usage().expect("the maps can be read");
    let one = all.iter().find(|usage| usage.map == map).expect("the map");
    (one.entries, one.capacity)
}

#[test]
fn a_map_gets_another_size_and_keeps_what_is_in_it() {
    let scratch = Scratch::new("resize").expect("a cgroup and a bpffs");
    let first = Kernel::load(&config(&scratch, &["workloads=100", "connections=50"])).expect("first load");
    let synced = first.maps.sync_before(&pods(60)).expect("there is room");
    assert!(synced.short.is_empty());
    drop(first);
    for (wanted, room) in [(200, 200), (60, 60), (59, 60), (500, 500)] {
        let next = Kernel::load(&config(&scratch, &[&format!("workloads={wanted}"), "connections=70"]));
        let next = next.expect("the next one");
        assert_eq!(usage(&next, "workloads"), (60, room), "{wanted} wanted");
        assert_eq!(usage(&next, "connections").1, 70);
        let again = next.maps.sync_before(&pods(60)).expect("there is room");
        assert_eq!(again.stats.written, 0, "nothing had to be written again");
    }
    let left = fs::read_dir(&scratch.pins).expect("pins").flatten().map(|entry| entry.file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().ends_with('~')));
}

#[test]
fn a_start_that_broke_off_begins_again() {
    let scratch = Scratch::new("broken").expect("a cgroup and a bpffs");
    let first = Kernel::load(&config(&scratch, &["workloads=100"])).expect("first load");
    first.maps.sync_before(&pods(60)).expect("there is room");
    drop(first);
    // As if the agent had died when the old map had been put aside.
    fs::rename(scratch.pins.join("workloads"), scratch.pins.join("workloads~")).expect("set aside");
    let next = Kernel::load(&config(&scratch, &["workloads=80"])).expect("the next one");
    assert_eq!(usage(&next, "workloads"), (60, 80));
}

#[test]
fn what_has_no_room_is_told_and_closed() {
    let scratch = Scratch::new("full").expect("a cgroup and a bpffs");
    let kernel = Kernel::load(&config(&scratch, &["workloads=100"])).expect("the programs load");
    let synced = kernel.maps.sync_before(&pods(130)).expect("a full map is no failure");
    let text: Vec<String> = synced.short.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["room for 30 more entries in BPF map workloads (100): --map-entries workloads=N"]);
    assert_eq!((usage(&kernel, "workloads").0, usage(&kernel, "unlisted").0), (100, 30));
    let synced = kernel.maps.sync_before(&pods(100)).expect("there is room");
    assert!(synced.short.is_empty());
    assert_eq!((usage(&kernel, "workloads").0, usage(&kernel, "unlisted").0), (100, 0));
}
