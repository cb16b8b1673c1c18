//! The node's end of a pod's interface: where what a pod sends arrives, out of the pod's reach.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use crate::sys;
use crate::sys::rtnetlink::ask;

/// The index, in the agent's own network namespace, of the other end of the interface that has one of `addresses` in
/// `netns` (a veth pair).
///
/// # Errors
///
/// There is none, or what the kernel said.
pub(super) fn node_end(netns: BorrowedFd<'_>, addresses: &[IpAddr]) -> io::Result<u32> {
    let inside = sys::in_netns(netns, || interface_with(addresses))?;
    let (peer, _) = ends(&sys::in_netns(netns, || link(inside))?);
    let peer = peer.ok_or_else(|| no_pair("its interface has no other end"))?;
    // The other end's index counts in the namespace where that end is: it must be ours, and lead back.
    let back = ends(&link(peer).map_err(|_| no_pair("the other end of its interface is not on the node"))?);
    if back != (Some(inside), Some(number_of(netns)?)) {
        return Err(no_pair("the other end of its interface is not on the node"));
    }
    Ok(peer)
}

fn no_pair(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{why} (no veth pair)"))
}

/// The interface of the calling thread's namespace that has one of these addresses.
fn interface_with(addresses: &[IpAddr]) -> io::Result<u32> {
    for found in getifaddrs()? {
        let Some(address) = found.address else { continue };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())));
        if ip.is_some_and(|ip| addresses.contains(&ip)) {
            return Ok(if_nametoindex(found.interface_name.as_str())?);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no interface in it has the pod's address"))
}

/// The index of the other end, and the number of its namespace.
fn ends(link: &LinkMessage) -> (Option<u32>, Option<i32>) {
    let mut ends = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => ends.0 = Some(*index),
            LinkAttribute::LinkNetNsId(number) => ends.1 = Some(*number),
            _ => {}
        }
    }
    ends
}

fn link(index: u32) -> io::Result<LinkMessage> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    match ask(RouteNetlinkMessage::GetLink(request))? {
        RouteNetlinkMessage::NewLink(link) => Ok(link),
        _ => Err(io::Error::other("the kernel's answer to RTM_GETLINK is no link")),
    }
}

/// The number by which the agent's namespace knows `netns`; the kernel gives one to each end of a pair.
fn number_of(netns: BorrowedFd<'_>) -> io::Result<i32> {
    let mut request = NsidMessage::default();
    let fd = netns.as_raw_fd().unsigned_abs();
    request.attributes.push(NsidAttribute::Fd(fd));
    match ask(RouteNetlinkMessage::GetNsId(request))? {
        RouteNetlinkMessage::NewNsId(answer) => {
            let number = answer.attributes.iter().find_map(|a| match a {
                NsidAttribute::Id(number) => Some(*number),
                _ => None,
            });
            number.ok_or_else(|| io::Error::other("the kernel's answer to RTM_GETNSID has no number"))
        }
        _ => Err(io::Error::other("the kernel's answer to RTM_GETNSID is none")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn an_interface_without_a_pair_is_told() {
        let own = std::fs::File::open("/proc/self/ns/net").unwrap();
        let error = node_end(own.as_fd(), &[std::net::Ipv4Addr::LOCALHOST.into()]).unwrap_err();
        assert!(error.to_string().contains("no veth pair"), "{error}");
        let error = node_end(own.as_fd(), &["192.0.2.77".parse().unwrap()]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
