//! cgroup/sock_create: an enrolled pod has no sockets that the other hooks cannot see connect.

use aya_ebpf::programs::SockContext;
use culvert_common::*;

use crate::ctx;
use crate::events::count;
use crate::maps::{PODS, copied};

/// Whether the socket may be. Multipath TCP calls no connect hook, so its connections would leave unjudged and in plaintext.
/// Apps are told that the kernel does not know it, and use TCP: that is what they do everywhere else it is off.
#[inline(always)]
pub fn may_be(ctx: &SockContext) -> bool {
    if ctx::sock_protocol(ctx) != ctx::MPTCP {
        return true;
    }
    let pod: Option<Pod> = copied!(PODS, &ctx::netns_cookie(ctx));
    if pod.is_some() {
        count(Counter::RefusedMultipath);
    }
    pod.is_none()
}
