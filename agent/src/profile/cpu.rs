//! Samples of what threads do, taken by the kernel (perf_event_open(2)): no signal reaches the agent, no system call is
//! interrupted, and nothing of the agent runs where a thread may hold a lock. Stacks are found by frame pointers, which the agent is
//! built with.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, SampleFlag, Sampler};

use super::Stack;

/// What follows is in the kernel (`PERF_CONTEXT_KERNEL`, include/uapi/linux/perf_event.h).
pub(super) const KERNEL: u64 = -128_i64 as u64;
/// Whatever is not below is no address (`PERF_CONTEXT_MAX`).
const MARKS: u64 = -4095_i64 as u64;
/// How often samples are fetched, and new threads looked for.
const ROUND: Duration = Duration::from_millis(100);
/// Room for the samples of a round at 1000 a second, in each of which 127 addresses fit (`kernel.perf_event_max_stack`).
const RING: usize = 128 << 10;

/// An address in a stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place {
    pub(super) address: u64,
    pub(super) in_kernel: bool,
    /// It is where a call returns to: the call itself is before it.
    pub(super) returns: bool,
}

impl Place {
    /// An address inside of the instruction that is meant.
    pub(super) fn inside(self) -> u64 {
        self.address.wrapping_sub(u64::from(self.returns))
    }
}

/// Stacks of all threads for so long, with how often each was seen. Ends early when `gone` is set.
///
/// # Errors
///
/// The kernel does not let this process watch itself.
pub(super) fn record(length: Duration, frequency: u64, gone: &AtomicBool) -> io::Result<HashMap<Stack, u64>> {
    let end = Instant::now() + length;
    let mut stacks = HashMap::new();
    let mut threads: HashMap<i32, Sampler> = HashMap::new();
    loop {
        watch_new(&mut threads, frequency)?;
        let left = end.saturating_duration_since(Instant::now());
        std::thread::sleep(left.min(ROUND));
        for sampler in threads.values_mut() {
            fetch(sampler, &mut stacks);
        }
        if left <= ROUND || gone.load(Ordering::Acquire) {
            return Ok(stacks);
        }
    }
}

/// Threads that have ended stay until the end: their last samples are not lost.
fn watch_new(threads: &mut HashMap<i32, Sampler>, frequency: u64) -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/task")? {
        let Some(thread) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if threads.contains_key(&thread) {
            continue;
        }
        match watch(thread, frequency) {
            Ok(sampler) => drop(threads.insert(thread, sampler)),
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn watch(thread: i32, frequency: u64) -> io::Result<Sampler> {
    let mut counter = Builder::new(Software::CPU_CLOCK)
        .observe_pid(thread)
        .any_cpu()
        .sample_period(1_000_000_000 / frequency.max(1))
        .sample(SampleFlag::CALLCHAIN)
        .include_kernel()
        .build()?;
    counter.enable()?;
    counter.sampled(RING)
}

fn fetch(sampler: &mut Sampler, stacks: &mut HashMap<Stack, u64>) {
    while let Some(record) = sampler.next_record() {
        let Ok(Record::Sample(sample)) = record.parse_record() else { continue };
        if let Some(stack) = sample.callchain() {
            *stacks.entry(stack.to_vec()).or_default() += 1;
        }
    }
}

/// The addresses of a stack, innermost first.
pub(super) fn places(stack: &[u64]) -> impl Iterator<Item = Place> + '_ {
    let (mut in_kernel, mut returns) = (false, false);
    stack.iter().filter_map(move |address| {
        if *address >= MARKS {
            in_kernel = *address == KERNEL;
            returns = false;
            return None;
        }
        Some(Place { address: *address, in_kernel, returns: std::mem::replace(&mut returns, true) })
    })
}
