//! Peers that misuse TCP, TLS or HTTP/2 lose their own connection; everybody else's go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use culvert::hbone::HboneConfig;
use culvert::proxy::ProxyConfig;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::raw::{
    ACK, ATTACKER, CONTINUATION, DATA, END_HEADERS, ENHANCE_YOUR_CALM, End, FLOW_CONTROL_ERROR, GOAWAY,
    HEADERS, PING, PREFACE, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, connect, connect_block, frame, rst,
    tcp,
};
use crate::round_trip;
use crate::world::{Setup, World, eventually};

/// A world with an honest client whose old and new connections are served meanwhile.
struct Siege {
    world: World,
    over: Arc<AtomicBool>,
    honest: JoinHandle<Vec<Duration>>,
    calm: Duration,
}

impl Siege {
    async fn begin(setup: Setup) -> Self {
        let world = World::with(setup).await;
        world.echo().await;
        let mut old = world.connect().await;
        let mut calm = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            round_trip(&mut old, b"x").await;
            calm.push(start.elapsed());
        }
        calm.sort_unstable();
        let over = Arc::new(AtomicBool::new(false));
        let (end, outbound) = (over.clone(), world.outbound);
        let honest = tokio::spawn(async move {
            let mut times = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let start = Instant::now();
                round_trip(&mut old, b"x").await;
                round_trip(&mut TcpStream::connect(outbound).await.unwrap(), b"y").await;
                times.push(start.elapsed());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            times
        });
        Self { world, over, honest, calm: calm[10] }
    }

    fn counter(&self, get: impl Fn(&culvert::proxy::Counters) -> &AtomicU64) -> u64 {
        get(&self.world.server.counters).load(Ordering::Relaxed)
    }

    /// The honest client has noticed nothing but a busy machine.
    async fn end(self, what: &str) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.over.store(true, Ordering::Relaxed);
        let mut times = self.honest.await.unwrap();
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{what}: calm {:?}, meanwhile an old and a new tunnel {median:?}, at worst {worst:?}",
            self.calm
        );
        assert!(worst < Duration::from_secs(1), "{what}: {worst:?}");
        round_trip(&mut self.world.connect().await, b"after").await;
    }

    /// One connection was ended for what it did. The peer may know before it is counted.
    async fn one_is_ended(&self, what: &str) {
        eventually(what, || (self.counter(abused) == 1).then_some(())).await;
    }

    fn target(&self) -> std::net::SocketAddr {
        self.world.mesh.target.lock().unwrap().unwrap()
    }
}

fn abused(counters: &culvert::proxy::Counters) -> &AtomicU64 {
    &counters.inbound_abused
}

/// Whether it was told why, or has not heard: who goes on sending may be reset before it reads the GOAWAY.
fn calmed(end: &End) -> bool {
    matches!(end.code, None | Some(ENHANCE_YOUR_CALM))
}

/// CVE-2023-44487.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let siege = Siege::begin(Setup::default()).await;
    let target = siege.target();
    let before = siege.counter(|c| &c.inbound_opened);
    let raw = Raw::open(&siege.world, &[]).await;
    let pairs = |n: u32| {
        (0..50)
            .flat_map(|k| [connect(n * 100 + k * 2 + 1, target), rst(n * 100 + k * 2 + 1)].concat())
            .collect()
    };
    let (sent, end) = raw.flood(2000, pairs).await;
    assert!(sent < 2000 && calmed(&end), "{sent} {end:?}");
    siege.one_is_ended("rapid reset").await;
    println!(
        "ended after {sent} x 50 resets, {} tunnels opened meanwhile",
        siege.counter(|c| &c.inbound_opened) - before
    );
    siege.end("rapid reset").await;
}

