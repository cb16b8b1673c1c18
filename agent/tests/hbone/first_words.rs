//! What an app says at once goes with the request that opens its tunnel, and arrives once or the app is told. Frames by hand: the server
//! breaks off in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_common::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::raw::{ACK, DATA, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame};
use crate::world::{DAY, Setup, World, id};
use crate::{expect_reset, reset, round_trip};

/// HPACK: `:status: 200`.
const OK: &[u8] = &[0x88];
/// RFC 9113, 7.
const REFUSED_STREAM: u32 = 7;

/// What a server does with its second tunnel when the first bytes have come.
#[derive(Clone, Copy, PartialEq)]
enum Second {
    Serve,
    /// The connection ends without an answer.
    Break,
    /// It says that it has not looked at it.
    TurnAway,
}

/// Answers a request only when it has bytes for it, and echoes them.
async fn serve(mut tls: TlsStream<TcpStream>, second: Second, seen: Arc<AtomicU64>) -> std::io::Result<()> {
    tls.read_exact(&mut [0; PREFACE.len()]).await?;
    tls.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let mut open = Vec::new();
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tls.read_exact(&mut payload).await?;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let answer = match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                frame(kind, ACK, 0, if kind == PING { &payload } else { &[] })
            }
            DATA if open.contains(&stream) => frame(DATA, flags, stream, &payload),
            DATA => {
                seen.fetch_add(1, Ordering::Relaxed);
                match second {
                    Second::Break if !open.is_empty() => return Ok(()),
                    Second::TurnAway if !open.is_empty() => {
                        frame(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes())
                    }
                    _ => {
                        open.push(stream);
                        [frame(HEADERS, END_HEADERS, stream, OK), frame(DATA, flags, stream, &payload)]
                            .concat()
                    }
                }
            }
            _ => continue,
        };
        tls.write_all(&answer).await?;
        tls.flush().await?;
    }
}

/// A world whose server does that, on every connection, and how many tunnels had bytes before their answer.
async fn world(second: Second) -> (World, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let setup = Setup { impostor: Some(listener.local_addr().unwrap()), ..Setup::default() };
    let world = World::with(setup).await;
    world.echo().await;
    let settings = world.cert(id("server"), DAY / 24, DAY).accepting().0;
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(settings.clone()).accept(tcp).await.unwrap();
            tokio::spawn(serve(tls, second, counter.clone()));
        }
    });
    (world, seen)
}

/// Speaks at once, or else the server would never answer.
async fn speak_first(world: &World, text: &[u8]) -> TcpStream {
    let mut tcp = world.connect().await;
    round_trip(&mut tcp, text).await;
    tcp
}

#[tokio::test]
async fn they_arrive_before_the_answer_and_the_rest_follows_in_order() {
    let (world, seen) = world(Second::Serve).await;
    let mut tcp = speak_first(&world, b"hello").await;
    round_trip(&mut tcp, b"and on").await;
    // More than goes with the request, and fits into the window that this server never opens again.
    let long: Vec<u8> = (0..60_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut tcp = speak_first(&world, &long).await;
    round_trip(&mut tcp, b"and on").await;
    assert_eq!(seen.load(Ordering::Relaxed), 2);
    tcp.shutdown().await.unwrap();
    drop(tcp);
    let told = |f: &culvert::proxy::TunnelFlow| {
        matches!(f.stage, culvert::proxy::Stage::Closed { bytes_sent: 60_006, .. })
    };
    world.mesh.flow("closed", told).await;
}

#[tokio::test]
async fn when_nobody_knows_whether_they_arrived_they_are_not_said_twice() {
    let (world, seen) = world(Second::Break).await;
    let _first = speak_first(&world, b"first").await;
    let mut tcp = world.connect().await;
    tcp.write_all(b"pay").await.unwrap();
    expect_reset(tcp).await;
    assert_eq!(seen.load(Ordering::Relaxed), 2);
    let flow = world.mesh.refusal(Reason::TunnelFailed).await;
    assert!(flow.error.contains("after the first bytes had left"), "{}", flow.error);
}

#[tokio::test]
async fn what_the_server_says_it_has_not_looked_at_is_said_again() {
    let (world, seen) = world(Second::TurnAway).await;
    let _first = speak_first(&world, b"first").await;
    let mut second = speak_first(&world, b"second").await;
    round_trip(&mut second, b"and on").await;
    assert_eq!(seen.load(Ordering::Relaxed), 3, "once turned away");
    assert_eq!(world.client.counters.refused.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_reset_before_the_tunnel_is_open_is_no_orderly_end() {
    let world = World::new().await;
    let app = world.app().await;
    for _ in 0..20 {
        reset(world.connect().await);
        let (server, _) = app.accept().await.unwrap();
        expect_reset(server).await;
    }
}
