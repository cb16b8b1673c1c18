//! The TCP sockets of a network namespace with what the programs keep with each: SOCK_DIAG_BY_FAMILY with
//! INET_DIAG_REQ_SK_BPF_STORAGES (include/uapi/linux/inet_diag.h, sock_diag.h; Linux 5.7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use culvert_common::{Endpoint, Ip, SocketState};
use nix::libc;

use crate::sys::netlink::{Netlink, attribute, find, u32_at};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// `sizeof(struct inet_diag_msg)`.
const MESSAGE: usize = 72;
/// Listening, open, or closing at one end: those for which programs have not heard of TCP_CLOSE yet.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;
/// TCP_LISTEN.
const LISTEN: u8 = 10;

/// An open socket.
#[derive(Clone, Copy)]
pub(super) struct OpenSocket {
    pub(super) cookie: u64,
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    /// It waits for connections, and has no other end.
    pub(super) listens: bool,
    /// What the programs keep with it, if anything.
    pub(super) state: Option<SocketState>,
}

/// The open TCP sockets of both families.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn open(diag: &mut Netlink, storage: BorrowedFd<'_>) -> io::Result<Vec<OpenSocket>> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        diag.dump(SOCK_DIAG_BY_FAMILY, &question(family, storage), |answer| sockets.extend(socket(answer)))?;
    }
    Ok(sockets)
}

fn question(family: i32, storage: BorrowedFd<'_>) -> Vec<u8> {
    let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(STATES.to_ne_bytes());
    body.extend([0; 48]); // any ends
    let map = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &storage.as_raw_fd().to_ne_bytes());
    body.extend(attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &map));
    body
}

/// A socket of the answer.
fn socket(body: &[u8]) -> Option<OpenSocket> {
    let v4 = i32::from(*body.first()?) == libc::AF_INET;
    let port = |at: usize| body.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let ip = |at: usize| -> Option<Ip> {
        let bytes: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        Some(if v4 { std::net::Ipv4Addr::new(a, b, c, d).into() } else { bytemuck::cast(bytes) })
    };
    let cookie = u64::from(u32_at(body, 44)?) | u64::from(u32_at(body, 48)?) << 32;
    let storages = body.get(MESSAGE..).and_then(|attributes| find(attributes, INET_DIAG_SK_BPF_STORAGES));
    let value = storages
        .and_then(|storages| find(storages, SK_DIAG_BPF_STORAGE))
        .and_then(|storage| find(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE));
    Some(OpenSocket {
        cookie,
        local: Endpoint::new(ip(8)?, port(4)?),
        remote: Endpoint::new(ip(24)?, port(6)?),
        listens: *body.get(1)? == LISTEN,
        state: value
            .and_then(|value| value.get(..size_of::<SocketState>()))
            .map(bytemuck::pod_read_unaligned),
    })
}
