//! sk_lookup in an enrolled pod's namespace: a SYN looks for a listener. Established connections never come here.

use aya_ebpf::programs::SkLookupContext;
use culvert_common::*;

use crate::ctx;
use crate::events::{count, emit, note, now};
use crate::maps::{ADMITTED, KernelPolicy, WORKLOADS, copied};

/// Whether the SYN may find its listener.
#[inline(always)]
pub fn let_in(ctx: &SkLookupContext) -> bool {
    if ctx::lookup_protocol(ctx) != ctx::TCP {
        return true;
    }
    let tuple = ctx::lookup_tuple(ctx);
    // The kernel drops loopback addresses that come from outside, in both families. The interface proves nothing: a
    // pod's packets to its own address carry the index of the interface that has the address, not that of `lo`.
    if tuple.destination().ip().is_loopback() {
        return true;
    }
    // The certificate decides there, in the agent.
    if tuple.destination().port() == HBONE_PORT {
        return true;
    }
    let admission = ADMITTED.get_ptr_mut(&tuple);
    // No admission: nobody on this node vouches for the packet, whatever address it claims.
    // SAFETY: the element is the map's for the whole run. It may be given to another tuple when the client gives up meanwhile: then this
    // SYN is nobody's.
    let source = admission.map_or(UNKNOWN_IDENTITY, |a| unsafe { (*a).identity });
    let (destination, decision) = judge(source, &tuple);
    note(decision.note);
    count(if decision.allowed() { Counter::Admitted } else { Counter::RefusedAtDestination });
    if source == HOST_IDENTITY || source == OWN_IDENTITY {
        // kubelet probes every few seconds, and what the agent reports itself: counted, not told
        return decision.allowed();
    }
    match admission {
        Some(admission) if decision.allowed() => leave(admission, destination, decision),
        _ => report(tuple, source, destination, decision),
    }
    decision.allowed()
}

/// Destination identity, verdict.
#[inline(always)]
fn judge(source: u32, tuple: &Tuple) -> (u32, Decision) {
    const SERVING: u32 = flags::LOCAL | flags::ENROLLED;
    let workload: Option<Workload> = copied!(WORKLOADS, tuple.destination().ip());
    match workload.filter(|w| w.flags & SERVING == SERVING) {
        Some(w) => {
            let (client, port) = (tuple.source().ip(), tuple.destination().port());
            (w.identity, decide(&KernelPolicy, w.class, source, client, port))
        }
        // The hook is in place and the tables do not know the address: closed.
        None => (UNKNOWN_IDENTITY, Decision::refuse(Reason::UnknownDestination)),
    }
}

/// Who accepts the connection tells of the verdict, in one event.
#[inline(always)]
fn leave(admission: *mut Admission, destination: u32, decision: Decision) {
    // SAFETY: as where it was read.
    let admission = unsafe { &mut *admission };
    admission.destination = destination;
    admission.reason = decision.reason as u32;
    admission.policy = decision.policy;
    admission.note = decision.note;
}

#[inline(always)]
fn report(tuple: Tuple, source: u32, destination: u32, decision: Decision) {
    let path = if source == UNKNOWN_IDENTITY { Path::Passthrough } else { Path::Direct };
    emit(FlowEvent {
        time_ns: now(),
        netns: 0,
        bytes_sent: 0,
        bytes_received: 0,
        duration_ns: 0,
        socket: 0,
        tuple,
        requested: tuple.destination(),
        verdict: decision.verdict as u32,
        reason: decision.reason as u32,
        policy: decision.policy,
        path: path as u32,
        hook: Hook::Admit as u32,
        source,
        destination,
        note: decision.note,
        reserved: 0,
    });
}
