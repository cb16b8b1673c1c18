//! Tunnels between two pods: real TCP, TLS and HTTP/2 over loopback; the kernel's part is played by the test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "hbone/abuse.rs"]
mod abuse;
#[path = "hbone/crowd.rs"]
mod crowd;
#[path = "hbone/first_reply.rs"]
mod first_reply;
#[path = "hbone/first_words.rs"]
mod first_words;
#[path = "hbone/goaway.rs"]
mod goaway;
#[path = "hbone/raw.rs"]
mod raw;
#[path = "hbone/retries.rs"]
mod retries;
#[path = "hbone/world.rs"]
mod world;

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use culvert::hbone::{HboneConfig, OpenError, accept};
use culvert::identity::SpiffeId;
use culvert::proxy::{Side, Stage};
use culvert_common::{Decision, Reason};
use http::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use world::{DAY, Setup, VIP, World, cert_from, eventually, id};

async fn read_to_end(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut bytes)).await.unwrap()?;
    Ok(bytes)
}

/// The connection ends with a reset, not with an orderly end.
async fn expect_reset(mut tcp: TcpStream) {
    let error = read_to_end(&mut tcp).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

fn reset(tcp: TcpStream) {
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn round_trip(tcp: &mut TcpStream, text: &[u8]) {
    tcp.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    tokio::time::timeout(Duration::from_secs(5), tcp.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, text);
}

async fn echo_is_carried_and_reported(setup: Setup) {
    let world = World::with(setup).await;
    world.echo().await;
    let mut tcp = world.connect().await;
    round_trip(&mut tcp, b"hello").await;
    let app_port = tcp.local_addr().unwrap().port();
    tcp.shutdown().await.unwrap();
    assert!(read_to_end(&mut tcp).await.unwrap().is_empty());

    let target = world.mesh.target.lock().unwrap().unwrap();
    for side in [Side::Source, Side::Destination] {
        let opened = world.mesh.flow("opened", |f| f.side == side && f.stage == Stage::Opened).await;
        assert_eq!((opened.client.ip(), opened.client.port()), (world.client_ip, app_port));
        let by_vip = side == Side::Source && target.is_ipv4();
        let requested = if by_vip { (VIP, target.port()).into() } else { target };
        assert_eq!((opened.target, opened.requested), (target, requested));
        assert_eq!((opened.source, opened.destination), (Some(id("client")), Some(id("server"))));
        let closed = |f: &culvert::proxy::TunnelFlow| {
            f.side == side && matches!(f.stage, Stage::Closed { bytes_sent: 5, bytes_received: 5, .. })
        };
        assert_eq!(world.mesh.flow("closed", closed).await.error, "");
    }
    let sources = world.mesh.sources.lock().unwrap();
    let clients: Vec<_> = sources.values().collect();
    assert_eq!(clients, [&(world.client_ip, app_port).into()]);
    drop(sources);
    assert_eq!(world.client.counters.outbound_open.load(Ordering::Relaxed), 0);
    assert_eq!(world.server.counters.inbound_opened.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_tunnel_carries_bytes_and_both_ends_report_it() {
    echo_is_carried_and_reported(Setup::default()).await;
}

#[tokio::test]
async fn a_tunnel_works_over_ipv6() {
    echo_is_carried_and_reported(Setup { v6: true, ..Setup::default() }).await;
}

#[tokio::test]
async fn half_close_is_carried_both_ways() {
    let world = World::new().await;
    let (mut client, mut server) = world.pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"answer");

    let (mut client, mut server) = world.pair().await;
    server.write_all(b"banner").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"banner");
    client.write_all(b"late").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_mebibytes_arrive_whole_both_ways_at_once() {
    const CHUNK: usize = 1 << 20;
    async fn run(tcp: TcpStream, seed: u8) -> (Vec<u8>, Vec<u8>) {
        let (mut read, mut write) = tcp.into_split();
        let send = tokio::spawn(async move {
            let mut hash = Sha256::new();
            let chunk: Vec<u8> = (0..CHUNK).map(|n| (n / 251) as u8 ^ (n as u8) ^ seed).collect();
            for _ in 0..32 {
                write.write_all(&chunk).await.unwrap();
                hash.update(&chunk);
            }
            write.shutdown().await.unwrap();
            hash.finalize().to_vec()
        });
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
        loop {
            let n = read.read(&mut buffer).await.unwrap();
            if n == 0 {
                return (send.await.unwrap(), hash.finalize().to_vec());
            }
            hash.update(&buffer[..n]);
        }
    }
    let world = World::new().await;
    let (client, server) = world.pair().await;
    let (client, server) = tokio::join!(run(client, 1), run(server, 2));
    assert_eq!(client.0, server.1);
    assert_eq!(server.0, client.1);
}

#[tokio::test]
async fn a_stalled_reader_holds_its_window_and_nothing_more_and_stalls_nobody_else() {
    let hbone = HboneConfig { stream_window: 256 << 10, ..HboneConfig::default() };
    let world = World::with(Setup { hbone, ..Setup::default() }).await;
    let (client, server) = world.pair().await;
    let writer = tokio::spawn(async move {
        let mut client = client;
        let chunk = vec![7; 1 << 20];
        while client.write_all(&chunk).await.is_ok() {}
    });
    // What one agent took from its app, less what the other gave to its own, is what both hold (and their sockets).
    let held = || {
        let sent = world.client.counters.bytes_sent.load(Ordering::Relaxed);
        (sent, sent.saturating_sub(world.server.counters.bytes_sent.load(Ordering::Relaxed)))
    };
    let (mut last, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < Duration::from_millis(200) {
        let (sent, now) = held();
        assert!(now <= (256 + 256 + 64 + 64) << 10, "{now} bytes held");
        if sent != last {
            (last, quiet) = (sent, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(last > 256 << 10);
    let (mut other, mut peer) = world.pair().await;
    other.write_all(b"x").await.unwrap();
    assert_eq!(peer.read_u8().await.unwrap(), b'x');
    assert_eq!(world.client.pool.opened(), 1, "both on one connection");
    writer.abort();
    drop(server);
}

#[tokio::test]
async fn a_reset_stays_a_reset_from_end_to_end() {
    let world = World::new().await;
    let (client, server) = world.pair().await;
    reset(client);
    expect_reset(server).await;
    let (mut client, mut server) = world.pair().await;
    client.write_all(b"x").await.unwrap();
    server.read_u8().await.unwrap();
    reset(server);
    expect_reset(client).await;
    let closed = |f: &culvert::proxy::TunnelFlow| {
        f.side == Side::Source
            && matches!(f.stage, Stage::Closed { .. })
            && f.error.contains("other end reset")
    };
    world.mesh.flow("a closed flow that names the reset", closed).await;
}

#[tokio::test]
async fn a_reset_is_carried_while_the_other_end_does_not_read() {
    let hbone = HboneConfig { stream_window: 64 << 10, ..HboneConfig::default() };
    let world = World::with(Setup { hbone, ..Setup::default() }).await;
    let (client, server) = world.pair().await;
    let chunk = vec![1; 1 << 20];
    let stuck = async {
        loop {
            client.writable().await.unwrap();
            let _ = client.try_write(&chunk);
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(300), stuck).await;
    reset(client);
    eventually("the tunnels to be gone", || {
        (world.server.counters.inbound_open.load(Ordering::Relaxed) == 0).then_some(())
    })
    .await;
    expect_reset(server).await;
}

#[tokio::test]
async fn connections_share_one_http2_connection_until_it_is_full() {
    let hbone = HboneConfig { client_streams: 4, ..HboneConfig::default() };
    let world = World::with(Setup { hbone, ..Setup::default() }).await;
    world.echo().await;
    let mut open = Vec::new();
    for n in 0..10 {
        let mut tcp = world.connect().await;
        round_trip(&mut tcp, b"x").await;
        open.push(tcp);
        assert_eq!(world.client.pool.opened(), n / 4 + 1);
    }
}

#[tokio::test]
async fn an_idle_connection_is_retired() {
    let hbone = HboneConfig { idle: Duration::from_millis(80), ..HboneConfig::default() };
    let world = World::with(Setup { hbone, ..Setup::default() }).await;
    world.echo().await;
    let mut tcp = world.connect().await;
    round_trip(&mut tcp, b"x").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.client.pool.connections(), 1, "a tunnel keeps it open");
    drop(tcp);
    let pool = &world.client.pool;
    eventually("the idle connection to go", || (pool.connections() == 0).then_some(())).await;
    let inbound = &world.server.counters.inbound_connections;
    eventually("the server to see it go", || (inbound.load(Ordering::Relaxed) == 0).then_some(())).await;
    round_trip(&mut world.connect().await, b"x").await;
    assert_eq!(pool.opened(), 2);
}

#[tokio::test]
async fn a_restarted_peer_is_reached_on_a_new_connection() {
    let mut world = World::new().await;
    world.echo().await;
    let mut tcp = world.connect().await;
    round_trip(&mut tcp, b"x").await;
    world.stop_server.cancel();
    expect_reset(tcp).await; // after the drain deadline
    world.serve_server_again();
    round_trip(&mut world.connect().await, b"x").await;
    assert_eq!(world.client.counters.refused.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_draining_peer_refuses_new_tunnels_and_keeps_the_open_ones() {
    let mut world = World::new().await;
    world.echo().await;
    let mut tcp = world.connect().await;
    round_trip(&mut tcp, b"x").await;
    world.stop_server.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    round_trip(&mut tcp, b"still served").await;
    world.serve_server_again(); // the new agent, before the old one is gone
    round_trip(&mut world.connect().await, b"y").await;
    round_trip(&mut tcp, b"still served").await;
    assert_eq!(world.client.pool.opened(), 2);
}

#[tokio::test]
async fn many_connections_at_once_share_one_handshake() {
    let world = World::new().await;
    world.echo().await;
    let all = async |n| {
        let world = &world;
        let mut open = tokio::task::JoinSet::new();
        for _ in 0..n {
            let outbound = world.outbound;
            open.spawn(async move {
                let mut tcp = TcpStream::connect(outbound).await?;
                tcp.write_all(b"x").await?;
                tcp.read_u8().await.map(|_| tcp)
            });
        }
        open.join_all().await
    };
    assert!(all(60).await.iter().all(Result::is_ok));
    assert_eq!(world.client.pool.opened(), 1);
    assert_eq!(world.mesh.sources.lock().unwrap().len(), 60, "each from its own port");
}

#[tokio::test]
async fn a_connect_request_says_what_ztunnel_says() {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let setup = Setup { impostor: Some(listener.local_addr().unwrap()), ..Setup::default() };
    let world = World::with(setup).await;
    let target = world.app().await.local_addr().unwrap();
    let cert = world.cert(id("server"), DAY / 24, DAY);
    let app = world.connect().await;
    let (tcp, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip(), world.client_ip, "the pod's own address, for NetworkPolicy's sake");
    let mut accepted = accept(tcp, &cert, &HboneConfig::default()).await.unwrap();
    assert_eq!(accepted.peer, id("client"));
    let (request, mut respond) = accepted.connection.accept().await.unwrap().unwrap();
    assert_eq!((request.method(), request.uri().to_string()), (&Method::CONNECT, target.to_string()));
    let header = |name: &str| request.headers()[name].to_str().unwrap();
    let app_port = app.local_addr().unwrap().port();
    assert_eq!(header("forwarded"), format!("for=\"127.0.0.2:{app_port}\";host=db.hello.svc.cluster.local"));
    assert_eq!(header("baggage"), "k8s.namespace.name=test");
    let trace: Vec<_> = header("traceparent").split('-').map(str::len).collect();
    assert_eq!(trace, [2, 32, 16, 2]);
    assert_eq!(request.headers().len(), 3);
    // An answer without explanation, as ztunnel gives it.
    let answer = http::Response::builder().status(StatusCode::UNAUTHORIZED).body(()).unwrap();
    respond.send_response(answer, true).unwrap();
    tokio::spawn(async move { accepted.connection.accept().await.is_none() });
    expect_reset(app).await;
    assert!(world.mesh.refusal(Reason::PeerRefused).await.error.ends_with("answered 401 Unauthorized"));
}

/// Answers HBONE connections as whoever `cert` says.
async fn impostor(listener: TcpListener, cert: culvert::identity::WorkloadCert) {
    let acceptor = TlsAcceptor::from(cert.accepting().0);
    while let Ok((tcp, _)) = listener.accept().await {
        let _ = acceptor.accept(tcp).await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_the_expected_one_gets_no_byte() {
    let foreign = tempfile::tempdir().unwrap();
    let hour = DAY / 24;
    let listen = async || TcpListener::bind("127.0.0.3:0").await.unwrap();
    for (case, reason, text) in [
        (
            "identity",
            Reason::WrongPeer,
            "expected the identity spiffe://cluster.local/ns/test/sa/server, got spiffe://cluster.local/ns/test/sa/other",
        ),
        ("expired", Reason::TunnelFailed, "expired"),
        ("issuer", Reason::TunnelFailed, "unknown issuer"),
    ] {
        let listener = listen().await;
        let setup = Setup { impostor: Some(listener.local_addr().unwrap()), ..Setup::default() };
        let world = World::with(setup).await;
        let cert = match case {
            "identity" => world.cert(id("other"), hour, DAY),
            "expired" => world.cert(id("server"), 2 * hour, hour),
            _ => cert_from(foreign.path(), id("server"), hour, DAY),
        };
        tokio::spawn(impostor(listener, cert));
        let _app = world.app().await;
        expect_reset(world.connect().await).await;
        let flow = world.mesh.refusal(reason).await;
        assert!(flow.error.contains(text) && flow.side == Side::Source, "{case}: {}", flow.error);
    }
}

#[tokio::test]
async fn a_client_that_cannot_prove_an_identity_of_the_mesh_is_refused() {
    let foreign = tempfile::tempdir().unwrap();
    let hour = DAY / 24;
    let world = World::new().await;
    let stranger = SpiffeId::new("elsewhere.example", "test", "client");
    for (cert, reason, text) in [
        (world.cert(stranger, hour, DAY), Reason::WrongPeer, "expected the trust domain cluster.local"),
        (world.cert(id("client"), 2 * hour, hour), Reason::TunnelFailed, "expired"),
        (world.foreign_cert(foreign.path(), id("client")), Reason::TunnelFailed, "unknown issuer"),
    ] {
        let tcp = TcpStream::connect(world.hbone).await.unwrap();
        let connector = TlsConnector::from(cert.connecting(&id("server")).0);
        let name = ServerName::IpAddress(world.server_ip.into());
        let mut tls = connector.connect(name, tcp).await.unwrap();
        // TLS 1.3: the client believes that the handshake is over; the refusal comes as the first thing it reads.
        assert!(tls.read_u8().await.is_err());
        let like = |f: &culvert::proxy::TunnelFlow| f.error.contains(text) && f.decision.reason == reason;
        let flow = world.mesh.flow(text, like).await;
        assert_eq!((flow.side, flow.stage), (Side::Destination, Stage::Refused));
    }
}

#[tokio::test]
async fn a_refusal_by_policy_is_401_and_a_reset_to_the_app() {
    let world = World::new().await;
    let _app = world.app().await;
    *world.mesh.decision.lock().unwrap() = Decision { policy: 7, ..Decision::refuse(Reason::DeniedByPolicy) };
    expect_reset(world.connect().await).await;
    let source = world.mesh.refusal(Reason::PeerRefused).await;
    assert!(source.error.contains("401") && source.error.contains("denied by policy"), "{}", source.error);
    let destination = world.mesh.refusal(Reason::DeniedByPolicy).await;
    assert_eq!((destination.side, destination.decision.policy), (Side::Destination, 7));
}

#[tokio::test]
async fn a_policy_change_ends_tunnels_that_are_no_longer_allowed() {
    let world = World::new().await;
    let (mut client, server) = world.pair().await;
    world.server.policy_changed();
    client.write_all(b"still here").await.unwrap();
    *world.mesh.decision.lock().unwrap() = Decision::refuse(Reason::NotAllowed);
    world.server.policy_changed();
    expect_reset(client).await;
    drop(server);
    let closed = |f: &culvert::proxy::TunnelFlow| {
        f.side == Side::Destination && matches!(f.stage, Stage::Closed { .. })
    };
    assert_eq!(world.mesh.flow("closed", closed).await.decision.reason, Reason::NotAllowed);
}

#[tokio::test]
async fn an_app_that_does_not_listen_is_503_and_a_reset() {
    let world = World::new().await;
    drop(world.app().await);
    expect_reset(world.connect().await).await;
    let source = world.mesh.flow("source", |f| f.side == Side::Source && f.stage == Stage::Refused).await;
    assert_eq!(source.decision.reason, Reason::UpstreamFailed);
    assert!(source.error.contains("nothing in the pod listens there"), "{}", source.error);
    assert!(world.mesh.sources.lock().unwrap().is_empty(), "the note about the client is taken back");
}

#[tokio::test]
async fn connections_that_the_kernel_did_not_lead_here_are_reset() {
    let world = World::new().await;
    expect_reset(world.connect().await).await;
    world.mesh.refusal(Reason::NoOriginalDst).await;
    let _app = world.app().await;
    world.mesh.identities.lock().unwrap().clear();
    expect_reset(world.connect().await).await;
    world.mesh.refusal(Reason::OutsideMesh).await;
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_explained() {
    let port = TcpListener::bind("127.0.0.3:0").await.unwrap().local_addr().unwrap();
    let world = World::with(Setup { impostor: Some(port), ..Setup::default() }).await;
    let _app = world.app().await;
    expect_reset(world.connect().await).await;
    let flow = world.mesh.refusal(Reason::TunnelFailed).await;
    assert!(flow.error.contains("no mesh agent listens on HBONE port"), "{}", flow.error);
}

#[tokio::test]
async fn the_server_is_no_open_relay() {
    let world = World::new().await;
    let app = world.app().await.local_addr().unwrap();
    for (method, authority, status) in [
        (Method::CONNECT, "127.0.0.4:80".to_owned(), StatusCode::BAD_REQUEST),
        (Method::CONNECT, "[::1]:80".to_owned(), StatusCode::BAD_REQUEST),
        (Method::CONNECT, "db.hello:80".to_owned(), StatusCode::BAD_REQUEST),
        (Method::CONNECT, "127.0.0.3:0".to_owned(), StatusCode::BAD_REQUEST),
        (Method::CONNECT, "127.0.0.3:15008".to_owned(), StatusCode::SERVICE_UNAVAILABLE),
        (Method::CONNECT, "127.0.0.3:15001".to_owned(), StatusCode::SERVICE_UNAVAILABLE),
        (Method::CONNECT, "127.0.0.3:15006".to_owned(), StatusCode::SERVICE_UNAVAILABLE),
        (Method::GET, format!("http://{app}/"), StatusCode::BAD_REQUEST),
    ] {
        let request = Request::builder().method(method).uri(&authority).body(()).unwrap();
        match world.client.pool.open(&world.destination(), &request).await {
            Err(OpenError::Refused { status: got, reason, .. }) => {
                assert_eq!(got, status, "{authority}: {reason}");
                assert!(!reason.is_empty());
            }
            Err(error) => panic!("{authority}: {error}"),
            Ok(_) => panic!("{authority} was served"),
        }
    }
    world.mesh.refusal(Reason::BadRequest).await;
    world.mesh.refusal(Reason::MeshPort).await;
}

#[tokio::test]
async fn rotation_drops_no_connection() {
    let world = World::with(Setup { ttl: Duration::from_secs(1), ..Setup::default() }).await;
    world.echo().await;
    let serial = async || world.client.certs.get(&id("client")).await.unwrap().serial().to_owned();
    let first = serial().await;
    let mut old = world.connect().await;
    let end = Instant::now() + Duration::from_millis(1800);
    while Instant::now() < end {
        round_trip(&mut old, b"old").await;
        round_trip(&mut world.connect().await, b"new").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(serial().await, first);
    assert!(world.client.pool.opened() > 1, "new tunnels do not use an expired certificate's connection");
    assert_eq!(world.client.counters.refused.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_stopped_pod_accepts_no_more_lets_tunnels_end_and_resets_the_rest() {
    let world = World::new().await;
    let (mut client, mut server) = world.pair().await;
    let (stuck, _stuck_server) = world.pair().await;
    world.stop.cancel();
    world.stop_server.cancel();
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"last words");
    drop(server);
    expect_reset(stuck).await;
    for task in world.tasks {
        tokio::time::timeout(Duration::from_secs(2), task).await.unwrap().unwrap();
    }
    assert_eq!(world.client.pool.connections(), 0, "nothing holds the pod's namespace");
    let refused = TcpStream::connect(world.outbound).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}
