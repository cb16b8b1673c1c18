//! The only place that touches a program's context. Each field is read or written by itself, volatile: the verifier
//! refuses a context pointer that was added to, which is what merged or vectorised accesses compile to.

use core::ptr::{addr_of, addr_of_mut, null_mut, read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie,
    bpf_set_retval, bpf_setsockopt, bpf_sk_storage_get, bpf_skb_load_bytes_relative,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext, TcContext};
use culvert_common::{Endpoint, Ip, SocketState, Tuple};

use crate::maps::SOCKET_STATE;

/// What a refused connect() returns.
pub const ECONNREFUSED: i32 = 111;
/// What a refused bind() returns.
pub const EADDRINUSE: i32 = 98;
/// What socket() returns for a protocol that is refused.
pub const EPROTONOSUPPORT: i32 = 93;
/// IPPROTO_MPTCP.
pub const MPTCP: u32 = 262;
/// IPPROTO_TCP.
pub const TCP: u32 = 6;
/// IPPROTO_UDP.
pub const UDP: u32 = 17;
const AF_INET: u32 = 2;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SOL_TCP: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;
const TCP_CONGESTION: i32 = 13;

macro_rules! load {
    ($ptr:expr, $($field:tt)+) => {
        // SAFETY: the kernel passes a valid context for the whole run of the program.
        unsafe { read_volatile(addr_of!((*$ptr).$($field)+)) }
    };
}

macro_rules! store {
    ($ptr:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for load!; the verifier accepts only fields that the hook may write.
        unsafe { write_volatile(addr_of_mut!((*$ptr).$($field)+), $value) }
    };
}

/// The four words of an IPv6 address field.
macro_rules! words {
    ($ptr:expr, $field:ident) => {
        [load!($ptr, $field[0]), load!($ptr, $field[1]), load!($ptr, $field[2]), load!($ptr, $field[3])]
    };
}

#[inline(always)]
fn choose(v4: bool, word: u32, words: [u32; 4]) -> Ip {
    if v4 { Ip::from_v4_word(word) } else { Ip::from_words(words) }
}

/// The two families of a sock_addr hook: which address fields the kernel lets it use.
pub trait Family {
    /// The address in the context.
    fn ip(ctx: *const bpf_sock_addr) -> Ip;
    /// Writes the address; false when `ip` is of the other family, which this hook cannot hold.
    fn set_ip(ctx: *mut bpf_sock_addr, ip: Ip) -> bool;
    /// The loopback address that a socket of the family of `like` can connect to.
    fn loopback(like: Ip) -> Ip;
}

/// AF_INET.
pub struct V4;
/// AF_INET6, IPv4-mapped addresses included.
pub struct V6;

#[inline(always)]
fn loopback4() -> Ip {
    Ip::from_v4_word(u32::from_ne_bytes([127, 0, 0, 1]))
}

impl Family for V4 {
    #[inline(always)]
    fn ip(ctx: *const bpf_sock_addr) -> Ip {
        Ip::from_v4_word(load!(ctx, user_ip4))
    }

    #[inline(always)]
    fn set_ip(ctx: *mut bpf_sock_addr, ip: Ip) -> bool {
        let Some(word) = ip.v4_word() else { return false };
        store!(ctx, word, user_ip4);
        true
    }

    #[inline(always)]
    fn loopback(_like: Ip) -> Ip {
        loopback4()
    }
}

impl Family for V6 {
    #[inline(always)]
    fn ip(ctx: *const bpf_sock_addr) -> Ip {
        Ip::from_words(words!(ctx, user_ip6))
    }

    #[inline(always)]
    fn set_ip(ctx: *mut bpf_sock_addr, ip: Ip) -> bool {
        let words = ip.words();
        store!(ctx, words[0], user_ip6[0]);
        store!(ctx, words[1], user_ip6[1]);
        store!(ctx, words[2], user_ip6[2]);
        store!(ctx, words[3], user_ip6[3]);
        true
    }

