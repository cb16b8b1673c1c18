//! What is tried again, and what is not.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert::hbone::{HboneConfig, accept};
use culvert::identity::Expected;
use culvert::proxy::{Hop, Side, Stage};
use culvert_common::{Decision, Reason};
use http::{Response, StatusCode};
use tokio::net::TcpListener;

use crate::world::{DAY, Setup, VIP, World, eventually, id};
use crate::{expect_reset, round_trip};

fn hop(world: &World, address: &str, account: &str) -> Hop {
    let authority = world.mesh.target.lock().unwrap().unwrap();
    let port = Some(world.hbone.port());
    Hop {
        address: address.parse().unwrap(),
        port,
        expected: (&id(account)).into(),
        authority,
        waypoint: true,
    }
}

fn hasty() -> Setup {
    let hbone = HboneConfig { patience: Duration::from_millis(50), ..HboneConfig::default() };
    Setup { hbone, ..Setup::default() }
}

#[tokio::test]
async fn another_endpoint_is_tried_when_the_first_cannot_be_reached() {
    let world = World::with(hasty()).await;
    world.echo().await;
    let hops = vec![hop(&world, "127.0.0.7", "server"), hop(&world, "127.0.0.3", "server")];
    *world.mesh.hops.lock().unwrap() = hops;
    round_trip(&mut world.connect().await, b"x").await;
    assert_eq!(world.client.counters.refused.load(Ordering::Relaxed), 0);
    assert!(world.mesh.elsewhere.lock().unwrap().is_empty(), "waypoints have no session affinity");
}

#[tokio::test]
async fn the_endpoint_that_worked_is_the_one_to_remember() {
    let world = World::with(hasty()).await;
    world.echo().await;
    let target = world.mesh.target.lock().unwrap().unwrap();
    let hop = |address: &str| Hop { waypoint: false, ..hop(&world, address, "server") };
    *world.mesh.hops.lock().unwrap() = vec![hop("127.0.0.3"), hop("127.0.0.7")];
    round_trip(&mut world.connect().await, b"x").await;
    assert!(world.mesh.elsewhere.lock().unwrap().is_empty(), "the kernel knows where it led the client");
    *world.mesh.hops.lock().unwrap() = vec![hop("127.0.0.7"), hop("127.0.0.3")];
    round_trip(&mut world.connect().await, b"x").await;
    let elsewhere = world.mesh.elsewhere.lock().unwrap().clone();
    let [(netns, requested, went)] = elsewhere[..] else { panic!("{elsewhere:?}") };
    assert_eq!(netns, culvert::sys::own_netns_cookie().unwrap());
    assert_eq!((requested, went), (SocketAddr::new(VIP.into(), target.port()), target));
}

#[tokio::test]
async fn another_identity_may_answer_when_the_service_names_it() {
    let world = World::with(hasty()).await;
    world.echo().await;
    let hop = |others: [&str; 1]| Hop {
        expected: Expected::any(id("endpoint"), Some(others.map(id).into())),
        ..hop(&world, "127.0.0.3", "endpoint")
    };
    *world.mesh.hops.lock().unwrap() = vec![hop(["stranger"])];
    expect_reset(world.connect().await).await;
    let refused = world.mesh.refusal(Reason::WrongPeer).await.error;
    assert!(refused.contains("/sa/endpoint or spiffe://cluster.local/ns/test/sa/stranger, got"), "{refused}");
    *world.mesh.hops.lock().unwrap() = vec![hop(["server"])];
    round_trip(&mut world.connect().await, b"x").await;
}

#[tokio::test]
async fn a_connection_tries_two_endpoints_and_no_more() {
    let world = World::with(hasty()).await;
    world.echo().await;
    let nobody = |address: &str| hop(&world, address, "server");
    let hops = vec![nobody("127.0.0.7"), nobody("127.0.0.6"), nobody("127.0.0.3")];
    *world.mesh.hops.lock().unwrap() = hops;
    expect_reset(world.connect().await).await;
    assert!(world.mesh.refusal(Reason::TunnelFailed).await.error.contains("127.0.0.6"));
}

#[tokio::test]
async fn a_refusal_by_policy_is_final() {
    let world = World::new().await;
    world.echo().await;
    let hops = vec![hop(&world, "127.0.0.3", "server"); 2];
    *world.mesh.hops.lock().unwrap() = hops;
    *world.mesh.decision.lock().unwrap() = Decision::refuse(Reason::NotAllowed);
    expect_reset(world.connect().await).await;
    world.mesh.refusal(Reason::PeerRefused).await;
    let flows = world.mesh.flows.lock().unwrap();
    let asked = flows.iter().filter(|f| f.side == Side::Destination && f.stage == Stage::Refused).count();
    assert_eq!(asked, 1, "{flows:#?}");
}

#[tokio::test]
async fn somebody_else_at_the_first_endpoint_is_final() {
    let world = World::new().await;
    world.echo().await;
    let hops = vec![hop(&world, "127.0.0.3", "other"), hop(&world, "127.0.0.3", "server")];
    *world.mesh.hops.lock().unwrap() = hops;
    expect_reset(world.connect().await).await;
    world.mesh.refusal(Reason::WrongPeer).await;
    assert_eq!(world.client.pool.opened(), 0);
}

