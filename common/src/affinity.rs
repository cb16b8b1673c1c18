//! Session affinity: which backend of a service a pod was led to last.
//!
//! A hint, and nothing more: an entry that is missing, too old, or of a backend that the service has no longer makes the
//! connect hook choose again. So the map may forget what was not used for longest.

use bytemuck::{Pod, Zeroable};

use crate::{Endpoint, assert_size};

/// A client of a service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct AffinityKey {
    /// Netns cookie of the client's pod: a pod that gets the address of another is not that one.
    pub netns: u64,
    /// [`crate::Service::id`]: the port and the family of the virtual address count, as they do for kube-proxy.
    pub service: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(AffinityKey, 16);

impl AffinityKey {
    /// The client in the namespace with this cookie.
    #[inline(always)]
    pub const fn new(netns: u64, service: u32) -> Self {
        Self { netns, service, reserved: 0 }
    }
}

/// Where a client was led to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Affinity {
    /// `bpf_ktime_get_ns()` of its last connection: CLOCK_MONOTONIC, nanoseconds.
    pub used_ns: u64,
    /// The backend.
    pub backend: Endpoint,
    /// Zero.
    pub reserved: u32,
}
assert_size!(Affinity, 32);

impl Affinity {
    /// A client that is led to `backend` now.
    #[inline(always)]
    pub const fn new(used_ns: u64, backend: Endpoint) -> Self {
        Self { used_ns, backend, reserved: 0 }
    }

    /// Whether the client's last connection was within `seconds`.
    #[inline(always)]
    pub const fn holds(&self, now_ns: u64, seconds: u32) -> bool {
        now_ns.saturating_sub(self.used_ns) <= seconds as u64 * 1_000_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip;

    #[test]
    fn an_entry_holds_until_its_time_is_up() {
        let used = Affinity::new(5_000_000_000, Endpoint::new(Ip::UNSPECIFIED, 80));
        assert!(used.holds(5_000_000_000, 1) && used.holds(6_000_000_000, 1));
        assert!(!used.holds(6_000_000_001, 1));
        // Another CPU may be a little ahead.
        assert!(used.holds(4_999_999_999, 1));
        assert!(
            used.holds(u64::MAX, u32::MAX) == (u64::MAX - 5_000_000_000 <= u32::MAX as u64 * 1_000_000_000)
        );
    }
}