    #[inline(always)]
    fn loopback(like: Ip) -> Ip {
        if like.v4_word().is_some() { loopback4() } else { Ip::from_words([0, 0, 0, 1_u32.to_be()]) }
    }
}

/// IPPROTO_* of the socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    load!(ctx.sock_addr, protocol)
}

/// The address and port that connect() was called with, or that getpeername() is about to return.
#[inline(always)]
pub fn address<F: Family>(ctx: &SockAddrContext) -> Endpoint {
    // user_port: network order in the low half of the word.
    let port = u16::from_be(load!(ctx.sock_addr, user_port) as u16);
    Endpoint::new(F::ip(ctx.sock_addr), port)
}

/// Replaces the address and port; false (nothing changed) when the family does not fit.
#[inline(always)]
pub fn set_address<F: Family>(ctx: &SockAddrContext, end: Endpoint) -> bool {
    if !F::set_ip(ctx.sock_addr, end.ip()) {
        return false;
    }
    store!(ctx.sock_addr, end.port().to_be() as u32, user_port);
    true
}

/// Cookie of the socket's network namespace.
#[inline(always)]
pub fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the helper only reads the context (sock_addr: Linux 5.7, sock: 5.8, sockops: 5.15).
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Cookie of a sockops socket.
#[inline(always)]
pub fn socket_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper only reads the context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// cgroup v2 id of the calling process.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_cgroup_id() }
}

/// A pseudo-random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Makes a refused call return this errno rather than EPERM (Linux 5.18).
#[inline(always)]
pub fn refuse_with(errno: i32) {
    // SAFETY: sets a field of the hook's run context.
    unsafe { bpf_set_retval(-errno) };
}

/// The state kept with a socket.
#[inline(always)]
fn storage(sk: *mut core::ffi::c_void, flags: u64) -> Option<&'static mut SocketState> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` comes from the context and was checked; a non-null result points at a whole value that lives as
    // long as the socket, which outlives the program's run.
    unsafe {
        let map = addr_of!(SOCKET_STATE).cast_mut().cast();
        bpf_sk_storage_get(map, sk, null_mut(), flags).cast::<SocketState>().as_mut()
    }
}

/// The state of the socket that connects or asks for its peer, made when missing.
#[inline(always)]
pub fn socket_state_or_new(ctx: &SockAddrContext) -> Option<&'static mut SocketState> {
    storage(load!(ctx.sock_addr, __bindgen_anon_1.sk).cast(), BPF_SK_STORAGE_GET_F_CREATE as u64)
}

/// The state of the socket that connects or asks for its peer.
#[inline(always)]
pub fn socket_state(ctx: &SockAddrContext) -> Option<&'static mut SocketState> {
    storage(load!(ctx.sock_addr, __bindgen_anon_1.sk).cast(), 0)
}

/// The state of a sockops socket.
#[inline(always)]
pub fn ops_state(ctx: &SockOpsContext) -> Option<&'static mut SocketState> {
    storage(load!(ctx.ops, __bindgen_anon_2.sk).cast(), 0)
}

/// The state of a sockops socket, made when missing.
#[inline(always)]
pub fn ops_state_or_new(ctx: &SockOpsContext) -> Option<&'static mut SocketState> {
    storage(load!(ctx.ops, __bindgen_anon_2.sk).cast(), BPF_SK_STORAGE_GET_F_CREATE as u64)
}

/// Local and remote end of a sockops socket.
#[inline(always)]
pub fn ops_ends(ctx: &SockOpsContext) -> (Endpoint, Endpoint) {
    let ops = ctx.ops;
    // Both families are loaded before the choice: loads in branches would be merged into one of a computed offset.
    let (local4, remote4) = (load!(ops, local_ip4), load!(ops, remote_ip4));
    let local6 = words!(ops, local_ip6);
    let remote6 = words!(ops, remote_ip6);
    let v4 = load!(ops, family) == AF_INET;
    let (local, remote) = (choose(v4, local4, local6), choose(v4, remote4, remote6));
    // local_port is host order; remote_port is network order in the upper half of the word.
    let remote_port = u32::from_be(load!(ops, remote_port)) as u16;
    (Endpoint::new(local, load!(ops, local_port) as u16), Endpoint::new(remote, remote_port))
}

