//! tc at the node's end of an enrolled pod's interface: what a pod sends bears its own addresses, and claims no others.

use aya_ebpf::programs::TcContext;
use culvert_common::*;

use crate::ctx::{self, Told};
use crate::events::count;
use crate::maps::{GUARDS, copied};

/// Whether the packet's source, and what it makes its neighbours believe, is what the pod may say. The program has no other say: later programs and the
/// network policy of others still see what passes.
#[inline(always)]
pub fn may_pass(ctx: &TcContext) -> bool {
    let Some(source) = ctx::packet_source(ctx) else { return true };
    let guard: Option<Guard> = copied!(GUARDS, &ctx::interface(ctx));
    let own = guard.is_some_and(|guard| {
        guard.allows(source)
            && match ctx::told_neighbours(ctx) {
                Told::Nothing => true,
                Told::Address(address) => guard.allows(address),
                Told::Ways => false,
            }
    });
    if !own {
        count(Counter::Spoofed);
    }
    own
}
