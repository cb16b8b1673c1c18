//! cgroup/bind4 and bind6: in an enrolled pod the mesh's own ports are the agent's.

use aya_ebpf::programs::SockAddrContext;
use culvert_common::*;

use crate::ctx::{self, Family};
use crate::events::count;
use crate::maps::{PODS, config, copied};

/// Whether the socket may have the port. An app that took one over would be handed the pod's own tunnels, or keep the
/// agent from serving them.
#[inline(always)]
pub fn may_have<F: Family>(ctx: &SockAddrContext) -> bool {
    let port = ctx::address::<F>(ctx).port();
    if (port != OUTBOUND_PORT && port != HBONE_PORT) || ctx::protocol(ctx) == ctx::UDP {
        return true;
    }
    let Some(config) = config() else { return true };
    if ctx::current_cgroup() == config.agent_cgroup {
        return true;
    }
    let pod: Option<Pod> = copied!(PODS, &ctx::netns_cookie(ctx));
    if pod.is_some() {
        count(Counter::RefusedBind);
    }
    pod.is_none()
}
