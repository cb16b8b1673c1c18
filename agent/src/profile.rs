//! Where the agent's processor time goes: stacks that the kernel takes, with names, as pprof has them.

mod cpu;
mod kernel;
mod pprof;
mod symbols;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use symbols::Symbols;

/// Addresses, the innermost first, as the kernel tells them, with marks between its own and the program's.
type Stack = Vec<u64>;

/// What is to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuProfile {
    /// How long.
    pub length: Duration,
    /// Samples a second of processor time, of each thread.
    pub frequency: u64,
    /// How the result is written.
    pub form: Form,
}

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// gzipped protobuf, for `go tool pprof` and others.
    Pprof,
    /// A stack a line, outermost function first, and how often it was seen: for flame graphs.
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
        write(&wanted, begun, &stacks)
    });
    work.await.unwrap_or_else(|error| Err(ProfileError::Write(io::Error::other(error))))
}

fn write(
    wanted: &CpuProfile,
    begun: SystemTime,
    stacks: &HashMap<Stack, u64>,
) -> Result<Vec<u8>, ProfileError> {
    let seen = stacks.keys().flat_map(|stack| cpu::places(stack)).collect();
    let symbols = Symbols::of(&seen).map_err(ProfileError::Write)?;
    match wanted.form {
        Form::Folded => Ok(folded(stacks, &symbols).into_bytes()),
        Form::Pprof => pprof::write(wanted, begun, stacks, &symbols).map_err(ProfileError::Write),
    }
}

fn folded(stacks: &HashMap<Stack, u64>, symbols: &Symbols) -> String {
    let mut lines: HashMap<String, u64> = HashMap::new();
    for (stack, count) in stacks {
        // A semicolon stands between names.
        let mut names: Vec<_> =
            cpu::places(stack).map(|place| symbols.name(place).replace(';', ":")).collect();
        names.reverse();
        *lines.entry(names.join(";")).or_default() += count;
    }
    let mut lines: Vec<_> = lines.into_iter().map(|(names, count)| format!("{names} {count}\n")).collect();
    lines.sort();
    lines.concat()
}

#[cfg(test)]
pub(crate) mod tests;
