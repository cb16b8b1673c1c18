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
    let (source, destination, decision) = judge(&tuple);
    report(tuple, source, destination, decision);
    decision.allowed()
}

/// Source identity, destination identity, verdict.
#[inline(always)]
fn judge(tuple: &Tuple) -> (u32, u32, Decision) {
    let admission: Option<Admission> = copied!(ADMITTED, tuple);
    // No admission: nobody on this node vouches for the packet, whatever address it claims.
    let source = admission.map_or(UNKNOWN_IDENTITY, |a| a.identity);
    const SERVING: u32 = flags::LOCAL | flags::ENROLLED;
    let workload: Option<Workload> = copied!(WORKLOADS, tuple.destination().ip());
    match workload.filter(|w| w.flags & SERVING == SERVING) {
        Some(w) => {
            let (client, port) = (tuple.source().ip(), tuple.destination().port());
            (source, w.identity, decide(&KernelPolicy, w.class, source, client, port))
        }
        // The hook is in place and the tables do not know the address: closed.
        None => (source, UNKNOWN_IDENTITY, Decision::refuse(Reason::UnknownDestination)),
    }
}

#[inline(always)]
fn report(tuple: Tuple, source: u32, destination: u32, decision: Decision) {
    note(decision.note);
    count(if decision.allowed() { Counter::Admitted } else { Counter::RefusedAtDestination });
    if source == HOST_IDENTITY || source == OWN_IDENTITY {
        return; // kubelet probes every few seconds, and what the agent reports itself: counted, not told
    }
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
