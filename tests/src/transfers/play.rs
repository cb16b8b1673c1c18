//! One end of a connection: says what it should, hears what it should, and nothing else.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::sleep;

use super::plan::{Ending, Part, Plan, fill};
use crate::dice::Dice;

/// Beside the time that the bytes may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is slow for any path.
const SLOWEST: u64 = 2 << 20;
const CHUNK: usize = 256 << 10;
/// A slow reader takes so much at a time, so often, and rests that long in between.
const SLOW_READ: usize = 8 << 10;
const SLOW_READS: u32 = 100;
const REST: Duration = Duration::from_millis(1);

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

/// What came of one end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) number: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// SHA-256 of what was sent and of what was received, in hex.
    pub(crate) sent_digest: String,
    pub(crate) received_digest: String,
    /// The client's end of the connection: its own port, or what the server's accept() said.
    pub(crate) client: Option<std::net::SocketAddr>,
    /// What went wrong; empty when nothing did.
    pub(crate) wrong: String,
}

/// How far the other end's direction has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    Something,
    AllBytes,
    TheEnd,
}

/// Plays `end` of the plan.
pub(crate) async fn play(mut stream: TcpStream, plan: &Plan, end: End) -> Outcome {
    let (own, other) = match end {
        End::Client => (&plan.client, &plan.server),
        End::Server => (&plan.server, &plan.client),
    };
    let begins_after = match (plan.ending, end) {
        (Ending::ClientFirst, End::Server) | (Ending::ServerFirst, End::Client) => Heard::TheEnd,
        _ => Heard::Something,
    };
    let ends_after = if plan.ending == Ending::AfterAll { Heard::AllBytes } else { Heard::Something };
    let (tell, heard) = watch::channel(Heard::Something);
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let (read, write) = stream.split();
    let dice = Dice::new(own.key, plan.number);
    let moments = Moments { begins_after, ends_after, heard };
    let limit = PATIENCE + Duration::from_secs((own.size + other.size) / SLOWEST);
    let both = async {
        tokio::try_join!(say(write, own, moments, dice, &sent), hear(read, other, own, &tell, &received))
    };
    let result = tokio::time::timeout(limit, both).await;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut outcome =
        Outcome { number: plan.number, sent: count(&sent), received: count(&received), ..Outcome::default() };
    match result {
        Ok(Ok((said, heard))) => {
            (outcome.sent_digest, outcome.received_digest) = (said, heard);
        }
        Ok(Err(wrong)) => outcome.wrong = wrong,
        Err(_) => {
            outcome.wrong = format!(
                "not done after {} s: sent {} of {} bytes, received {} of {}",
                limit.as_secs(),
                outcome.sent,
                own.size,
                outcome.received,
                other.size
            );
        }
    }
    outcome
}

/// When to begin and when to end.
struct Moments {
    begins_after: Heard,
    ends_after: Heard,
    heard: watch::Receiver<Heard>,
}

impl Moments {
    async fn wait(&mut self, moment: Heard) {
        // When the reader fails, nobody waits any more: this is dropped.
        let _ = self.heard.wait_for(|heard| *heard >= moment).await;
    }
}

async fn pause(millis: u64) {
    if millis > 0 {
        sleep(Duration::from_millis(millis)).await;
    }
}

/// Sends all and ends. Returns the digest.
async fn say(
    mut write: WriteHalf<'_>,
    own: &Part,
    mut moments: Moments,
    mut dice: Dice,
    sent: &AtomicU64,
) -> Result<String, String> {
    moments.wait(moments.begins_after).await;
    pause(own.pauses[0]).await;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    let mut middle = own.size / 2;
    while at < own.size {
        let length = dice.between(1, own.largest_write).min(own.size - at);
        let length = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        let part = &mut chunk[..length];
        fill(own.key, at, part);
        hash.update(&*part);
        let failed = |error: io::Error| {
            format!("writing failed after {} of {} bytes: {error}", sent.load(Ordering::Relaxed), own.size)
        };
        write.write_all(part).await.map_err(failed)?;
        at += length as u64;
        sent.store(at, Ordering::Relaxed);
        if at >= middle {
            pause(own.pauses[1]).await;
            middle = u64::MAX;
        }
    }
    moments.wait(moments.ends_after).await;
    pause(own.pauses[2]).await;
    // Who has heard the end and has nothing left to say may as well close: its last bytes must arrive all the same.
    let closes = moments.begins_after == Heard::TheEnd && !own.shuts;
    if !closes {
        write.shutdown().await.map_err(|error| format!("shutdown failed: {error}"))?;
    }
    Ok(hex(&hash.finalize()))
}

/// Receives all and the end. Returns the digest.
async fn hear(
    mut read: ReadHalf<'_>,
    other: &Part,
    own: &Part,
    tell: &watch::Sender<Heard>,
    received: &AtomicU64,
) -> Result<String, String> {
    let mut check = Check::new(other.key, other.size);
    let mut chunk = vec![0; if own.slow_reader { SLOW_READ } else { CHUNK }];
    let mut rests = if own.slow_reader { SLOW_READS } else { 0 };
    if check.is_complete() {
        tell.send_replace(Heard::AllBytes);
    }
    loop {
        if rests > 0 {
            rests -= 1;
            sleep(REST).await;
        }
        match read.read(&mut chunk).await {
            Ok(0) => break,
            Ok(length) => check.take(&chunk[..length])?,
            Err(error) => return Err(check.broken(&error)),
        }
        received.store(check.at, Ordering::Relaxed);
        if check.is_complete() {
            tell.send_replace(Heard::AllBytes);
        }
    }
    let digest = check.end()?;
    tell.send_replace(Heard::TheEnd);
    Ok(digest)
}

/// Compares what comes with what the seed says.
struct Check {
    key: u64,
    size: u64,
    at: u64,
    hash: Sha256,
    wanted: Vec<u8>,
}

impl Check {
    fn new(key: u64, size: u64) -> Self {
        Self { key, size, at: 0, hash: Sha256::new(), wanted: Vec::new() }
    }

    fn is_complete(&self) -> bool {
        self.at == self.size
    }

    fn take(&mut self, got: &[u8]) -> Result<(), String> {
        if got.len() as u64 > self.size - self.at {
            return Err(format!("more than the {} bytes that were sent arrived", self.size));
        }
        self.wanted.resize(got.len(), 0);
        fill(self.key, self.at, &mut self.wanted);
        if got != self.wanted {
            let same = got.iter().zip(&self.wanted).take_while(|(a, b)| a == b).count();
            return Err(format!(
                "byte {} of {} is not the one that was sent",
                self.at + same as u64,
                self.size
            ));
        }
        self.hash.update(got);
        self.at += got.len() as u64;
        Ok(())
    }

    fn end(self) -> Result<String, String> {
        if !self.is_complete() {
            return Err(format!("the end came after {} of {} bytes", self.at, self.size));
        }
        Ok(hex(&self.hash.finalize()))
    }

    fn broken(&self, error: &io::Error) -> String {
        if self.is_complete() {
            format!("all {} bytes arrived, then instead of the end: {error}", self.size)
        } else {
            format!("broken after {} of {} bytes: {error}", self.at, self.size)
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
