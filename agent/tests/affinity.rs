//! Session affinity in the kernel: this process is the pod, its connections are real. Needs root.

#![expect(clippy::expect_used, reason = "a test's helpers say what they expect by panicking")]

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use culvert::bpf::{Capacities, Kernel, KernelConfig, Scratch};
use culvert::model::Desired;
use culvert::sys;
use culvert_common::{BackendKey, Ip, Member, Pod, Service, ServiceKey, cut};
use socket2::{Domain, Socket, Type};

const ENDPOINTS: u8 = 4;

/// The process inside a cgroup whose connections the programs see, as an enrolled pod; and what it connects to.
struct World {
    home: PathBuf,
    scratch: Scratch,
    listeners: Vec<TcpListener>,
}

impl World {
    fn new() -> Self {
        let home = sys::own_cgroup().expect("own cgroup");
        let scratch = Scratch::new("affinity").expect("a cgroup and a bpffs");
        fs::write(scratch.cgroup.join("cgroup.procs"), "0").expect("entering the cgroup");
        let listen = |n| TcpListener::bind((Ipv4Addr::new(127, 9, 0, n), 9000)).expect("a listener");
        let listeners = (1..=ENDPOINTS).map(listen).collect();
        Self { home, scratch, listeners }
    }

    fn config(&self, sizes: &[&str]) -> KernelConfig {
        let sizes: Vec<_> = sizes.iter().map(|text| text.parse().expect("a size")).collect();
        KernelConfig { capacities: Capacities::with(&sizes), ..self.scratch.config() }
    }

    fn load(&self, sizes: &[&str]) -> Kernel {
        let kernel = Kernel::load(&self.config(sizes)).expect("the programs load");
        let own = Pod {
            identity: 16,
            ip4: Ip::from(Ipv4Addr::new(10, 63, 255, 254)),
            ip6: Ip::from_words([0; 4]),
            name: cut("test/pod"),
        };
        kernel.maps.put_pod(sys::own_netns_cookie().expect("netns cookie"), own).expect("the pod");
        kernel
    }

    /// Where a connection to the virtual address of service `n` ends.
    fn reached(&self, n: u16) -> u8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.connect(&SocketAddr::from(vip(n)).into()).expect("a connection");
        // No address of the pod is behind it: the true peer is what the listener that accepts it has.
        for listener in &self.listeners {
            listener.set_nonblocking(true).expect("a setting");
        }
        loop {
            for (n, listener) in (1..).zip(&self.listeners) {
                if listener.accept().is_ok() {
                    return n;
                }
            }
            std::thread::yield_now();
        }
    }

    fn reached_often(&self, n: u16) -> HashSet<u8> {
        (0..40).map(|_| self.reached(n)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A cgroup with a process in it stays.
        let _ = fs::write(self.home.join("cgroup.procs"), "0");
    }
}

fn vip(n: u16) -> ([u8; 4], u16) {
    ([10, 96, 255, 1], n)
}

/// Services that lead to the listeners `ends`, in this order of slots.
fn services(numbers: impl Iterator<Item = u16>, ends: &[u8], affinity: u32) -> Desired {
    let mut maps = Desired::default();
    for n in numbers {
        let id = u32::from(n);
        for (slot, end) in (0..).zip(ends) {
            let backend = SocketAddr::from(([127, 9, 0, *end], 9000)).into();
            maps.backends.insert(BackendKey { service: id, slot }, backend);
            maps.members.insert(Member { service: id, backend }, 1);
        }
        let key = ServiceKey { vip: SocketAddr::from(vip(n)).into() };
        maps.services.insert(key, Service { id, backends: ends.len() as u32, flags: 0, affinity });
    }
    maps
}

fn apply(kernel: &Kernel, desired: &Desired) {
    let synced = kernel.maps.sync_before(desired).expect("the maps take it");
    assert!(synced.short.is_empty(), "{:?}", synced.short);
    kernel.maps.sync_after(desired).expect("the maps let go");
}

