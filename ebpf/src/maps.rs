//! Every map in one place. Keys, values, writers and readers: the table at the top of `culvert_common`.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage,
};
use aya_ebpf::macros::btf_map;
use culvert_common::*;

/// Large maps take memory as they fill.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "config")]
pub static CONFIG: Array<Config, 1> = Array::new();

#[btf_map(name = "pods")]
pub static PODS: HashMap<u64, Pod, MAX_PODS, ON_DEMAND> = HashMap::new();

#[btf_map(name = "guards")]
pub static GUARDS: HashMap<u32, Guard, MAX_PODS, ON_DEMAND> = HashMap::new();

#[btf_map(name = "workloads")]
pub static WORKLOADS: HashMap<Ip, Workload, MAX_WORKLOADS, ON_DEMAND> = HashMap::new();

#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, Service, MAX_SERVICES, ON_DEMAND> = HashMap::new();

#[btf_map(name = "backends")]
pub static BACKENDS: HashMap<BackendKey, Endpoint, MAX_BACKENDS, ON_DEMAND> = HashMap::new();

#[btf_map(name = "members")]
pub static MEMBERS: HashMap<Member, u32, MAX_BACKENDS, ON_DEMAND> = HashMap::new();

/// What it forgets is chosen anew.
#[btf_map(name = "affinity")]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, MAX_AFFINITY> = LruHashMap::new();

#[btf_map(name = "policy")]
pub static POLICY: HashMap<PolicyKey, PolicyRow, MAX_POLICY_ROWS, ON_DEMAND> = HashMap::new();

#[btf_map(name = "sources")]
pub static SOURCES: LpmTrie<SourceKey, u32, MAX_SOURCES> = LpmTrie::new();

#[btf_map(name = "unlisted")]
pub static UNLISTED: LpmTrie<SourceKey, u32, MAX_UNLISTED> = LpmTrie::new();

#[btf_map(name = "notes")]
pub static NOTES: PerCpuHashMap<u32, u64, MAX_NOTES, ON_DEMAND> = PerCpuHashMap::new();

#[btf_map(name = "policy_names")]
pub static POLICY_NAMES: HashMap<u32, Name, MAX_POLICIES, ON_DEMAND> = HashMap::new();

#[btf_map(name = "identities")]
pub static IDENTITIES: HashMap<u32, Name, MAX_IDENTITIES, ON_DEMAND> = HashMap::new();

/// Preallocated: a connection must not fail for want of memory in softirq.
#[btf_map(name = "admitted")]
pub static ADMITTED: HashMap<Tuple, Admission, MAX_ADMITTED> = HashMap::new();

#[btf_map(name = "connections")]
pub static CONNECTIONS: HashMap<Tuple, Connection, MAX_CONNECTIONS> = HashMap::new();

#[btf_map(name = "original_dst")]
pub static ORIGINAL_DST: HashMap<LocalKey, OriginalDst, MAX_HANDOVERS> = HashMap::new();

#[btf_map(name = "original_src")]
pub static ORIGINAL_SRC: HashMap<LocalKey, Endpoint, MAX_HANDOVERS> = HashMap::new();

#[btf_map(name = "socket_state")]
pub static SOCKET_STATE: SkStorage<SocketState> = SkStorage::new();

#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

#[btf_map(name = "events")]
pub static EVENTS: RingBuf<FlowEvent, EVENT_RING_BYTES> = RingBuf::new();

/// The settings; `None` only before the agent's first write, when nothing is enrolled either.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// A copy of the value under `key`.
macro_rules! copied {
    ($map:expr, $key:expr) => {
        // SAFETY: the value is copied out before any other map operation; an update replaces the element as a whole.
        unsafe { $map.get($key).copied() }
    };
}
pub(crate) use copied;

/// The kernel's rows, for [`decide`].
pub struct KernelPolicy;

impl PolicyTable for KernelPolicy {
    #[inline(always)]
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        copied!(POLICY, key)
    }

    #[inline(always)]
    fn class_at(&self, key: &SourceKey) -> Option<u32> {
        SOURCES.get(&Key::new(SourceKey::BITS, *key)).copied()
    }
}