/// The n-th argument of a sockops callback.
#[inline(always)]
pub fn ops_state_change(ctx: &SockOpsContext) -> (u32, u32) {
    (load!(ctx.ops, __bindgen_anon_1.args[0]), load!(ctx.ops, __bindgen_anon_1.args[1]))
}

/// The callbacks that programs have asked for on this socket: one set of flags for all of them.
#[inline(always)]
pub fn ops_callbacks(ctx: &SockOpsContext) -> u32 {
    load!(ctx.ops, bpf_sock_ops_cb_flags)
}

/// Keeps the connection that a sockops callback is about to open from opening: by way of `lo` nothing leads to another pod.
/// IPv6 finds no route (EHOSTUNREACH); IPv4 tries all the same, and gives up at the first retransmission of its SYN
/// (ETIMEDOUT after a second) if nobody ends it before.
#[inline(always)]
pub fn cut_off(ctx: &SockOpsContext) {
    let mut interface = *b"lo\0\0";
    let mut milliseconds = 1_u32;
    // SAFETY: the helper reads four bytes of the stack (both options: Linux 5.8).
    unsafe {
        bpf_setsockopt(ctx.ops.cast(), SOL_SOCKET, SO_BINDTODEVICE, interface.as_mut_ptr().cast(), 4);
        bpf_setsockopt(ctx.ops.cast(), SOL_TCP, TCP_USER_TIMEOUT, (&raw mut milliseconds).cast(), 4);
    }
}

/// Tells a socket whose peer is the agent, by way of `lo`, that no network is in between: what the node's setting may do about one
/// (BBR's pacing, CUBIC's slow start that ends at the first delay) halves what it carries. Every kernel has Reno.
#[inline(always)]
pub fn has_no_network(ctx: &SockOpsContext) {
    let mut name = *b"reno";
    // SAFETY: the helper reads four bytes of the stack (Linux 4.13). On failure the node's setting stays.
    unsafe { bpf_setsockopt(ctx.ops.cast(), SOL_TCP, TCP_CONGESTION, name.as_mut_ptr().cast(), 4) };
}

/// How far a connection has come, in TCP's own numbers: SYN and FIN count as a byte each.
#[derive(Clone, Copy)]
pub struct Progress {
    /// Acknowledged by the peer, in all.
    pub acknowledged: u64,
    /// Received, in all.
    pub received: u64,
    /// The peer has acknowledged all that was sent.
    pub all_acknowledged: bool,
    /// The number of the next byte from the peer.
    pub receive_next: u32,
}

/// How far the connection of a sockops socket has come.
#[inline(always)]
pub fn ops_progress(ctx: &SockOpsContext) -> Progress {
    let ops = ctx.ops;
    Progress {
        acknowledged: load!(ops, bytes_acked),
        received: load!(ops, bytes_received),
        all_acknowledged: load!(ops, snd_una) == load!(ops, snd_nxt),
        receive_next: load!(ops, rcv_nxt),
    }
}

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
/// Where the sender is in an IPv4 header, an IPv6 header, and the body of an ARP message for IPv4 over Ethernet.
const IPV4_SOURCE: u32 = 12;
const IPV6_SOURCE: u32 = 8;
const ARP_SENDER: u32 = 14;

