//! Where the agent's processor time goes, by stacks that the kernel takes; and its memory, by stacks that the allocator takes. With
//! names, as pprof has them.

mod allocator;
mod cpu;
mod heap;
mod kernel;
mod pprof;
mod symbols;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

pub use allocator::FollowedAllocator;
use cpu::Place;
use symbols::Symbols;

/// Addresses, the innermost first, as the kernel tells them, with marks between its own and the program's.
type Stack = Vec<u64>;

/// What is to be measured of processor time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuProfile {
    /// How long.
    pub length: Duration,
    /// Samples a second of processor time, of each thread.
    pub frequency: u64,
    /// How the result is written.
    pub form: Form,
}

/// What is to be measured of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapProfile {
    /// How long to watch; `None` asks for what has been found since the start, if [`follow_heap`] was called then.
    pub length: Option<Duration>,
    /// How the result is written.
    pub form: Form,
}

/// Allocations are watched from now on, for [`heap()`] to tell at any time. To be called before there is much to watch.
pub fn follow_heap() {
    heap::follow_always();
}

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// gzipped protobuf, for `go tool pprof` and others.
    Pprof,
    /// A stack a line, outermost function first, and how often it was seen, or the bytes that live: for flame graphs.
    Folded,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Another one is being taken.
    #[error("another profile is being taken: wait for it to end")]
    Busy,
    /// Whoever asked has gone.
    #[error("nobody waits for the profile any more")]
    Abandoned,
    /// The kernel does not let the agent.
    #[error(
        "the kernel takes no samples ({0}): perf_event_open(2) needs CAP_PERFMON or CAP_SYS_ADMIN, and a seccomp profile that lets it through"
    )]
    Kernel(io::Error),
    /// Nobody has watched.
    #[error(
        "allocations have not been watched: say for how long (seconds=10), or start the agent with --follow-heap"
    )]
    NotFollowed,
    /// Somebody has watched for longer.
    #[error("allocations are watched since the start (--follow-heap): ask without seconds")]
    FollowedAlways,
    /// It cannot be written.
    #[error("the profile cannot be written: {0}")]
    Write(io::Error),
}

/// One profile at a time: threads are looked at once.
static TAKEN: AtomicBool = AtomicBool::new(false);

struct Turn;

impl Turn {
    fn take() -> Result<Self, ProfileError> {
        if TAKEN.swap(true, Ordering::AcqRel) { Err(ProfileError::Busy) } else { Ok(Self) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// Told when the profile's reader has gone.
#[derive(Default)]
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Takes a profile of this process. Dropping the future ends it. Costs nothing before and after.
///
/// # Errors
///
/// [`ProfileError`]
pub async fn cpu(wanted: CpuProfile) -> Result<Vec<u8>, ProfileError> {
    let turn = Turn::take()?;
    let abandon = Abandon::default();
    let gone = abandon.0.clone();
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let begun = SystemTime::now();
        let stacks = cpu::record(wanted.length, wanted.frequency, &gone).map_err(ProfileError::Kernel)?;
        if gone.load(Ordering::Acquire) {
            return Err(ProfileError::Abandoned);
        }
        write(&of_cpu(&wanted, begun, stacks), wanted.form)
    });
    work.await.unwrap_or_else(|error| Err(ProfileError::Write(io::Error::other(error))))
}

/// Watches allocations for a while, or tells what has been found since the start. Dropping the future ends it. Costs nothing before
/// and after.
///
/// # Errors
///
/// [`ProfileError`]
pub async fn heap(wanted: HeapProfile) -> Result<Vec<u8>, ProfileError> {
    let always = heap::is_followed_always();
    match wanted.length {
        None if !always => return Err(ProfileError::NotFollowed),
        Some(_) if always => return Err(ProfileError::FollowedAlways),
        _ => {}
    }
    let turn = Turn::take()?;
    let begun = SystemTime::now();
    let watched = wanted.length.map(|_| heap::While::begin());
    if let Some(length) = wanted.length {
        tokio::time::sleep(length).await;
    }
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let found = heap::found();
        drop(watched);
        write(&of_heap(&wanted, begun, found), wanted.form)
    });
    work.await.unwrap_or_else(|error| Err(ProfileError::Write(io::Error::other(error))))
}

