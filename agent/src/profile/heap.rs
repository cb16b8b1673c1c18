//! Which of the memory that the program takes is told of, and what becomes of it.
//!
//! One allocation in so many bytes is followed, chosen by chance (a Poisson process, as tcmalloc, jemalloc and Go do it), and
//! stands for the others. Large ones are nearly always seen.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::allocator;

/// Bytes between two samples, in the mean. The agent has some tens of megabytes: hundreds of samples.
pub(super) const INTERVAL: u32 = 64 << 10;
/// Frames of a stack that are kept.
const DEEPEST: usize = 96;
/// Places of the filter, by the address' hash.
const FILTER_BITS: u32 = 14;

/// What is done with allocations.
static MODE: AtomicU8 = AtomicU8::new(OFF);
const OFF: u8 = 0;
const FOR_A_WHILE: u8 = 1;
const ALWAYS: u8 = 2;

static TABLE: Mutex<Table> = Mutex::new(Table { stacks: BTreeMap::new(), living: BTreeMap::new() });

/// How many followed allocations have a hash: nearly always none, and then giving memory back takes no lock. Written under the table's lock.
static FILTER: [AtomicU16; 1 << FILTER_BITS] = [const { AtomicU16::new(0) }; 1 << FILTER_BITS];

thread_local! {
    /// This thread is in here: what it takes is the profile's own. No destructor, so that an ending thread may ask.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Bytes until the next sample, and the state of this thread's dice; 0 before the first.
    static DICE: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Of all that was allocated at one place, in the estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) taken: Amount,
    pub(super) living: Amount,
}

/// So many allocations of so many bytes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Amount {
    pub(super) objects: f64,
    pub(super) bytes: f64,
}

struct Table {
    stacks: BTreeMap<Arc<[u64]>, Totals>,
    living: BTreeMap<usize, Followed>,
}

/// An allocation that is followed.
pub(super) struct Followed {
    stack: Arc<[u64]>,
    stands_for: Amount,
}

/// Follows from now to the end of the process. For the start of the program.
pub(super) fn follow_always() {
    MODE.store(ALWAYS, Ordering::Release);
}

/// Whether [`follow_always`] was called.
pub(super) fn is_followed_always() -> bool {
    MODE.load(Ordering::Acquire) == ALWAYS
}

/// Follows until it is dropped.
pub(super) struct While(());

impl While {
    pub(super) fn begin() -> Self {
        // One profile is taken at a time: nobody else is at it.
        with_table(Table::clear);
        MODE.store(FOR_A_WHILE, Ordering::Release);
        Self(())
    }
}

impl Drop for While {
    fn drop(&mut self) {
        MODE.store(OFF, Ordering::Release);
        with_table(Table::clear);
    }
}

/// What was found so far, by stack: return addresses, innermost first.
pub(super) fn found() -> Vec<(Arc<[u64]>, Totals)> {
    with_table(|table| table.stacks.iter().map(|(stack, totals)| (stack.clone(), *totals)).collect())
        .unwrap_or_default()
}

/// `size` bytes were taken, and are at `address`.
#[inline]
pub(super) fn taken(address: usize, size: usize) {
    if MODE.load(Ordering::Relaxed) != OFF && address != 0 {
        count(address, size as u64);
    }
}

/// They will be given back. What was known of them, if they are followed.
#[inline]
pub(super) fn given_back(address: usize) -> Option<Followed> {
    if MODE.load(Ordering::Relaxed) == OFF || filter(address).load(Ordering::Acquire) == 0 {
        return None;
    }
    with_table(|table| table.remove(address)).flatten()
}

/// They were not given back after all.
pub(super) fn put_back(address: usize, followed: Option<Followed>) {
    if let Some(followed) = followed {
        with_table(|table| table.insert(address, followed, false));
    }
}

