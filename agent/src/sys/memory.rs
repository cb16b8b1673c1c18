//! Memory that the allocator has kept for later.
//!
//! glibc gives back only what is at the end of its heaps. A burst of traffic leaves the agent with what it needed at most, for good:
//! a stalled reader's half MiB is given back to the allocator, and the system never sees it again.

use std::fs;

/// Bytes of `field` (`VmRSS:`, `RssAnon:`) in the text of `/proc/self/status`.
pub fn of_status(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of memory that the process has and nobody uses: kept for later, lost between allocations, or never the allocator's (stacks,
/// what was loaded). `None` where that cannot be told: without glibc.
pub fn kept() -> Option<u64> {
    let resident = of_status(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")?;
    Some(resident.saturating_sub(used()?))
}

/// What has been allocated and not given back (mallinfo2(3), glibc 2.33).
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe binding of mallinfo2 exists")]
fn used() -> Option<u64> {
    // SAFETY: it takes nothing, and returns numbers.
    let info = unsafe { nix::libc::mallinfo2() };
    u64::try_from(info.uordblks.saturating_add(info.hblkhd)).ok()
}

#[cfg(not(target_env = "gnu"))]
fn used() -> Option<u64> {
    None
}

/// Gives whole pages that nobody uses back to the system (malloc_trim(3)). Threads that allocate meanwhile may wait for some
/// milliseconds.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe binding of malloc_trim exists")]
pub fn give_back() {
    // SAFETY: only memory that is not allocated is touched, under the allocator's own locks.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Nothing is known of other allocators.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_allocations_goes_back() {
        const MIB: u64 = 1 << 20;
        // Small enough to come from a heap, and every sixteenth stays: the heap cannot shrink from its end.
        let blocks: Vec<Vec<u8>> = (0..2048).map(|_| vec![7; 64 << 10]).collect();
        let full = kept().unwrap();
        let stay: Vec<Vec<u8>> = blocks.into_iter().step_by(16).collect();
        let before = kept().unwrap();
        assert!(before > full + 64 * MIB, "{full} {before}");
        give_back();
        let after = kept().unwrap();
        assert!(after < before - 64 * MIB, "{before} {after}");
        assert!(stay.iter().all(|block| block.iter().all(|byte| *byte == 7)));
    }

    #[test]
    fn a_line_of_the_status_is_in_kibibytes() {
        let status = "VmPeak:\t  10 kB\nRssAnon:\t    3072 kB\n";
        assert_eq!(of_status(status, "RssAnon:"), Some(3 << 20));
        assert_eq!(of_status(status, "RssFile:"), None);
    }
}
