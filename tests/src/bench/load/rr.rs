//! Messages there and back.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Instant;

use super::serve::message_port;
use super::{Counted, Latencies, Outcome, Time, Window, each, open};

pub(super) fn run(to: IpAddr, size: usize, connections: u16, time: Time) -> io::Result<Outcome> {
    let port = message_port(size)?;
    let streams = (0..connections).map(|_| open(to, port)).collect::<io::Result<Vec<_>>>()?;
    let window = time.window();
    let (mut outcome, mut latencies) = (Outcome::default(), Latencies::new());
    outcome.connections = connections.into();
    for counted in each(streams, |stream| ask(stream, size, window)) {
        outcome.add(counted, &mut latencies);
    }
    outcome.bytes = 2 * size as u64 * outcome.requests;
    Ok(outcome.rate(time, &latencies))
}

pub(super) fn ask(mut stream: TcpStream, size: usize, window: Window) -> io::Result<Counted> {
    let mut counted = Counted::new();
    let mut message: Vec<u8> = (0..size).map(|n| n as u8).collect();
    let mut answer = vec![0; size];
    let mut from = Instant::now();
    loop {
        // Each message differs from the one before.
        message.iter_mut().zip(counted.requests.to_le_bytes()).for_each(|(byte, own)| *byte = own);
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        if answer != message {
            return Err(io::Error::other("an answer is not what was sent"));
        }
        let now = Instant::now();
        if !counted.take(window, from, now) {
            return Ok(counted);
        }
        from = now;
    }
}