#[cold]
fn count(address: usize, size: u64) {
    let (left, state) = match DICE.get() {
        // This thread's first. An address is as good as any other seed.
        (_, 0) => throw(address as u64 | 1),
        known => known,
    };
    if size < left {
        return DICE.set((left - size, state));
    }
    DICE.set(throw(state));
    unwatched(|| {
        // Before the lock: walking takes longer than all that is done with it.
        let mut stack = [0; DEEPEST];
        let depth = allocator::stack(&mut stack);
        let stack = stack.get(..depth).unwrap_or_default();
        let mut table = table();
        let stack = match table.stacks.get_key_value(stack) {
            Some((known, _)) => known.clone(),
            None => Arc::from(stack),
        };
        table.insert(address, Followed { stack, stands_for: stands_for(size) }, true);
    });
}

/// An allocation of `size` is chosen with the probability 1 - e^(-size / interval).
fn stands_for(size: u64) -> Amount {
    let size = size.max(1) as f64;
    let objects = 1.0 / -(-size / f64::from(INTERVAL)).exp_m1();
    Amount { objects, bytes: objects * size }
}

/// Bytes until the next sample, exponentially distributed, and the dice afterwards (xorshift64*).
fn throw(mut state: u64) -> (u64, u64) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    let drawn = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11; // 53 bits
    let uniform = (drawn as f64 + 1.0) / (1_u64 << 53) as f64; // above 0, at most 1
    ((-uniform.ln() * f64::from(INTERVAL)) as u64 + 1, state)
}

impl Table {
    fn insert(&mut self, address: usize, followed: Followed, is_new: bool) {
        // Watching may have ended since the caller looked. It ends before the table is cleared, under its lock.
        if MODE.load(Ordering::Relaxed) == OFF {
            return;
        }
        // One that is still here was given back unseen.
        self.remove(address);
        let totals = self.stacks.entry(followed.stack.clone()).or_default();
        totals.living.add(followed.stands_for, 1.0);
        if is_new {
            totals.taken.add(followed.stands_for, 1.0);
        }
        filter(address).fetch_add(1, Ordering::Release);
        self.living.insert(address, followed);
    }

    fn remove(&mut self, address: usize) -> Option<Followed> {
        let followed = self.living.remove(&address)?;
        filter(address).fetch_sub(1, Ordering::Release);
        if let Some(totals) = self.stacks.get_mut(&followed.stack) {
            totals.living.add(followed.stands_for, -1.0);
        }
        Some(followed)
    }

    fn clear(&mut self) {
        self.stacks.clear();
        self.living.clear();
        for place in &FILTER {
            place.store(0, Ordering::Release);
        }
    }
}

impl Amount {
    fn add(&mut self, other: Self, sign: f64) {
        self.objects += sign * other.objects;
        self.bytes += sign * other.bytes;
    }
}

fn filter(address: usize) -> &'static AtomicU16 {
    let hash = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS);
    // Never beyond the end: the hash has no more bits than the filter has places.
    FILTER.get(hash as usize).unwrap_or(&FILTER[0])
}

/// Alone with the table. `None` for what the table itself takes and gives back.
fn with_table<T>(work: impl FnOnce(&mut Table) -> T) -> Option<T> {
    unwatched(|| work(&mut table()))
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `work` takes and gives back is not looked at. `None` for what is within such work already.
fn unwatched<T>(work: impl FnOnce() -> T) -> Option<T> {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            INSIDE.set(false);
        }
    }

    if INSIDE.replace(true) {
        return None;
    }
    let _leave = Leave;
    Some(work())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stand_for_what_was_not_sampled() {
        // Small ones are seldom chosen and stand for many; large ones always, for themselves.
        assert!((stands_for(64).bytes - f64::from(INTERVAL)).abs() < 100.0);
        assert!((stands_for(1 << 20).objects - 1.0).abs() < 1e-6);
        let (mut state, mut sum) = (7, 0.0);
        for _ in 0..100_000 {
            let (pause, next) = throw(state);
            sum += pause as f64;
            state = next;
        }
        let mean = sum / 100_000.0;
        assert!((mean / f64::from(INTERVAL) - 1.0).abs() < 0.02, "{mean}");
    }
}
