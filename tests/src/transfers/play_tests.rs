//! The verifier on real sockets, with something in between that does what must never happen.

use std::net::Ipv6Addr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::plan::{Ending, Plan, Rules};
use super::play::{End, Outcome, play};

/// What is done to the bytes from the client to the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    FlipBit,
    LoseTail,
    SwapBytes,
    AddByte,
    EarlyEnd,
    ResetInsteadOfEnd,
    ResetInTheMiddle,
}

const SIZE: u64 = 100_000;

fn plan(ending: Ending) -> Plan {
    let mut plan = Rules { seed: 3, max_size: SIZE }.plan(0);
    for part in [&mut plan.client, &mut plan.server] {
        part.size = SIZE;
        part.largest_write = 8192;
        part.slow_reader = false;
    }
    plan.ending = ending;
    plan
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// Carries bytes both ways and spoils those to the server.
async fn carry(mut client: TcpStream, mut server: TcpStream, fault: Fault) {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    client.read_exact(&mut bytes).await.unwrap();
    match fault {
        Fault::FlipBit => bytes[70_001] ^= 4,
        Fault::SwapBytes => bytes.swap(500, 501),
        Fault::LoseTail => bytes.truncate(bytes.len() - 1),
        Fault::AddByte => bytes.push(0),
        Fault::EarlyEnd | Fault::ResetInTheMiddle => bytes.truncate(1000),
        Fault::None | Fault::ResetInsteadOfEnd => {}
    }
    server.write_all(&bytes).await.unwrap();
    if matches!(fault, Fault::ResetInTheMiddle | Fault::ResetInsteadOfEnd) {
        // What was written must have been read: a reset throws away what waits.
        tokio::time::sleep(Duration::from_millis(50)).await;
        SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        return;
    }
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

async fn through(fault: Fault, ending: Ending) -> (Outcome, Outcome) {
    let plan = plan(ending);
    let (client, front) = pair().await;
    let (back, server) = pair().await;
    tokio::spawn(carry(front, back, fault));
    tokio::join!(play(client, &plan, End::Client), play(server, &plan, End::Server))
}

#[tokio::test]
async fn what_arrives_whole_is_right() {
    for ending in [Ending::ClientFirst, Ending::AtOnce, Ending::AfterAll] {
        let (client, server) = through(Fault::None, ending).await;
        assert_eq!((client.wrong.as_str(), server.wrong.as_str()), ("", ""), "{ending:?}");
        assert_eq!((client.sent, server.received), (SIZE, SIZE));
        assert_eq!(client.sent_digest, server.received_digest);
        assert_eq!(server.sent_digest, client.received_digest);
        assert_ne!(client.sent_digest, server.sent_digest);
    }
}

#[tokio::test]
async fn each_fault_is_named() {
    for (fault, words) in [
        (Fault::FlipBit, "byte 70001 of 100000 is not the one that was sent"),
        (Fault::SwapBytes, "byte 500 of 100000 is not the one that was sent"),
        (Fault::LoseTail, "the end came after 99999 of 100000 bytes"),
        (Fault::EarlyEnd, "the end came after 1000 of 100000 bytes"),
        (Fault::AddByte, "more than the 100000 bytes that were sent arrived"),
        (Fault::ResetInTheMiddle, "broken after 1000 of 100000 bytes: "),
        (Fault::ResetInsteadOfEnd, "all 100000 bytes arrived, then instead of the end: "),
    ] {
        let (_, server) = through(fault, Ending::ClientFirst).await;
        assert!(server.wrong.contains(words), "{fault:?}: {:?}", server.wrong);
    }
}