/// Who a packet says has sent it; all zeros when it is too short to say. `None`: it is neither IP nor ARP.
#[inline(always)]
pub fn packet_source(ctx: &TcContext) -> Option<Ip> {
    let protocol = u16::from_be(load!(ctx.skb.skb, protocol) as u16);
    match protocol {
        ETH_P_IP => Some(Ip::from_v4_word(header_words::<1>(ctx, IPV4_SOURCE)[0])),
        ETH_P_ARP => Some(Ip::from_v4_word(header_words::<1>(ctx, ARP_SENDER)[0])),
        ETH_P_IPV6 => Some(Ip::from_words(header_words::<4>(ctx, IPV6_SOURCE))),
        _ => None,
    }
}

/// IPPROTO_ICMPV6, and the extension headers that may stand before it: hop-by-hop, routing, destination options. (Not fragments:
/// Linux takes no neighbour discovery out of those, RFC 6980.)
const ICMPV6: u8 = 58;
const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// Neighbour discovery is believed only when no router has touched it (RFC 4861 7.1).
const UNTOUCHED: u8 = 255;
const ADVERTISEMENT: u8 = 136;
/// What only routers say: Router Advertisement and Redirect.
const OF_ROUTERS: [u8; 2] = [134, 137];

/// What a packet tells its neighbours (RFC 4861).
pub enum Told {
    /// Nothing, or nothing that leads traffic anywhere.
    Nothing,
    /// That this address is at its sender.
    Address(Ip),
    /// Ways that a router knows, or something behind extension headers, where no honest sender puts it.
    Ways,
}

/// The IPv6 side of what ARP does: the header's source says nothing about it.
#[inline(always)]
pub fn told_neighbours(ctx: &TcContext) -> Told {
    if u16::from_be(load!(ctx.skb.skb, protocol) as u16) != ETH_P_IPV6 {
        return Told::Nothing;
    }
    let [_, _, next, hops] = header_words::<1>(ctx, 4)[0].to_ne_bytes();
    if hops != UNTOUCHED {
        return Told::Nothing;
    }
    if next != ICMPV6 {
        return if EXTENSIONS.contains(&next) { Told::Ways } else { Told::Nothing };
    }
    let [kind, ..] = header_words::<1>(ctx, 40)[0].to_ne_bytes();
    match kind {
        ADVERTISEMENT => Told::Address(Ip::from_words(header_words::<4>(ctx, 48))),
        kind if OF_ROUTERS.contains(&kind) => Told::Ways,
        _ => Told::Nothing,
    }
}

/// Words of the network header; zeros beyond its end.
#[inline(always)]
fn header_words<const N: usize>(ctx: &TcContext, offset: u32) -> [u32; N] {
    let mut words = [0_u32; N];
    // SAFETY: the helper writes N words or none; the context is the kernel's.
    unsafe {
        bpf_skb_load_bytes_relative(
            ctx.skb.skb.cast(),
            offset,
            words.as_mut_ptr().cast(),
            (N * 4) as u32,
            BPF_HDR_START_NET,
        )
    };
    words
}

/// The index of the interface that the packet is at.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    load!(ctx.skb.skb, ifindex)
}

/// IPPROTO_* of a socket that is being made.
#[inline(always)]
pub fn sock_protocol(ctx: &SockContext) -> u32 {
    load!(ctx.sock, protocol)
}

/// IPPROTO_* of an arriving packet.
#[inline(always)]
pub fn lookup_protocol(ctx: &SkLookupContext) -> u32 {
    load!(ctx.lookup, protocol)
}

/// Source and destination of an arriving packet.
#[inline(always)]
pub fn lookup_tuple(ctx: &SkLookupContext) -> Tuple {
    let l = ctx.lookup;
    let (remote4, local4) = (load!(l, remote_ip4), load!(l, local_ip4));
    let remote6 = words!(l, remote_ip6);
    let local6 = words!(l, local_ip6);
    let v4 = load!(l, family) == AF_INET;
    let (remote, local) = (choose(v4, remote4, remote6), choose(v4, local4, local6));
    let remote_port = u16::from_be(load!(l, remote_port));
    Tuple::new(Endpoint::new(remote, remote_port), Endpoint::new(local, load!(l, local_port) as u16))
}
