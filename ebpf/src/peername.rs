//! cgroup/getpeername4 and 6, which accept() runs too: apps see the addresses that they would see without a mesh.

use aya_ebpf::programs::SockAddrContext;
use culvert_common::SocketKind;

use crate::ctx::{self, Family};

/// Puts the remembered peer in place of the real one.
#[inline(always)]
pub fn rewrite<F: Family>(ctx: &SockAddrContext) {
    let Some(state) = ctx::socket_state(ctx) else { return };
    let real = [SocketKind::None as u32, SocketKind::Host as u32, SocketKind::Inbound as u32];
    if real.contains(&state.kind) {
        return;
    }
    // A peer of the other family (an IPv6 client of an IPv4-only listener) cannot be shown: the real one stays.
    ctx::set_address::<F>(ctx, state.peer);
}
