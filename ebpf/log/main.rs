//! Programs that only tell: one beside each of Culvert's own, attached while `culvert log culvert::kernel=debug` asks for it. They
//! change nothing and decide nothing; while nobody asks they are not in the kernel, so they cost nothing.
//!
//! A line is a word for the hook and then NAME=VALUE; the agent puts names in the place of numbers, and writes IPv4 as such.
#![no_std]
#![no_main]

#[path = "../src/ctx.rs"]
#[allow(dead_code, reason = "shared with the programs that decide")]
mod ctx;
#[path = "../src/maps.rs"]
#[allow(dead_code, unused_macros, reason = "shared with the programs that decide")]
mod maps;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
};
use aya_ebpf::helpers::generated::bpf_get_retval;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext, TcContext};
use aya_log_ebpf::debug;
use culvert_common::*;

use crate::ctx::{Family, Told, V4, V6};
use crate::maps::{ADMITTED, GUARDS, PODS, copied};

const PROCEED: i32 = 1;
const SK_PASS: u32 = 1;
const TCX_NEXT: i32 = -1;

#[cgroup_sock_addr(connect4)]
pub fn culvert_log_connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn culvert_log_connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

/// After the decision: where the socket goes now, and what is kept with it.
#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let netns = ctx::netns_cookie(ctx);
    if ctx::protocol(ctx) != ctx::TCP || !is_pod(netns) {
        return PROCEED;
    }
    let next = ctx::address::<F>(ctx);
    let errno = -returns();
    if errno != 0 {
        debug!(ctx, target: "culvert::kernel", "connect netns={} next=[{:i}]:{} errno={}", netns, next.ip().octets(), next.port(), errno);
        return PROCEED;
    }
    match ctx::socket_state(ctx) {
        Some(state) => debug!(
            ctx,
            target: "culvert::kernel",
            "connect netns={} asked=[{:i}]:{} next=[{:i}]:{} kind={} reason={}",
            netns,
            state.peer.ip().octets(),
            state.peer.port(),
            next.ip().octets(),
            next.port(),
            state.kind,
            state.reason
        ),
        None => {
            debug!(ctx, target: "culvert::kernel", "connect netns={} next=[{:i}]:{} kind=0", netns, next.ip().octets(), next.port())
        }
    }
    PROCEED
}

#[cgroup_sock_addr(bind4)]
pub fn culvert_log_bind4(ctx: SockAddrContext) -> i32 {
    bind::<V4>(&ctx)
}

#[cgroup_sock_addr(bind6)]
pub fn culvert_log_bind6(ctx: SockAddrContext) -> i32 {
    bind::<V6>(&ctx)
}

/// Only what was refused: what may be bound is none of the mesh's business.
#[inline(always)]
fn bind<F: Family>(ctx: &SockAddrContext) -> i32 {
    let errno = -returns();
    if errno != 0 {
        let port = ctx::address::<F>(ctx).port();
        debug!(ctx, target: "culvert::kernel", "bind netns={} port={} errno={}", ctx::netns_cookie(ctx), port, errno);
    }
    PROCEED
}

#[cgroup_sock(sock_create)]
pub fn culvert_log_create(ctx: SockContext) -> i32 {
    let errno = -returns();
    if errno != 0 {
        let (netns, protocol) = (ctx::netns_cookie(&ctx), ctx::sock_protocol(&ctx));
        debug!(&ctx, target: "culvert::kernel", "socket netns={} protocol={} errno={}", netns, protocol, errno);
    }
    PROCEED
}

#[sock_ops]
pub fn culvert_log_sockets(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => socket(&ctx, 0),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => socket(&ctx, 1),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => socket(&ctx, 2),
        BPF_SOCK_OPS_STATE_CB if ctx::ops_state_change(&ctx).1 == BPF_TCP_CLOSE => socket(&ctx, 3),
        _ => {}
    }
    1
}

/// A moment of a socket that the mesh keeps something about, or that is in one of its pods.
#[inline(always)]
fn socket(ctx: &SockOpsContext, moment: u32) {
    let netns = ctx::netns_cookie(ctx);
    let state = ctx::ops_state(ctx).map(|state| (state.kind, state.source));
    if state.is_none() && !is_pod(netns) {
        return;
    }
    let (kind, identity) = state.unwrap_or((SocketKind::None as u32, UNKNOWN_IDENTITY));
    let (local, remote) = ctx::ops_ends(ctx);
    debug!(
        ctx,
        target: "culvert::kernel",
        "socket netns={} moment={} local=[{:i}]:{} remote=[{:i}]:{} kind={} identity={}",
        netns,
        moment,
        local.ip().octets(),
        local.port(),
        remote.ip().octets(),
        remote.port(),
        kind,
        identity
    );
}

/// Who vouches for a SYN; whether it is let in is told by the flow record.
#[sk_lookup]
pub fn culvert_log_admit(ctx: SkLookupContext) -> u32 {
    if ctx::lookup_protocol(&ctx) == ctx::TCP {
        let tuple = ctx::lookup_tuple(&ctx);
        let admission: Option<Admission> = copied!(ADMITTED, &tuple);
        let identity = admission.map_or(UNKNOWN_IDENTITY, |admission| admission.identity);
        let (from, to) = (tuple.source(), tuple.destination());
        debug!(
            &ctx,
            target: "culvert::kernel",
            "syn from=[{:i}]:{} to=[{:i}]:{} identity={}",
            from.ip().octets(),
            from.port(),
            to.ip().octets(),
            to.port(),
            identity
        );
    }
    SK_PASS
}

/// Before the guard, which may drop the packet.
#[classifier]
pub fn culvert_log_guard(ctx: TcContext) -> i32 {
    let Some(source) = ctx::packet_source(&ctx) else { return TCX_NEXT };
    let index = ctx::interface(&ctx);
    let guard: Option<Guard> = copied!(GUARDS, &index);
    let told = match ctx::told_neighbours(&ctx) {
        Told::Nothing => source,
        Told::Address(address) => address,
        Told::Ways => Ip::UNSPECIFIED,
    };
    let own = guard.is_some_and(|guard| guard.allows(source) && guard.allows(told));
    if !own {
        debug!(&ctx, target: "culvert::kernel", "spoofed interface={} source={:i} told={:i}", index, source.octets(), told.octets());
    }
    TCX_NEXT
}

#[inline(always)]
fn is_pod(netns: u64) -> bool {
    let pod: Option<Pod> = copied!(PODS, &netns);
    pod.is_some()
}

/// What the call will return as far as it is decided: 0, or a negative errno.
#[inline(always)]
fn returns() -> i32 {
    // SAFETY: reads a field of the hook's run context (Linux 6.1 for these hooks).
    unsafe { bpf_get_retval() }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Helpers such as `bpf_sk_storage_get` are reserved for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
