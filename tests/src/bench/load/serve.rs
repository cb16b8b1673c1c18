//! The servers.

use std::io::{self, BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

use super::Outcome;
use crate::pod_process::bind;

/// Echo servers for messages of one size each.
const MESSAGES: [(u16, usize); 3] = [(7001, 1), (7002, 64), (7003, 16 << 10)];
/// The end of streams.
pub(super) const STREAM: u16 = 7010;
/// Served by the lab's own process of each pod.
pub(crate) const ECHO: u16 = 7020;
/// One byte there and back. Many ports: a client that connects thousands of times a second needs more pairs of ports than
/// one gives, while the closed ones wait for a minute (TIME_WAIT).
pub(super) const ONCE: std::ops::Range<u16> = 7100..7356;
/// All of these are within.
pub(crate) const FIRST_PORT: u16 = 7001;
pub(crate) const LAST_PORT: u16 = ONCE.end - 1;

const STACK: usize = 128 << 10;

/// The port of the echo server for messages of `size` bytes.
pub(super) fn message_port(size: usize) -> io::Result<u16> {
    let found = MESSAGES.iter().find(|(_, of)| *of == size);
    found.map(|(port, _)| *port).ok_or_else(|| io::Error::other(format!("no server for {size} bytes")))
}

/// Serves until standard input ends.
pub(super) fn run() -> Result<()> {
    for (port, size) in MESSAGES {
        listen(port, move |stream| on_thread(move || echo(stream, size)))?;
    }
    listen(STREAM, |stream| on_thread(move || drain(stream)))?;
    for port in ONCE {
        // A server of its own for each port has nobody to wait for.
        listen(port, |stream| once(stream).unwrap_or_default())?;
    }
    super::print(&Outcome::default())?;
    let _ = io::stdin().lock().read_line(&mut String::new());
    Ok(())
}

fn listen(port: u16, serve: impl Fn(TcpStream) + Send + 'static) -> Result<()> {
    let listener: TcpListener = bind(port).with_context(|| format!("port {port}"))?;
    let accept = move || {
        for stream in listener.incoming().flatten() {
            if stream.set_nodelay(true).is_ok() {
                serve(stream);
            }
        }
    };
    thread::Builder::new().stack_size(STACK).spawn(accept)?;
    Ok(())
}

/// What goes wrong here goes wrong at the client, too, and is told there.
fn on_thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let _ = thread::Builder::new().stack_size(STACK).spawn(work);
}

fn echo(mut stream: TcpStream, size: usize) -> io::Result<()> {
    let mut message = vec![0; size];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}

fn once(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    // The client closes first.
    stream.read(&mut byte).map(|_| ())
}

/// What the end of a stream has to say: four numbers of 8 bytes.
pub(super) struct Drained {
    /// Payload bytes, all.
    pub(super) all: u64,
    /// Those that came after the warm-up.
    pub(super) counted: u64,
    /// CLOCK_MONOTONIC, nanoseconds: the end of the warm-up and the last byte.
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Drained {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let numbers = [self.all, self.counted, self.from, self.to];
        to.write_all(&numbers.map(u64::to_le_bytes).concat())
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut number = || -> io::Result<u64> {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        };
        Ok(Self { all: number()?, counted: number()?, from: number()?, to: number()? })
    }
}

/// The byte that a stream has at `offset`: every write of a power of two bytes is the same one.
pub(super) fn pattern(offset: u64) -> u8 {
    offset as u8
}

/// Reads a stream to its end. Its first eight bytes are the length of the warm-up, in nanoseconds.
fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    let begin = now()?.saturating_add(u64::from_le_bytes(head));
    let mut seen = Drained { all: 0, counted: 0, from: 0, to: 0 };
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = stream.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
        let ends = [bytes.first(), bytes.last()].map(|byte| byte.copied().unwrap_or_default());
        if ends != [pattern(seen.all), pattern(seen.all + n as u64 - 1)] {
            return Err(io::Error::other("bytes came out of order")); // and the client gets no report
        }
        let time = now()?;
        if seen.from != 0 {
            seen.counted += n as u64;
        } else if time >= begin {
            seen.from = time;
        }
        seen.all += n as u64;
        seen.to = time;
    }
    seen.write(&mut stream)
}

/// CLOCK_MONOTONIC in nanoseconds: the same in all processes.
fn now() -> io::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let number = |n: i64| u64::try_from(n).map_err(io::Error::other);
    Ok(number(time.tv_sec())? * 1_000_000_000 + number(time.tv_nsec())?)
}
