//! Telling userspace: counters always, events while the ring buffer has room. A connection never waits for a reader.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use culvert_common::{Counter, FlowEvent};

use crate::maps::{COUNTERS, EVENTS, NOTES};

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own, and programs of one CPU do not preempt each other in the middle of it.
        unsafe { *value += 1 };
    }
}

/// Counts what AUDIT and dry-run policies say beside a verdict. Each connection is counted where it is decided last: at
/// the source when it is refused there, else at the destination.
#[inline(always)]
pub fn note(note: u32) {
    if note == 0 {
        return;
    }
    match NOTES.get_ptr_mut(&note) {
        // SAFETY: as for `count`.
        Some(times) => unsafe { *times += 1 },
        None => count(Counter::NotesLost), // the agent writes the element before any row that refers to it, if there is room
    }
}

/// Reports `event`; a full ring buffer is counted, not hidden.
#[inline(always)]
pub fn emit(event: FlowEvent) {
    match EVENTS.reserve(0) {
        Some(mut slot) => {
            slot.write(event);
            slot.submit(0);
        }
        None => count(Counter::EventsLost),
    }
}