fn remembered(kernel: &Kernel) -> usize {
    let all = kernel.maps.usage().expect("the maps can be read");
    all.iter().find(|usage| usage.map == "affinity").expect("the map").entries
}

/// One test, for the process can be in one cgroup only.
#[test]
fn a_client_stays_with_its_endpoint() {
    let world = World::new();
    let kernel = world.load(&[]);

    // Without affinity every endpoint has its share, and nothing is remembered.
    apply(&kernel, &services(1..2, &[1, 2, 3, 4], 0));
    assert_eq!(world.reached_often(1).len(), 4);
    assert_eq!(remembered(&kernel), 0);

    // With it one has all, whatever slots the others come and go in.
    apply(&kernel, &services(1..2, &[1, 2, 3, 4], 600));
    let first = world.reached(1);
    assert_eq!(world.reached_often(1), HashSet::from([first]));
    assert_eq!(remembered(&kernel), 1);
    let others: Vec<u8> = (1..=4).filter(|end| *end != first).collect();
    for ends in [[others[0], first, others[1]], [others[2], others[1], first]] {
        apply(&kernel, &services(1..2, &ends, 600));
        assert_eq!(world.reached_often(1), HashSet::from([first]), "slots {ends:?}");
    }

    // It outlives the agent.
    drop(kernel);
    let kernel = world.load(&[]);
    apply(&kernel, &services(1..2, &[1, 2, 3, 4], 600));
    assert_eq!(world.reached_often(1), HashSet::from([first]));

    // Gone, its clients go to another and stay there, even when it comes back.
    apply(&kernel, &services(1..2, &others, 600));
    let second = world.reached(1);
    assert_ne!(second, first);
    apply(&kernel, &services(1..2, &[1, 2, 3, 4], 600));
    assert_eq!(world.reached_often(1), HashSet::from([second]));

    // Where the agent got through to counts from then on; for a service without affinity there is nothing to remember.
    let netns = sys::own_netns_cookie().expect("netns cookie");
    let end = |n| SocketAddr::from(([127, 9, 0, n], 9000)).into();
    kernel.maps.remember_backend(netns, SocketAddr::from(vip(1)).into(), end(first)).expect("an entry");
    assert_eq!(world.reached_often(1), HashSet::from([first]));
    apply(&kernel, &services(1..2, &[1, 2, 3, 4], 0));
    kernel.maps.remember_backend(netns + 1, SocketAddr::from(vip(1)).into(), end(first)).expect("nothing");
    assert_eq!(remembered(&kernel), 1);

    // The time counts from the last connection; what is older is chosen anew: among 24 services one at least moves.
    let many = services(1..25, &[1, 2, 3, 4], 1);
    apply(&kernel, &many);
    let before: Vec<u8> = (1..25).map(|n| world.reached(n)).collect();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(before, (1..25).map(|n| world.reached(n)).collect::<Vec<_>>(), "used meanwhile");
    }
    std::thread::sleep(Duration::from_millis(1200));
    assert_ne!(before, (1..25).map(|n| world.reached(n)).collect::<Vec<_>>(), "too old");

    // A full map forgets, and refuses nobody.
    drop(kernel);
    let kernel = world.load(&["affinity=64"]);
    apply(&kernel, &services(1..401, &[1, 2, 3, 4], 600));
    (1..401).for_each(|n| assert!(world.reached(n) > 0));
    assert!(remembered(&kernel) <= 64 && remembered(&kernel) > 0, "{}", remembered(&kernel));
    assert_eq!(world.reached(400), world.reached(400), "the last one is remembered");

    // Members without room keep nobody, and refuse nobody.
    apply(&kernel, &Desired::default());
    drop(kernel);
    let kernel = world.load(&["members=2"]);
    let synced =
        kernel.maps.sync_before(&services(1..25, &[1, 2, 3, 4], 600)).expect("a full map is no failure");
    assert_eq!(synced.short.iter().map(|short| short.map).collect::<Vec<_>>(), ["members"]);
    assert!((1..25).map(|n| world.reached_often(n).len()).max() > Some(1));
}
