//! Congestion control of the agent's connections, where the node's setting would cost more than it gives.
//!
//! Nodes may be set to BBR, which paces: it sends by a timer, at the rate that it has measured. On a path of microseconds that halves
//! what a connection carries, and nothing is gained.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::time::Duration;

use nix::libc;
use socket2::{SockRef, Socket};

/// Of a kernel without settings. Every kernel has Reno.
const CUBIC: &[u8] = b"cubic";
const RENO: &[u8] = b"reno";
/// BBR in its versions.
const PACES: &[u8] = b"bbr";

/// A path with a shorter round trip has no bottleneck that pacing could spare.
const NEAR: Duration = Duration::from_millis(1);

/// What the node uses, when it paces.
static OF_THE_NODE: OnceLock<Vec<u8>> = OnceLock::new();

/// Between the agent and an app of the node there is no network at all.
pub fn has_no_network(socket: &Socket) {
    if let Err(error) = socket.set_tcp_congestion(RENO) {
        tracing::debug!(%error, "a connection inside a pod keeps the node's congestion control");
    }
}

/// Before a connection to another node is made, or accepted by this socket: it begins without pacing, for what has been paced once
/// is paced for good.
pub fn begins_near(socket: &Socket) {
    let Ok(name) = socket.tcp_congestion() else { return };
    if name.starts_with(PACES) && socket.set_tcp_congestion(CUBIC).is_ok() {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let _ = OF_THE_NODE.set(name.to_vec());
    }
}

/// When it has been made: on a long path the node's setting is in force after all.
pub fn knows_its_path(socket: &impl AsFd) {
    let Some(name) = OF_THE_NODE.get() else { return };
    let own = SockRef::from(socket);
    let is_far = || shortest_round_trip(socket).is_ok_and(|time| time >= NEAR);
    if own.tcp_congestion().is_ok_and(|own| own.starts_with(CUBIC))
        && is_far()
        && let Err(error) = own.set_tcp_congestion(name)
    {
        tracing::debug!(%error, "an HBONE connection does not have the node's congestion control");
    }
}

/// `tcpi_min_rtt` (Linux 4.9).
#[expect(unsafe_code, reason = "no safe binding of TCP_INFO exists")]
fn shortest_round_trip(socket: &impl AsFd) -> io::Result<Duration> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the length of the call, and the kernel writes at most `length` bytes, which is
    // the size of `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(Duration::from_micros(info.tcpi_min_rtt.into()))
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn of(socket: &impl AsFd) -> String {
        let name = SockRef::from(socket).tcp_congestion().unwrap();
        String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned()
    }

    #[test]
    fn a_near_connection_is_not_paced_and_a_far_one_is_as_the_node_says() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = SockRef::from(&listener);
        if listening.set_tcp_congestion(b"bbr").is_err() {
            println!("skipped: this kernel has no BBR");
            return;
        }
        begins_near(&listening);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        knows_its_path(&near);
        assert_eq!(of(&near), "cubic");
        assert!(shortest_round_trip(&near).unwrap() < NEAR, "a loopback connection");
        // One that has no round trip yet tells the longest there is.
        let unknown = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        unknown.set_tcp_congestion(b"bbr").unwrap();
        begins_near(&unknown);
        assert_eq!(of(&unknown), "cubic");
        knows_its_path(&unknown);
        assert_eq!(of(&unknown), "bbr");
    }

    #[test]
    fn inside_a_pod_it_is_reno() {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        has_no_network(&socket);
        assert_eq!(of(&socket), "reno");
    }
}