/// A profile that is to be written, in pprof's terms.
struct Measured {
    /// Kind and unit of each value of a sample.
    kinds: &'static [(&'static str, &'static str)],
    /// Which of them counts where there is room for one.
    main: usize,
    /// Kind and unit of what is between two samples.
    period_of: (&'static str, &'static str),
    period: u64,
    begun: SystemTime,
    length: Duration,
    /// The innermost places are the allocator's.
    of_memory: bool,
    /// The innermost place first.
    stacks: Vec<(Vec<Place>, Vec<i64>)>,
}

fn of_cpu(wanted: &CpuProfile, begun: SystemTime, stacks: HashMap<Stack, u64>) -> Measured {
    let period = 1_000_000_000 / wanted.frequency.max(1);
    let values =
        |count: u64| [count, count.saturating_mul(period)].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    Measured {
        kinds: &[("samples", "count"), ("cpu", "nanoseconds")],
        main: 0,
        period_of: ("cpu", "nanoseconds"),
        period,
        begun,
        length: wanted.length,
        of_memory: false,
        stacks: stacks.iter().map(|(stack, n)| (cpu::places(stack).collect(), values(*n).to_vec())).collect(),
    }
}

fn of_heap(wanted: &HeapProfile, begun: SystemTime, found: Vec<(Arc<[u64]>, heap::Totals)>) -> Measured {
    let place = |address: &u64| Place { address: *address, in_kernel: false, returns: true };
    let values = |totals: heap::Totals| {
        let heap::Totals { taken, living } = totals;
        [taken.objects, taken.bytes, living.objects, living.bytes].map(|n| n.round() as i64)
    };
    Measured {
        kinds: &[
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ],
        main: 3,
        period_of: ("space", "bytes"),
        period: u64::from(heap::INTERVAL),
        begun,
        length: wanted.length.unwrap_or_default(),
        of_memory: true,
        stacks: found
            .iter()
            .map(|(stack, totals)| (stack.iter().map(place).collect(), values(*totals).to_vec()))
            .collect(),
    }
}

fn write(measured: &Measured, form: Form) -> Result<Vec<u8>, ProfileError> {
    let seen = measured.stacks.iter().flat_map(|(stack, _)| stack.iter().copied()).collect();
    let symbols = Symbols::of(&seen).map_err(ProfileError::Write)?;
    match form {
        Form::Folded => Ok(folded(measured, &symbols).into_bytes()),
        Form::Pprof => pprof::write(measured, &symbols).map_err(ProfileError::Write),
    }
}

/// What to show of one of its stacks: not the frames of the allocator, which are at the top of each that it has taken.
fn told<'a>(measured: &Measured, stack: &'a [Place], symbols: &Symbols) -> &'a [Place] {
    if !measured.of_memory {
        return stack;
    }
    let ours = |place: &Place| {
        let name = symbols.name(*place);
        [
            "culvert::profile::allocator",
            "culvert::profile::heap::",
            "__rust_alloc",
            "__rust_realloc",
            "__rdl_",
            "__rg_",
        ]
        .iter()
        .any(|own| name.contains(own))
    };
    let own = stack.iter().take(OWN_FRAMES).rposition(ours).map_or(0, |last| last + 1);
    stack.get(own..).unwrap_or_default()
}

/// No more frames than these are the allocator's.
const OWN_FRAMES: usize = 8;

fn folded(measured: &Measured, symbols: &Symbols) -> String {
    let mut lines: HashMap<String, i64> = HashMap::new();
    for (stack, values) in &measured.stacks {
        // A semicolon stands between names.
        let names =
            told(measured, stack, symbols).iter().rev().map(|place| symbols.name(*place).replace(';', ":"));
        let value = values.get(measured.main).copied().unwrap_or_default();
        *lines.entry(names.collect::<Vec<_>>().join(";")).or_default() += value;
    }
    let lines = lines.into_iter().filter(|(_, value)| *value != 0);
    let mut lines: Vec<_> = lines.map(|(names, value)| format!("{names} {value}\n")).collect();
    lines.sort();
    lines.concat()
}

#[cfg(test)]
pub(crate) mod tests;