/// An HBONE server of the test's own: `serve` gets each connection and its number.
async fn peer<F: Future<Output = ()> + Send + 'static>(
    hbone: HboneConfig,
    serve: impl Fn(usize, culvert::hbone::Accepted) -> F + Send + Sync + 'static,
) -> World {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let setup = Setup { impostor: Some(listener.local_addr().unwrap()), hbone, ..Setup::default() };
    let world = World::with(setup).await;
    world.echo().await;
    let cert = world.cert(id("server"), DAY / 24, DAY);
    tokio::spawn(async move {
        for n in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let accepted = accept(tcp, &cert, &HboneConfig::default()).await.unwrap();
            tokio::spawn(serve(n, accepted));
        }
    });
    world
}

fn ok() -> Response<()> {
    Response::builder().status(StatusCode::OK).body(()).unwrap()
}

/// Sends the first DATA of a tunnel back, and keeps the tunnel.
async fn echo(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<bytes::Bytes>) {
    let mut send = respond.send_response(ok(), false).unwrap();
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        send.send_data(data, false).unwrap();
    }
}

#[tokio::test]
async fn goaway_while_a_tunnel_opens_leads_to_a_new_connection() {
    let world = peer(HboneConfig::default(), |n, mut accepted| async move {
        let mut served = 0;
        while let Some(Ok((request, respond))) = accepted.connection.accept().await {
            served += 1;
            if n == 0 && served == 2 {
                // GOAWAY and the end, without an answer.
                accepted.connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                continue;
            }
            tokio::spawn(echo(request, respond));
        }
    })
    .await;
    let mut first = world.connect().await;
    round_trip(&mut first, b"first").await;
    // It says nothing until its tunnel is open: nothing can have arrived.
    let mut second = world.connect().await;
    eventually("a new connection", || (world.client.pool.opened() == 2).then_some(())).await;
    round_trip(&mut second, b"second").await;
    assert_eq!(world.client.counters.refused.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_request_that_is_not_answered_fails_in_time() {
    let hbone = HboneConfig { response_timeout: Duration::from_millis(200), ..HboneConfig::default() };
    let world = peer(hbone, |_, mut accepted| async move {
        let mut held = Vec::new();
        while let Some(Ok(request)) = accepted.connection.accept().await {
            held.push(request);
        }
    })
    .await;
    expect_reset(world.connect().await).await;
    let flow = world.mesh.refusal(Reason::TunnelFailed).await;
    assert!(flow.error.contains("no answer to CONNECT within 200ms"), "{}", flow.error);
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_noticed_by_pings() {
    let hbone = HboneConfig {
        ping_interval: Duration::from_millis(50),
        ping_timeout: Duration::from_millis(150),
        ..HboneConfig::default()
    };
    let world = peer(hbone, |_, mut accepted| async move {
        let (request, mut respond) = accepted.connection.accept().await.unwrap().unwrap();
        let send = respond.send_response(ok(), false).unwrap();
        // Answers PINGs for a moment, then nothing is read or written any more.
        let _ = tokio::time::timeout(Duration::from_millis(300), accepted.connection.accept()).await;
        std::future::pending::<()>().await;
        drop((request, send));
    })
    .await;
    let app = world.connect().await;
    expect_reset(app).await;
    let pool = &world.client.pool;
    eventually("the dead connection to go", || (pool.connections() == 0).then_some(())).await;
}

/// Resets as ztunnel sends them: CANCEL after END_STREAM is the peer's closed socket, before it an abort.
#[tokio::test]
async fn a_cancelled_stream_is_an_end_after_the_end_and_a_reset_before() {
    for ended in [true, false] {
        let world = peer(HboneConfig::default(), move |_, mut accepted| async move {
            let (request, mut respond) = accepted.connection.accept().await.unwrap().unwrap();
            tokio::spawn(async move { accepted.connection.accept().await.is_none() });
            let mut send = respond.send_response(ok(), false).unwrap();
            send.send_data("answer".into(), ended).unwrap();
            // The app has the answer, and says something that nobody wants.
            let mut body = request.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "late");
            respond_cancel(&mut send, body).await;
        })
        .await;
        let mut app = world.connect().await;
        let mut answer = [0; 6];
        tokio::io::AsyncReadExt::read_exact(&mut app, &mut answer).await.unwrap();
        if ended {
            assert!(crate::read_to_end(&mut app).await.unwrap().is_empty(), "the peer's FIN");
        }
        tokio::io::AsyncWriteExt::write_all(&mut app, b"late").await.unwrap();
        let closed = |f: &culvert::proxy::TunnelFlow| matches!(f.stage, Stage::Closed { .. });
        let flow = world.mesh.flow("closed", closed).await;
        if ended {
            assert_eq!(flow.error, "");
        } else {
            assert!(flow.error.contains("reset the connection"), "{}", flow.error);
            expect_reset(app).await;
        }
    }
}

async fn respond_cancel(send: &mut h2::SendStream<bytes::Bytes>, body: h2::RecvStream) {
    send.send_reset(h2::Reason::CANCEL);
    drop(body);
    tokio::time::sleep(Duration::from_millis(50)).await;
}
