//! What an app says at once goes with the answer to CONNECT; who says something else, or nothing, loses nothing by it.

use super::*;

const HELLO: &[u8] = b"hello";

/// Clients that speak at once, one after the other, and what the app does about it.
async fn with_apps<F: Future<Output = ()>>(
    world: &World,
    mut app: impl FnMut(TcpStream) -> F,
    client: impl AsyncFn(TcpStream),
) {
    let listener = world.app().await;
    for _ in 0..40 {
        let mut tcp = world.connect().await;
        tcp.write_all(HELLO).await.unwrap();
        let serve = async {
            let (accepted, _) = listener.accept().await.unwrap();
            app(accepted).await;
        };
        tokio::join!(serve, client(tcp));
    }
}

async fn hear(app: &mut TcpStream, what: &[u8]) {
    let mut heard = vec![0; what.len()];
    app.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, what);
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_whenever_the_app_answers() {
    let world = World::new().await;
    let mut pauses = [0, 1, 3, 0].into_iter().cycle().map(Duration::from_millis);
    let app = |mut tcp: TcpStream| {
        let pause = pauses.next().unwrap_or_default();
        async move {
            hear(&mut tcp, HELLO).await;
            tokio::time::sleep(pause).await;
            tcp.write_all(b"reply").await.unwrap();
            hear(&mut tcp, b"bye").await;
        }
    };
    let client = async |mut tcp: TcpStream| {
        hear(&mut tcp, b"reply").await;
        tcp.write_all(b"bye").await.unwrap();
        assert_eq!(read_to_end(&mut tcp).await.unwrap(), b"");
    };
    with_apps(&world, app, client).await;
    let exact = |side: Side| {
        move |f: &culvert::proxy::TunnelFlow| {
            f.side == side && matches!(f.stage, Stage::Closed { bytes_sent: 8, bytes_received: 5, .. })
        }
    };
    world.mesh.flow("closed at the source", exact(Side::Source)).await;
    world.mesh.flow("closed at the destination", exact(Side::Destination)).await;
}

#[tokio::test]
async fn an_app_that_wants_more_before_it_answers_gets_it() {
    let world = World::new().await;
    let app = |mut tcp: TcpStream| async move {
        hear(&mut tcp, b"hello and more").await;
        tcp.write_all(b"reply").await.unwrap();
    };
    let client = async |mut tcp: TcpStream| {
        tokio::time::sleep(Duration::from_micros(300)).await;
        tcp.write_all(b" and more").await.unwrap();
        assert_eq!(read_to_end(&mut tcp).await.unwrap(), b"reply");
    };
    with_apps(&world, app, client).await;
}

#[tokio::test]
async fn an_app_that_resets_instead_of_answering_is_a_reset() {
    let world = World::new().await;
    let app = |mut tcp: TcpStream| async move {
        hear(&mut tcp, HELLO).await;
        reset(tcp);
    };
    with_apps(&world, app, async |tcp| expect_reset(tcp).await).await;
}

#[tokio::test]
async fn an_app_that_only_hangs_up_has_ended_in_order() {
    let world = World::new().await;
    let app = |mut tcp: TcpStream| async move { hear(&mut tcp, HELLO).await };
    let client = async |mut tcp: TcpStream| assert_eq!(read_to_end(&mut tcp).await.unwrap(), b"");
    with_apps(&world, app, client).await;
}
