//! The part of a soak that runs in the pods: flows that try again and again, and remember what came of each try.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::dice::Dice;
use crate::pod_process::classify;

/// The port of the echo servers.
pub(crate) const PORT: u16 = 9000;
const LIMIT: Duration = Duration::from_secs(5);
/// A kept connection is replaced after so many micros.
const KEPT: u64 = 10_000_000;

/// How a flow uses connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Style {
    /// A new one each time.
    #[default]
    New,
    /// One for some seconds.
    Kept,
    /// One as long as it holds.
    Long,
}

/// A client that tries steadily.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Flow {
    pub(crate) id: u32,
    pub(crate) to: SocketAddr,
    pub(crate) style: Style,
    /// Milliseconds between two tries.
    pub(crate) every: u64,
}

/// One try.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) flow: u32,
    pub(crate) style: Style,
    /// Microseconds since 1970: when the connection was opened; when it was last known to work, or this try began; when
    /// the try ended.
    pub(crate) opened: u64,
    pub(crate) since: u64,
    pub(crate) ended: u64,
    /// The client's own port, 0 when it never had one.
    pub(crate) port: u16,
    /// Empty when all went well.
    pub(crate) error: String,
}

/// What a pod is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// Begin these flows.
    Start(Vec<Flow>),
    /// End all flows, when the tries that are going on have ended.
    Stop,
    /// The tries that have ended since the last call.
    Take,
}

/// The flows that are going on.
#[derive(Default)]
pub(crate) struct Flows {
    going: Mutex<HashMap<u32, JoinHandle<()>>>,
    stop: Arc<tokio::sync::Notify>,
    done: Arc<Mutex<Vec<Attempt>>>,
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Does the task.
pub(crate) async fn obey(task: Task, flows: &Flows) -> Value {
    match task {
        Task::Start(list) => {
            let mut going = flows.going.lock().unwrap_or_else(PoisonError::into_inner);
            for flow in list {
                going.insert(flow.id, tokio::spawn(run(flow, flows.stop.clone(), flows.done.clone())));
            }
            Value::Null
        }
        Task::Stop => {
            flows.stop.notify_waiters();
            let going = std::mem::take(&mut *flows.going.lock().unwrap_or_else(PoisonError::into_inner));
            for task in going.into_values() {
                let _ = task.await; // it ends by itself
            }
            Value::Null
        }
        Task::Take => json!(std::mem::take(&mut *flows.done.lock().unwrap_or_else(PoisonError::into_inner))),
    }
}

struct Open {
    stream: TcpStream,
    opened: u64,
    used: u64,
}

async fn run(flow: Flow, stop: Arc<tokio::sync::Notify>, done: Arc<Mutex<Vec<Attempt>>>) {
    let mut ticks = interval(Duration::from_millis(flow.every.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut dice = Dice::new(u64::from(flow.id), now());
    let mut open: Option<Open> = None;
    let mut stopped = std::pin::pin!(stop.notified());
    stopped.as_mut().enable();
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => return,
            _ = ticks.tick() => {}
        }
        if flow.style == Style::New || (flow.style == Style::Kept && open.as_ref().is_some_and(Open::is_old))
        {
            open = None;
        }
        let begun = now();
        let (opened, since) = open.as_ref().map_or((begun, begun), |open| (open.opened, open.used));
        let mut attempt = Attempt { flow: flow.id, style: flow.style, opened, since, ..Attempt::default() };
        let result = timeout(LIMIT, once(flow.to, &mut open, dice.next(), &mut attempt.port)).await;
        attempt.ended = now();
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => attempt.error = classify(&error),
            Err(_) => attempt.error = "timeout".to_owned(),
        }
        if !attempt.error.is_empty() {
            open = None;
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
    }
}

impl Open {
    fn is_old(&self) -> bool {
        now().saturating_sub(self.opened) > KEPT
    }
}

/// Sends a word and wants it back.
async fn once(to: SocketAddr, open: &mut Option<Open>, word: u64, port: &mut u16) -> io::Result<()> {
    if open.is_none() {
        let opened = now();
        let stream = TcpStream::connect(to).await?;
        *open = Some(Open { stream, opened, used: opened });
    }
    let Some(connection) = open.as_mut() else { return Ok(()) };
    *port = connection.stream.local_addr()?.port();
    connection.stream.write_all(&word.to_le_bytes()).await?;
    let mut answer = [0; 8];
    match connection.stream.read_exact(&mut answer).await {
        // To the app an end that comes too early is as bad as a reset.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        result => result.map(drop)?,
    }
    if answer != word.to_le_bytes() {
        return Err(io::Error::other("another answer than was asked for"));
    }
    connection.used = now();
    Ok(())
}
