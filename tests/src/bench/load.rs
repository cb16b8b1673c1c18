//! The programs inside the pods: `culvert-lab load TASK`. Blocking sockets and a thread for each connection: nothing of a
//! runtime stands between the clock and the kernel.
//!
//! * [`serve`]: the servers, each service on its own ports. [`rr`], [`stream`], [`connect`]: the clients.

mod connect;
mod rr;
mod serve;
mod stream;

use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

pub(crate) use serve::{ECHO, FIRST_PORT, LAST_PORT};

/// What stands still for so long is broken.
const STUCK: Duration = Duration::from_secs(10);
/// Latencies are kept in nanoseconds, to 1 %.
const LONGEST: u64 = 60_000_000_000;

/// What such a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// Serve until standard input ends.
    Serve,
    Rr {
        to: IpAddr,
        size: u32,
        connections: u16,
        time: Time,
    },
    Stream {
        to: IpAddr,
        write: u32,
        flows: u16,
        time: Time,
    },
    Connect {
        to: IpAddr,
        parallel: u16,
        time: Time,
    },
    /// Opens connections, says so, and holds them until standard input ends.
    Idle {
        to: IpAddr,
        count: u32,
    },
    First {
        to: IpAddr,
    },
}

/// How long, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Time {
    /// Before anything counts.
    pub(crate) warm: u64,
    pub(crate) measured: u64,
}

impl Time {
    fn window(self) -> Window {
        let begin = Instant::now() + Duration::from_millis(self.warm);
        Window { begin, end: begin + Duration::from_millis(self.measured) }
    }
}

/// What counts happens in here.
#[derive(Clone, Copy)]
struct Window {
    begin: Instant,
    end: Instant,
}

/// What a client found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Outcome {
    /// In the workload's unit.
    pub(crate) value: f64,
    /// The second connection of [`Task::First`], in milliseconds.
    pub(crate) second: Option<f64>,
    /// Microseconds.
    pub(crate) latency: Option<Latency>,
    /// Connections that were opened, warm-up and all.
    pub(crate) connections: u64,
    /// Requests, warm-up and all.
    pub(crate) requests: u64,
    /// Payload bytes, both ways, warm-up and all.
    pub(crate) bytes: u64,
    pub(crate) failures: u64,
    /// The first failure.
    pub(crate) error: String,
}

/// How long answers took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// Does the task, which comes as JSON; prints an [`Outcome`] as JSON.
pub(crate) fn run(task: &str) -> Result<()> {
    let outcome = match serde_json::from_str::<Task>(task)? {
        Task::Serve => return serve::run(),
        Task::Idle { to, count } => return hold(to, count),
        Task::First { to } => first(to),
        Task::Rr { to, size, connections, time } => rr::run(to, size as usize, connections, time),
        Task::Stream { to, write, flows, time } => stream::run(to, write as usize, flows, time),
        Task::Connect { to, parallel, time } => connect::run(to, parallel, time),
    };
    print(&outcome.unwrap_or_else(|error| Outcome::failed(&error)))
}

fn print(outcome: &Outcome) -> Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", serde_json::to_string(outcome)?)?;
    Ok(stdout.flush()?)
}

impl Outcome {
    fn failed(error: &io::Error) -> Self {
        Self { failures: 1, error: error.to_string(), ..Self::default() }
    }

    /// What a thread of this client counted, or why it ended.
    fn add(&mut self, counted: io::Result<Counted>, latencies: &mut Latencies) {
        match counted {
            Ok(counted) => {
                self.requests += counted.requests;
                self.value += counted.measured as f64;
                latencies.0.add(&counted.latencies.0).ok(); // same bounds
            }
            Err(error) => {
                self.failures += 1;
                self.error = error.to_string();
            }
        }
    }

    /// `value` is a count until now, and becomes a rate.
    fn rate(mut self, time: Time, latencies: &Latencies) -> Self {
        self.value *= 1000.0 / time.measured.max(1) as f64;
        self.latency = Some(latencies.summary());
        self
    }
}

/// What one thread did.
struct Counted {
    /// Done inside the window.
    measured: u64,
    /// All.
    requests: u64,
    latencies: Latencies,
}

impl Counted {
    fn new() -> Self {
        Self { measured: 0, requests: 0, latencies: Latencies::new() }
    }

    /// A request that was made from `from` to `to`. False when it is time to end.
    fn take(&mut self, window: Window, from: Instant, to: Instant) -> bool {
        self.requests += 1;
        if from >= window.begin {
            self.latencies.record(to - from);
            self.measured += u64::from(to <= window.end);
        }
        to < window.end
    }
}

struct Latencies(Histogram<u32>);

impl Latencies {
    fn new() -> Self {
        // Two digits: small enough to stay in the processor's cache.
        #[expect(clippy::expect_used, reason = "fixed bounds, valid by the crate's documentation")]
        Self(Histogram::new_with_bounds(1, LONGEST, 2).expect("bounds"))
    }

    fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn summary(&self) -> Latency {
        let at = |share| self.0.value_at_quantile(share) as f64 / 1e3;
        Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

fn open(to: IpAddr, port: u16) -> io::Result<TcpStream> {
    let to = SocketAddr::new(to, port);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(STUCK))?;
    socket.set_write_timeout(Some(STUCK))?; // for connect(), too
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Runs `work` on a thread for each of `inputs`, and waits for all.
fn each<I: Send, T: Send>(inputs: Vec<I>, work: impl Fn(I) -> io::Result<T> + Sync) -> Vec<io::Result<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = inputs.into_iter().map(|input| scope.spawn(move || work(input))).collect();
        let gone = |_| Err(io::Error::other("a thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(gone)).collect()
    })
}

/// Opens connections, and sees a byte come back on each.
fn hold(to: IpAddr, count: u32) -> Result<()> {
    let mut held = Vec::new();
    let mut outcome = Outcome::default();
    for _ in 0..count {
        match open(to, ECHO).and_then(|mut stream| connect::ask(&mut stream).map(|()| stream)) {
            Ok(stream) => held.push(stream),
            Err(error) => {
                outcome = Outcome::failed(&error);
                break;
            }
        }
    }
    outcome.connections = held.len() as u64;
    outcome.bytes = 2 * outcome.connections;
    print(&outcome)?;
    let _ = io::stdin().lock().read_line(&mut String::new());
    Ok(())
}

fn first(to: IpAddr) -> io::Result<Outcome> {
    let once = || -> io::Result<f64> {
        let begun = Instant::now();
        connect::ask(&mut open(to, ECHO)?)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    };
    let (value, second) = (once()?, Some(once()?));
    Ok(Outcome { value, second, connections: 2, requests: 2, bytes: 4, ..Outcome::default() })
}

#[cfg(test)]
mod tests;
