//! Culvert's kernel side: each program is a table of verdicts; the work is in the module of its hook.
//!
//! * [`connect`]: cgroup/connect4, connect6: who asks, where to, may it, and how it travels.
//! * [`balance`]: which backend of a service it is.
//! * [`sockets`]: sockops: the 4-tuple of an allowed socket is admitted before its SYN leaves; ends are reported.
//! * [`admit`]: sk_lookup in each enrolled pod's namespace: the destination's verdict on a SYN.
//! * [`bind`]: cgroup/bind4, bind6: the mesh's own ports are the agent's.
//! * [`create`]: cgroup/sock_create: no socket that the other hooks cannot see connect.
//! * [`guard`]: tc at the node's end of a pod's interface: packets bear the pod's own addresses.
//! * [`peername`]: cgroup/getpeername4, getpeername6: an app sees the addresses it asked for.
//!
//! What they do is logged by programs of their own: `log/main.rs`.
#![no_std]
#![no_main]

mod admit;
mod balance;
mod bind;
mod connect;
mod create;
mod ctx;
mod events;
mod guard;
mod maps;
mod peername;
mod sockets;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext, TcContext};

use crate::connect::Outcome;
use crate::ctx::{Family, V4, V6};

/// connect(2) goes on, with the destination the hook left in the context.
const PROCEED: i32 = 1;
/// connect(2) fails with the errno set by [`ctx::refuse_with`].
const REJECT: i32 = 0;
/// The SYN goes to the socket that the kernel finds by itself.
const SK_PASS: u32 = 1;
/// No socket is found: the kernel answers the SYN with RST.
const SK_DROP: u32 = 0;

/// The next program of the interface decides; without one the packet passes.
const TCX_NEXT: i32 = -1;
/// The packet goes no further.
const TCX_DROP: i32 = 2;

#[cgroup_sock_addr(connect4)]
pub fn culvert_connect4(ctx: SockAddrContext) -> i32 {
    connect_verdict::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn culvert_connect6(ctx: SockAddrContext) -> i32 {
    connect_verdict::<V6>(&ctx)
}

#[inline(always)]
fn connect_verdict<F: Family>(ctx: &SockAddrContext) -> i32 {
    match connect::try_connect::<F>(ctx) {
        // Not a socket of the mesh, or a destination that the mesh does not know: nothing to add.
        Outcome::Untouched => PROCEED,
        // Allowed; the socket's storage tells sockops how. Without that record the destination refuses the SYN.
        Outcome::Allowed => PROCEED,
        // The app learns at once and the event says why.
        Outcome::Refused => {
            ctx::refuse_with(ctx::ECONNREFUSED);
            REJECT
        }
    }
}

#[cgroup_sock_addr(getpeername4)]
pub fn culvert_peername4(ctx: SockAddrContext) -> i32 {
    peername::rewrite::<V4>(&ctx);
    PROCEED // the verifier accepts nothing else here
}

#[cgroup_sock_addr(getpeername6)]
pub fn culvert_peername6(ctx: SockAddrContext) -> i32 {
    peername::rewrite::<V6>(&ctx);
    PROCEED
}

#[cgroup_sock_addr(bind4)]
pub fn culvert_bind4(ctx: SockAddrContext) -> i32 {
    bind_verdict::<V4>(&ctx)
}

#[cgroup_sock_addr(bind6)]
pub fn culvert_bind6(ctx: SockAddrContext) -> i32 {
    bind_verdict::<V6>(&ctx)
}

#[inline(always)]
fn bind_verdict<F: Family>(ctx: &SockAddrContext) -> i32 {
    if bind::may_have::<F>(ctx) {
        return PROCEED;
    }
    ctx::refuse_with(ctx::EADDRINUSE);
    REJECT
}

#[cgroup_sock(sock_create)]
pub fn culvert_create(ctx: SockContext) -> i32 {
    if create::may_be(&ctx) {
        return PROCEED;
    }
    ctx::refuse_with(ctx::EPROTONOSUPPORT);
    REJECT
}

#[sock_ops]
pub fn culvert_sockets(ctx: SockOpsContext) -> u32 {
    sockets::on_event(&ctx);
    1 // sockops cannot refuse; what it does not record is refused at the destination
}

#[sk_lookup]
pub fn culvert_admit(ctx: SkLookupContext) -> u32 {
    if admit::let_in(&ctx) { SK_PASS } else { SK_DROP }
}

#[classifier]
pub fn culvert_guard(ctx: TcContext) -> i32 {
    if guard::may_pass(&ctx) { TCX_NEXT } else { TCX_DROP }
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
