//! The part of transfers that runs in the pods.
//!
//! A *lane* is a port and a list of connection numbers. The client opens a lane's connections one after the other, so the
//! server knows the number of each that it accepts without a byte of it, and its findings go home over the lab's control
//! channel: the connection itself carries nothing but payload.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::plan::{Plan, Rules};
use super::play::{End, Outcome, play};

/// The port of the first lane.
pub(crate) const FIRST_PORT: u16 = 7000;
const CONNECT: Duration = Duration::from_secs(20);

/// Connections, by lane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) rules: Rules,
    pub(crate) lanes: Vec<Vec<u64>>,
}

impl Batch {
    fn lanes(&self) -> impl Iterator<Item = (u16, Vec<u64>)> + '_ {
        (FIRST_PORT..).zip(self.lanes.iter().cloned())
    }
}

/// The server's addresses: IPv4 and IPv6.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Targets {
    pub(crate) pod: [IpAddr; 2],
    pub(crate) service: [IpAddr; 2],
}

impl Targets {
    fn of(&self, plan: &Plan) -> IpAddr {
        let ips = if plan.virtual_address { self.service } else { self.pod };
        ips[usize::from(plan.ipv6)]
    }
}

/// What a pod is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// Listen for a batch.
    Serve(Batch),
    /// Open the connections of a batch; answers with their outcomes. A lane ends with the first that fails.
    Open(Batch, Targets),
    /// Stop listening, and answer with the outcomes of the batch.
    Served,
}

/// What the server of a batch answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) outcomes: Vec<Outcome>,
    /// Connections that no client opened.
    pub(crate) surplus: u64,
}

/// The batch being served.
#[derive(Default)]
pub(crate) struct Serving {
    accepting: Mutex<JoinSet<()>>,
    found: Arc<Mutex<Served>>,
    playing: Arc<Mutex<JoinSet<()>>>,
}

/// Does the task.
pub(crate) async fn obey(task: Task, serving: &Serving) -> Value {
    match task {
        Task::Serve(batch) => match serve(&batch, serving) {
            Ok(()) => Value::Null,
            Err(error) => json!({"error": format!("the server cannot listen: {error}")}),
        },
        Task::Open(batch, targets) => json!(open(&batch, &targets).await),
        Task::Served => json!(served(serving).await),
    }
}

fn serve(batch: &Batch, serving: &Serving) -> std::io::Result<()> {
    let mut accepting = serving.accepting.lock().unwrap_or_else(PoisonError::into_inner);
    for (port, numbers) in batch.lanes() {
        let listener = crate::pod_process::listen(port)?;
        let (found, playing) = (serving.found.clone(), serving.playing.clone());
        accepting.spawn(accept(listener, batch.rules, numbers, found, playing));
    }
    Ok(())
}

async fn accept(
    listener: TcpListener,
    rules: Rules,
    numbers: Vec<u64>,
    found: Arc<Mutex<Served>>,
    playing: Arc<Mutex<JoinSet<()>>>,
) {
    let mut numbers = numbers.into_iter();
    loop {
        let Ok((stream, client)) = listener.accept().await else { continue };
        let Some(number) = numbers.next() else {
            found.lock().unwrap_or_else(PoisonError::into_inner).surplus += 1;
            continue;
        };
        let found = found.clone();
        playing.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            let mut outcome = play(stream, &rules.plan(number), End::Server).await;
            outcome.client = Some(SocketAddr::new(client.ip().to_canonical(), client.port()));
            found.lock().unwrap_or_else(PoisonError::into_inner).outcomes.push(outcome);
        });
    }
}

async fn served(serving: &Serving) -> Served {
    let mut accepting =
        std::mem::take(&mut *serving.accepting.lock().unwrap_or_else(PoisonError::into_inner));
    accepting.shutdown().await;
    let mut playing = std::mem::take(&mut *serving.playing.lock().unwrap_or_else(PoisonError::into_inner));
    while playing.join_next().await.is_some() {} // each has its own time limit
    std::mem::take(&mut *serving.found.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn open(batch: &Batch, targets: &Targets) -> Vec<Outcome> {
    let mut lanes = JoinSet::new();
    for (port, numbers) in batch.lanes() {
        lanes.spawn(lane(batch.rules, port, numbers, targets.clone()));
    }
    lanes.join_all().await.into_iter().flatten().collect()
}

async fn lane(rules: Rules, port: u16, numbers: Vec<u64>, targets: Targets) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for number in numbers {
        let plan = rules.plan(number);
        let outcome = one(&plan, SocketAddr::new(targets.of(&plan), port)).await;
        // Whether the server has seen a connection that failed is not known: what it counts no longer fits.
        let failed = !outcome.wrong.is_empty();
        outcomes.push(outcome);
        if failed {
            break;
        }
    }
    outcomes
}

async fn one(plan: &Plan, to: SocketAddr) -> Outcome {
    let failed = |wrong| Outcome { number: plan.number, wrong, ..Outcome::default() };
    let stream = match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
        Err(_) => return failed(format!("connect() took more than {} s", CONNECT.as_secs())),
        Ok(Err(error)) => return failed(format!("connect() failed: {error}")),
        Ok(Ok(stream)) => stream,
    };
    let local = stream.local_addr().ok();
    let mut outcome = play(stream, plan, End::Client).await;
    outcome.client = local;
    outcome
}
