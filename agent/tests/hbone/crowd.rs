//! Many tunnels at a time, and what each costs: two agents, their kernel's part and the apps' sockets in one process.
//!
//! `CULVERT_CROWD=10000 cargo test -p culvert --test hbone crowd -- --nocapture` opens ten thousand; without it, 500.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::world::{World, eventually};

/// Through each tunnel, there and back.
const BURST: usize = 32 << 10;
/// Of one client address: far fewer than it has ports.
const PER_ADDRESS: usize = 5000;
/// For both agents together.
const MOST_IDLE: u64 = 64 << 10;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

fn app(world: &World, n: usize) -> TcpStream {
    let from: IpAddr = [127, 0, 1, u8::try_from(n / PER_ADDRESS + 1).unwrap()].into();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&world.outbound.into()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_tunnels_is_served_and_costs_little() {
    let n: usize = std::env::var("CULVERT_CROWD").map_or(500, |text| text.parse().unwrap());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = 4 * n as u64 + 1000;
    let raised = setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard.max(wanted));
    assert_eq!(raised, Ok(()), "{n} tunnels need {wanted} open files here; the limit is {hard}");

    let world = World::new().await;
    let listener = world.app().await.into_std().unwrap();
    listener.set_nonblocking(false).unwrap();
    let world = std::sync::Arc::new(world);
    let (before, before_cpu, start) = (resident(), cpu(), Instant::now());
    let apps = {
        let world = world.clone();
        let accept =
            std::thread::spawn(move || (0..n).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>());
        let connect = move || (0..n).map(|n| app(&world, n)).collect::<Vec<_>>();
        let clients = tokio::task::spawn_blocking(connect).await.unwrap();
        let servers = tokio::task::spawn_blocking(|| accept.join().unwrap()).await.unwrap();
        (clients, servers)
    };
    let open = || world.client.counters.outbound_open.load(Ordering::Relaxed) == n as u64;
    eventually("all tunnels", || open().then_some(())).await;
    let (opened, open_cpu, idle) = (start.elapsed(), cpu() - before_cpu, resident() - before);

    let start = Instant::now();
    let (mut clients, mut servers) = apps;
    let (clients, servers) = tokio::task::spawn_blocking(move || {
        // The n-th accepted need not be the n-th that connected: a burst goes each way, and all arrive.
        let data = vec![7; BURST];
        let mut got = vec![0; BURST];
        for tcp in clients.iter_mut().chain(&mut servers) {
            tcp.write_all(&data).unwrap();
        }
        for tcp in clients.iter_mut().chain(&mut servers) {
            tcp.read_exact(&mut got).unwrap();
            assert_eq!(got, data);
        }
        (clients, servers)
    })
    .await
    .unwrap();
    let burst = start.elapsed();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = resident() - before;
    assert_eq!(world.client.counters.refused.load(Ordering::Relaxed), 0);
    assert_eq!(world.client.pool.connections(), n.div_ceil(100));
    let each = |bytes: u64| bytes / n as u64;
    println!(
        "{n} tunnels on {} connections: opened in {opened:?} ({open_cpu:?} of CPU), {} bytes each in both agents; \
         {BURST} bytes each way through each in {burst:?}, {} bytes each a moment after",
        world.client.pool.connections(),
        each(idle),
        each(after),
    );
    assert!(each(idle) < MOST_IDLE, "{} bytes each", each(idle));
    drop((clients, servers));
    let over = || world.client.counters.outbound_open.load(Ordering::Relaxed) == 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !over() {
        assert!(Instant::now() < deadline, "the tunnels end with their apps");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
