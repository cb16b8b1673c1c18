//! As many bytes as go, measured where they arrive.

use std::io::{self, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::time::Instant;

use super::serve::{Drained, STREAM, pattern};
use super::{Outcome, Time, Window, each, open};

pub(super) fn run(to: IpAddr, write: usize, flows: u16, time: Time) -> io::Result<Outcome> {
    let streams = (0..flows).map(|_| open(to, STREAM)).collect::<io::Result<Vec<_>>>()?;
    let window = time.window();
    let mut outcome = Outcome { connections: flows.into(), ..Outcome::default() };
    let (mut bytes, mut from, mut last) = (0, u64::MAX, 0);
    for drained in each(streams, |stream| send(stream, write, time, window)) {
        match drained {
            Ok(drained) => {
                outcome.bytes += drained.all;
                bytes += drained.counted;
                from = from.min(drained.from);
                last = last.max(drained.to);
            }
            Err(error) => {
                outcome.failures += 1;
                outcome.error = error.to_string();
            }
        }
    }
    // Bits in a nanosecond are Gbit in a second.
    outcome.value = (bytes * 8) as f64 / last.saturating_sub(from).max(1) as f64;
    Ok(outcome)
}

fn send(mut stream: TcpStream, write: usize, time: Time, window: Window) -> io::Result<Drained> {
    let buffer: Vec<u8> = (0..write as u64).map(pattern).collect();
    stream.write_all(&(time.warm * 1_000_000).to_le_bytes())?;
    let mut sent = 0;
    while Instant::now() < window.end {
        stream.write_all(&buffer)?;
        sent += write as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let drained = Drained::read(&mut stream)?;
    if drained.all != sent {
        return Err(io::Error::other(format!("{sent} bytes were sent, {} arrived", drained.all)));
    }
    if drained.counted == 0 {
        return Err(io::Error::other("nothing arrived after the warm-up"));
    }
    Ok(drained)
}
