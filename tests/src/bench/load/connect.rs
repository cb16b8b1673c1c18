//! Connections that carry one byte.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Instant;

use super::serve::ONCE;
use super::{Counted, Latencies, Outcome, Time, Window, each, open};

/// A worker with so many failures gives up.
const MOST_FAILURES: u64 = 20;

pub(super) fn run(to: IpAddr, parallel: u16, time: Time) -> io::Result<Outcome> {
    let window = time.window();
    let (mut outcome, mut latencies) = (Outcome::default(), Latencies::new());
    // Each worker has ports of its own, and takes them in turn: no server has two clients.
    let ports = |worker| ONCE.skip(usize::from(worker)).step_by(usize::from(parallel.max(1))).collect();
    let ports: Vec<Vec<u16>> = (0..parallel).map(ports).collect();
    for done in each(ports, |ports| Ok(work(to, &ports, window))) {
        let (counted, failures, error) = done?;
        outcome.add(Ok(counted), &mut latencies);
        outcome.failures += failures;
        if failures > 0 {
            outcome.error = error;
        }
    }
    outcome.connections = outcome.requests;
    outcome.bytes = 2 * outcome.requests;
    Ok(outcome.rate(time, &latencies))
}

fn work(to: IpAddr, ports: &[u16], window: Window) -> (Counted, u64, String) {
    let (mut counted, mut failures, mut told) = (Counted::new(), 0, String::new());
    for port in ports.iter().cycle() {
        let from = Instant::now();
        match once(to, *port) {
            Ok(()) if counted.take(window, from, Instant::now()) => {}
            Ok(()) => break,
            Err(error) => {
                failures += 1;
                told = format!("port {port}: {error}");
                if failures == MOST_FAILURES || Instant::now() > window.end {
                    break;
                }
            }
        }
    }
    (counted, failures, told)
}

fn once(to: IpAddr, port: u16) -> io::Result<()> {
    ask(&mut open(to, port)?)
}

/// One byte there and back.
pub(super) fn ask(stream: &mut TcpStream) -> io::Result<()> {
    let mut answer = [0];
    stream.write_all(b"x")?;
    stream.read_exact(&mut answer)?;
    if &answer == b"x" { Ok(()) } else { Err(io::Error::other("another byte came back")) }
}
