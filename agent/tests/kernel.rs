//! The programs load, attach and detach on the running kernel. Needs root.

#![expect(clippy::expect_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::os::fd::AsFd;

use culvert::bpf::{Kernel, Scratch, lacking};
use culvert_common::{ABI_VERSION, Config, Guard, Ip};

#[test]
fn programs_load_attach_and_are_adopted_by_a_second_agent() {
    let scratch = Scratch::new("load").expect("a cgroup and a bpffs");
    let first = Kernel::load(&scratch.config()).expect("first load");
    let netns = fs::File::open("/proc/self/ns/net").expect("netns");
    within_the_verifier_budget(&first);
    let end = std::net::SocketAddr::from(([127, 0, 0, 1], 40000)).into();
    first.maps.put_original_src(culvert_common::LocalKey::new(7, end), end).expect("an entry");
    drop(first);
    assert!(scratch.pins.join("links/connect4").exists(), "links outlive the agent");
    let second = Kernel::load(&scratch.config()).expect("second load adopts the pins");
    assert_eq!(second.maps.forget_handovers().expect("the maps"), 1, "what a dead agent was to deliver");
    assert_eq!(second.maps.forget_handovers().expect("the maps"), 0);
    second.attach_pod(42, netns.as_fd()).expect("sk_lookup attaches");
    assert!(scratch.pins.join("links/admit-42").exists());
    second.detach_pod(42).expect("detach");
    assert!(!scratch.pins.join("links/admit-42").exists());
}

#[test]
fn programs_of_another_layout_stay_until_the_new_ones_enforce() {
    let scratch = Scratch::new("layout").expect("a cgroup and a bpffs");
    let netns = fs::File::open("/proc/self/ns/net").expect("netns");
    let first = Kernel::load(&scratch.config()).expect("first load");
    first.attach_pod(42, netns.as_fd()).expect("sk_lookup attaches");
    drop(first);
    let pinned = aya::maps::MapData::from_pin(scratch.pins.join("config")).expect("the pinned config");
    let mut config: aya::maps::Array<_, Config> =
        aya::maps::Map::Array(pinned).try_into().expect("the config map");
    let ours = config.get(&0, 0).expect("the config");
    config.set(0, Config { abi_version: ABI_VERSION + 1, ..ours }, 0).expect("another layout");
    let second = Kernel::load(&scratch.config()).expect("second load");
    let mut aside = scratch.pins.clone().into_os_string();
    aside.push("~/links/admit-42");
    let aside = std::path::PathBuf::from(aside);
    assert!(aside.exists(), "the old verdict is still attached");
    assert!(!scratch.pins.join("links/admit-42").exists(), "and not adopted");
    assert!(second.inherits(42) && !second.inherits(43), "the pod must not wait for a certificate");
    assert!(second.retire_predecessor().expect("they can be removed"));
    assert!(!aside.exists());
    assert!(!second.retire_predecessor().expect("nothing is left"));
}

#[test]
fn programs_that_somebody_took_away_are_told() {
    let scratch = Scratch::new("detached").expect("a cgroup and a bpffs");
    let netns = fs::File::open("/proc/self/ns/net").expect("netns");
    let first = Kernel::load(&scratch.config()).expect("first load");
    first.attach_pod(43, netns.as_fd()).expect("sk_lookup attaches");
    assert_eq!(first.detached(), Vec::<String>::new());
    fs::remove_file(scratch.pins.join("links/admit-43")).expect("the pin");
    let told = first.detached();
    assert!(
        told.len() == 1 && told[0].starts_with("BPF program culvert_admit ends with this agent"),
        "{told:?}"
    );
    first.attach_pod(43, netns.as_fd()).expect("sk_lookup attaches");
    assert_eq!(first.detached(), Vec::<String>::new());
    // Another one takes the links over: they run its programs.
    let second = Kernel::load(&scratch.config()).expect("second load");
    let told = first.detached();
    assert_eq!(told.len(), 8, "{told:?}");
    assert!(told.iter().all(|what| what.contains("is no longer attached to ")), "{told:?}");
    assert_eq!(second.detached(), Vec::<String>::new());
}

#[test]
fn an_interface_that_is_gone_leaves_no_entry() {
    let scratch = Scratch::new("guard").expect("a cgroup and a bpffs");
    let kernel = Kernel::load(&scratch.config()).expect("load");
    let guard = Guard { ip4: Ip::UNSPECIFIED, ip6: Ip::UNSPECIFIED };
    assert!(kernel.guard_pod(42, 0x7fff_fff0, guard).is_err(), "no such interface");
    let pinned = aya::maps::MapData::from_pin(scratch.pins.join("guards")).expect("the pinned map");
    let guards: aya::maps::HashMap<_, u32, Guard> =
        aya::maps::Map::HashMap(pinned).try_into().expect("the guards map");
    assert_eq!(guards.keys().count(), 0);
}

#[test]
fn a_kernel_that_loads_the_programs_lacks_nothing() {
    let scratch = Scratch::new("lacking").expect("a cgroup and a bpffs");
    Kernel::load(&scratch.config()).expect("load");
    assert_eq!(lacking(), None);
}

/// What the verifier walked of each program stays within tests/verifier-budget.txt: a program that grows does so on
/// purpose. Before Linux 5.16 the kernel does not say.
fn within_the_verifier_budget(kernel: &Kernel) {
    let budget = include_str!("verifier-budget.txt");
    let budget: std::collections::BTreeMap<&str, u32> = budget
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, count)| (name, count.trim().parse().expect("a number")))
        .collect();
    let counts = kernel.verified_instructions();
    assert_eq!(
        counts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        budget.keys().copied().collect::<Vec<_>>()
    );
    for (name, count) in counts {
        let Some(count) = count else { continue };
        println!("{name}: {count} verified instructions");
        let limit = budget[name.as_str()];
        assert!(count <= limit, "{name}: {count} verified instructions, the budget is {limit}");
        assert!(count * 2 > limit, "{name}: {count} verified instructions: lower its budget of {limit}");
    }
}