/// A reset frees the stream's place: what the agent does for the stream must end with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_requests_leave_no_connection_attempt_behind() {
    let siege = Siege::begin(Setup::default()).await;
    // An app whose queue is full: connecting to it takes as long as one has patience.
    let app = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    app.bind(&"127.0.0.3:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    app.listen(0).unwrap();
    let target = app.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(target).await.unwrap();
    let attempts = || {
        let sources = siege.world.mesh.sources.lock().unwrap();
        sources.values().filter(|client| client.ip().to_string() == ATTACKER).count()
    };
    let mut raw = Raw::open(&siege.world, &[]).await;
    for round in 0..10_u32 {
        let streams = || (0..100).map(|k| (round * 100 + k) * 2 + 1);
        let requests: Vec<u8> = streams().flat_map(|stream| connect(stream, target)).collect();
        raw.send(&requests).await.unwrap();
        eventually("the attempts", || (attempts() == 100).then_some(())).await;
        raw.send(&streams().flat_map(rst).collect::<Vec<_>>()).await.unwrap();
        eventually("their end", || (attempts() == 0).then_some(())).await;
    }
    siege.end("resets while connecting").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_headers_end_the_connection() {
    let siege = Siege::begin(Setup::default()).await;
    let target = siege.target();
    let raw = Raw::open(&siege.world, &[]).await;
    let mut field = vec![0, 1, b'x', 127, 0xa1, 0x3e]; // a literal field of 8096 bytes
    field.extend([b'a'; 8096]);
    let (sent, end) = raw
        .flood(5000, |n| match n {
            0 => frame(HEADERS, 0, 1, &connect_block(target)),
            _ => frame(CONTINUATION, 0, 1, &field),
        })
        .await;
    assert!(sent < 5000 && calmed(&end), "{sent} {end:?}");
    siege.one_is_ended("CONTINUATION flood").await;
    siege.end("CONTINUATION flood").await;
}

/// A request that says more than 64 KiB about itself is refused; its connection may go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giant_headers_are_refused() {
    let siege = Siege::begin(Setup::default()).await;
    let mut raw = Raw::open(&siege.world, &[]).await;
    let mut block = connect_block(siege.target());
    for _ in 0..20 {
        block.extend([0, 1, b'x', 127, 0xa1, 0x3e]);
        block.extend([b'a'; 8096]);
    }
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await.unwrap();
    let opened = siege.counter(|c| &c.inbound_connections);
    let (kind, payload) = loop {
        let (kind, _, stream, payload) = raw.next().await.unwrap();
        if stream == 1 || kind == GOAWAY {
            break (kind, payload);
        }
    };
    assert!(matches!(kind, HEADERS | RST_STREAM | GOAWAY), "{kind} {payload:?}");
    println!("answered with frame {kind}: {payload:02x?}, {opened} connections");
    siege.end("giant headers").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_that_carry_nothing_end_the_connection() {
    for (what, part) in [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("PING answers", frame(PING, ACK, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", frame(2, 0, 1, &[0, 0, 0, 0, 9])),
        ("unknown", frame(99, 0, 0, &[])),
    ] {
        let siege = Siege::begin(Setup::default()).await;
        let raw = Raw::open(&siege.world, &[]).await;
        let start = Instant::now();
        let (sent, end) = raw.flood(100_000, |_| part.repeat(100)).await;
        assert!(sent < 100_000 && end.frames.len() < 1010, "{what}: {sent} {end:?}");
        println!("{what}: ended after {:?}, {} frames were answered", start.elapsed(), end.frames.len());
        siege.one_is_ended(what).await;
        siege.end(what).await;
    }
}

/// What an ordinary peer sends in a second is far from the limit: here half of it, over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_pings_are_no_flood() {
    let siege = Siege::begin(Setup::default()).await;
    let mut raw = Raw::open(&siege.world, &[]).await;
    raw.send(&frame(PING, 0, 0, &[7; 8]).repeat(500)).await.unwrap();
    let mut answered = 0;
    while answered < 500 {
        let (kind, flags, ..) = raw.next().await.unwrap();
        answered += u32::from((kind, flags) == (PING, ACK));
    }
    assert_eq!(siege.counter(abused), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_beyond_all_bounds_ends_the_connection() {
    let siege = Siege::begin(Setup::default()).await;
    let mut raw = Raw::open(&siege.world, &[]).await;
    let update = frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
    raw.send(&update.repeat(2)).await.unwrap();
    assert_eq!(raw.ended().await.code, Some(FLOW_CONTROL_ERROR));
    siege.one_is_ended("WINDOW_UPDATE overflow").await;
    siege.end("WINDOW_UPDATE overflow").await;
}

/// The agent reads from the app only what it can send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_never_opens_makes_the_agent_hold_nothing() {
    let siege = Siege::begin(Setup::default()).await;
    let app = tokio::net::TcpListener::bind("127.0.0.3:0").await.unwrap();
    let target = app.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = app.accept().await {
            tokio::spawn(async move {
                tcp.write_all(&[1; 1 << 17]).await.unwrap();
                tcp.read_to_end(&mut Vec::new()).await
            });
        }
    });
    let window = [0, 4, 0, 0, 0, 0]; // SETTINGS_INITIAL_WINDOW_SIZE 0
    let mut raw = Raw::open(&siege.world, &window).await;
    let streams = (0..200_u32).flat_map(|n| connect(n * 2 + 1, target)).collect::<Vec<_>>();
    raw.send(&streams).await.unwrap();
    let open = || siege.counter(|c| &c.inbound_open) >= 200;
    eventually("two hundred tunnels", || open().then_some(())).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // What was read from the apps counts when it is handed to HTTP/2; the honest client's bytes are few.
    let held = siege.counter(|c| &c.bytes_received);
    assert!(held < 4096, "{held} bytes were taken for streams that take none");
    siege.end("zero window, 200 streams").await;
}

fn hasty() -> Setup {
    let hbone = HboneConfig { handshake_timeout: Duration::from_millis(400), ..HboneConfig::default() };
    Setup { hbone, ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_do_not_finish_are_ended() {
    let siege = Siege::begin(hasty()).await;
    let start = Instant::now();
    let silent = tcp(&siege.world, ATTACKER).await.unwrap();
    let mut slow = tcp(&siege.world, ATTACKER).await.unwrap();
    let no_preface = Raw::tls(&siege.world, ATTACKER).await.unwrap();
    let mut half_preface = Raw::tls(&siege.world, ATTACKER).await.unwrap();
    half_preface.send(&PREFACE[..10]).await.unwrap();
    let trickle = async {
        // A TLS record of 512 bytes, one byte at a time.
        while slow.write_all(&[22, 3, 1, 2, 0][..1]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), trickle).await.unwrap();
    for mut tcp in [silent, no_preface.0.into_inner().0, half_preface.0.into_inner().0] {
        let _ = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut Vec::new())).await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    eventually("four failures", || (siege.counter(|c| &c.handshakes_failed) == 4).then_some(())).await;
    siege.end("slow loris").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_keep_nobody_out() {
    let proxy = ProxyConfig { handshakes: 16, ..ProxyConfig::default() };
    let siege = Siege::begin(Setup { proxy, ..Setup::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tcp(&siege.world, ATTACKER).await.unwrap());
    }
    for n in 0..20 {
        let start = Instant::now();
        let raw = Raw::tls(&siege.world, "127.0.0.8").await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{n}: {:?}", start.elapsed());
        drop(raw);
    }
    assert!(siege.counter(|c| &c.handshakes_failed) >= 84, "the oldest made room");
    siege.end("half-open handshakes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_has_its_share_of_connections() {
    let proxy = ProxyConfig { connections_per_peer: 10, ..ProxyConfig::default() };
    let siege = Siege::begin(Setup { proxy, ..Setup::default() }).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(Raw::open(&siege.world, &[]).await);
    }
    for _ in 0..200 {
        assert!(Raw::tls(&siege.world, ATTACKER).await.is_err());
    }
    assert_eq!(siege.counter(|c| &c.inbound_turned_away), 200);
    Raw::tls(&siege.world, "127.0.0.8").await.unwrap();
    open.clear();
    eventually("room again", || (siege.counter(|c| &c.inbound_connections) == 1).then_some(())).await;
    Raw::tls(&siege.world, ATTACKER).await.unwrap();
    siege.end("many connections of one peer").await;
}

/// Whether it follows GOAWAY or not; one that carries a silent tunnel stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_asks_for_nothing_is_ended() {
    let hbone = HboneConfig { server_idle: Duration::from_millis(200), ..HboneConfig::default() };
    let siege = Siege::begin(Setup { hbone, ..Setup::default() }).await;
    let mut used = Raw::open(&siege.world, &[]).await;
    used.send(&connect(1, siege.target())).await.unwrap();
    let idle = Raw::open(&siege.world, &[]).await;
    let start = Instant::now();
    let end = idle.ended().await;
    assert!(end.frames.iter().any(|(kind, _)| *kind == GOAWAY), "{end:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
    used.send(&frame(DATA, 0, 1, b"hello")).await.unwrap();
    let (mut answer, mut frames) = (Vec::new(), 0);
    while answer.is_empty() {
        let (kind, _, stream, payload) = used.next().await.unwrap();
        if (kind, stream) == (DATA, 1) {
            answer = payload;
        }
        frames += 1;
        assert!(frames < 20);
    }
    assert_eq!(answer, b"hello");
    siege.end("connections that ask for nothing").await;
}
