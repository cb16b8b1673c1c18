//! Questions to rtnetlink(7), in the network namespace of the calling thread.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

const NETLINK_ROUTE: i32 = 0;
/// What the kernel puts into one datagram at most (`NLMSG_GOODSIZE` and the space of one large link).
const DATAGRAM: usize = 64 << 10;
const HEADER: usize = 16;

/// One question, and its one answer.
///
/// # Errors
///
/// What the kernel said.
pub fn ask(question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
    let answers = exchange(question, NLM_F_ACK)?;
    answers.into_iter().next().ok_or_else(|| io::Error::other("the kernel's answer is none"))
}

/// One change; `flags` as in netlink(7): `NLM_F_CREATE` and the like.
///
/// # Errors
///
/// What the kernel said.
pub fn change(order: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    exchange(order, NLM_F_ACK | flags).map(drop)
}

/// Everything that fits the question. What this program cannot read (a filter of a kind that it does not know) is left out.
///
/// # Errors
///
/// What the kernel said.
pub fn list(question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    exchange(question, NLM_F_DUMP)
}

fn exchange(question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(question));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_ROUTE)))?;
    socket.send(&bytes)?;
    let mut answers = Vec::new();
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let length = io::Read::read(&mut &socket, &mut datagram)?;
        let mut rest = datagram.get(..length).unwrap_or_default();
        while let Some((message, after)) = split(rest) {
            rest = after;
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
                Ok(NetlinkPayload::InnerMessage(answer)) => answers.push(answer),
                Ok(NetlinkPayload::Error(error)) if error.code.is_some() => return Err(error.to_io()),
                Ok(NetlinkPayload::Error(_) | NetlinkPayload::Done(_)) => return Ok(answers),
                _ => {}
            }
        }
    }
}

/// The first message of a datagram, and what follows it.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(datagram.first_chunk().copied()?) as usize;
    let message = datagram.get(..length).filter(|message| message.len() >= HEADER)?;
    Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn loopback_is_found_and_what_is_not_there_is_an_error() {
        let links = list(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        assert!(links.iter().any(|m| matches!(m, RouteNetlinkMessage::NewLink(l) if l.header.index == 1)));
        let mut nowhere = LinkMessage::default();
        nowhere.header.index = i32::MAX as u32;
        let error = ask(RouteNetlinkMessage::GetLink(nowhere)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
