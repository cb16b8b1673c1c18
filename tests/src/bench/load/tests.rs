use std::io::Read;

use super::*;

#[test]
fn what_ends_after_the_window_is_no_rate_but_a_latency() {
    let begin = Instant::now();
    let at = |ms| begin + Duration::from_millis(ms);
    let window = Window { begin: at(10), end: at(20) };
    let mut counted = Counted::new();
    assert!(counted.take(window, at(9), at(11)), "warm-up");
    assert!(counted.take(window, at(11), at(13)));
    assert!(!counted.take(window, at(13), at(33)), "a stall");
    assert_eq!((counted.requests, counted.measured), (3, 1));
    let Latency { p50, p999, .. } = counted.latencies.summary();
    assert!((1980.0..2020.0).contains(&p50), "{p50}");
    assert!((19_800.0..20_200.0).contains(&p999), "{p999}");
}

#[test]
fn the_report_of_a_stream_comes_back_as_it_was() {
    let mut bytes = Vec::new();
    let drained = serve::Drained { all: 7, counted: 6, from: 5, to: u64::MAX };
    drained.write(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 32);
    let read = serve::Drained::read(&mut &bytes[..]).unwrap();
    assert_eq!((read.all, read.counted, read.from, read.to), (7, 6, 5, u64::MAX));
}

#[test]
fn workers_share_no_port() {
    for parallel in [1, 16, 64_u16] {
        let of = |worker: u16| serve::ONCE.skip(usize::from(worker)).step_by(usize::from(parallel));
        let mut all: Vec<u16> = (0..parallel).flat_map(of).collect();
        all.sort_unstable();
        assert_eq!(all, serve::ONCE.collect::<Vec<_>>());
    }
}

/// What a client of `size` bytes says of a server that does `serve`.
fn client(size: usize, serve: fn(&mut TcpStream)) -> io::Result<Counted> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || serve(&mut listener.accept().unwrap().0));
    let window = Time { warm: 0, measured: 20 }.window();
    let counted = open("127.0.0.1".parse().unwrap(), port).and_then(|stream| rr::ask(stream, size, window));
    server.join().unwrap();
    counted
}

#[test]
fn an_answer_must_be_what_was_sent() {
    let echo = |stream: &mut TcpStream| {
        let mut bytes = [0; 64];
        while stream.read_exact(&mut bytes).and_then(|()| stream.write_all(&bytes)).is_ok() {}
    };
    assert!(client(64, echo).unwrap().requests > 0);
    let other = |stream: &mut TcpStream| stream.write_all(&[7; 64]).unwrap();
    let error = client(64, other).err().unwrap().to_string();
    assert_eq!(error, "an answer is not what was sent");
    let short = |stream: &mut TcpStream| stream.write_all(&[0; 63]).unwrap();
    assert!(client(64, short).is_err());
}
