//! A server that ends its connections in the middle of a load: frames by hand, for it turns away what is on its way, and lets
//! the rest end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::raw::{ACK, DATA, END_HEADERS, GOAWAY, HEADERS, PING, PREFACE, SETTINGS, frame};
use crate::round_trip;
use crate::world::{DAY, Setup, World, id};

/// HPACK: `:status: 200`.
const OK: &[u8] = &[0x88];

struct Server {
    tls: TlsStream<TcpStream>,
    /// How many tunnels it takes before it says GOAWAY.
    most: u32,
    turned_away: Arc<AtomicU64>,
}

impl Server {
    /// Echoes what its tunnels carry, until the peer hangs up.
    async fn run(mut self) -> std::io::Result<()> {
        self.tls.read_exact(&mut [0; PREFACE.len()]).await?;
        self.tls.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        let (mut taken, mut last) = (0, 0);
        loop {
            let mut head = [0; 9];
            self.tls.read_exact(&mut head).await?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.tls.read_exact(&mut payload).await?;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let answer = match kind {
                SETTINGS | PING if flags & ACK == 0 => {
                    frame(kind, ACK, 0, if kind == PING { &payload } else { &[] })
                }
                HEADERS if taken < self.most => {
                    (taken, last) = (taken + 1, stream);
                    frame(HEADERS, END_HEADERS, stream, OK)
                }
                HEADERS => {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                    let no_error = [last.to_be_bytes(), [0; 4]].concat();
                    frame(GOAWAY, 0, 0, &no_error)
                }
                DATA if stream <= last => frame(DATA, flags, stream, &payload),
                _ => continue,
            };
            self.tls.write_all(&answer).await?;
            self.tls.flush().await?;
        }
    }
}

#[tokio::test]
async fn goaway_in_the_middle_of_a_load_fails_no_connection_and_ends_no_tunnel() {
    const TUNNELS: u64 = 400;
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let setup = Setup { impostor: Some(listener.local_addr().unwrap()), ..Setup::default() };
    let world = Arc::new(World::with(setup).await);
    world.echo().await;
    let settings = world.cert(id("server"), DAY / 24, DAY).accepting().0;
    let turned_away = Arc::new(AtomicU64::new(0));
    let counter = turned_away.clone();
    tokio::spawn(async move {
        for n in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(settings.clone()).accept(tcp).await.unwrap();
            let most = [20, 1, 0, 7][n % 4];
            tokio::spawn(Server { tls, most, turned_away: counter.clone() }.run());
        }
    });
    let mut long_lived = world.connect().await;
    round_trip(&mut long_lived, b"before").await;
    let loads = (0..8).map(|_| {
        let world = world.clone();
        tokio::spawn(async move {
            for _ in 0..TUNNELS / 8 {
                round_trip(&mut world.connect().await, b"x").await;
            }
        })
    });
    for load in loads.collect::<Vec<_>>() {
        load.await.unwrap();
    }
    // It is on the first connection, which has long said GOAWAY.
    round_trip(&mut long_lived, b"after").await;
    assert_eq!(world.client.counters.refused.load(Ordering::Relaxed), 0);
    let (opened, turned_away) = (world.client.pool.opened(), turned_away.load(Ordering::Relaxed));
    // 28 tunnels to four connections, on average.
    assert!(opened >= TUNNELS * 4 / 28, "{opened} connections");
    assert!(turned_away >= opened / 2, "{turned_away} of {opened} connections turned somebody away");
}
