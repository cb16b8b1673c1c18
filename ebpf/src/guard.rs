//! tc at the node's end of an enrolled pod's interface: what a pod sends bears its own addresses.

use aya_ebpf::programs::TcContext;
use culvert_common::*;

use crate::ctx;
use crate::events::count;
use crate::maps::{GUARDS, copied};

/// Whether the packet's source is one that the pod may use. The program has no other say: later programs and the
/// network policy of others still see what passes.
#[inline(always)]
pub fn may_pass(ctx: &TcContext) -> bool {
    let Some(source) = ctx::packet_source(ctx) else { return true };
    let guard: Option<Guard> = copied!(GUARDS, &ctx::interface(ctx));
    let own = guard.is_some_and(|guard| guard.allows(source));
    if !own {
        count(Counter::Spoofed);
    }
    own
}
