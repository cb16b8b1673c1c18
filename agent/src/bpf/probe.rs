//! Why the kernel side cannot be brought up on an old kernel: what of it is missing, found by trying each thing by itself. A version
//! alone proves nothing: distributions carry features into older kernels.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::features::{FEATURES, Feature, MINIMUM, version};
use super::link;

/// What the running kernel lacks of what Culvert cannot do without, as a sentence; `None` when nothing is.
pub fn lacking() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let missing: Vec<&Feature> = FEATURES
        .iter()
        .filter(|feature| feature.without.is_none())
        .filter(|feature| !tried(feature.name).unwrap_or_else(|| by_version(feature, release)))
        .collect();
    (!missing.is_empty()).then(|| sentence(release, &missing))
}

fn by_version(feature: &Feature, release: &str) -> bool {
    version(release).is_none_or(|running| running >= feature.since)
}

/// Whether the kernel has the feature; `None` when it cannot be tried.
fn tried(feature: &str) -> Option<bool> {
    let helper = |program, helper| is_helper_supported(program, helper).ok();
    let map = |kind| is_map_supported(kind).ok();
    match feature {
        "bpf_set_retval, connect and bind" => {
            helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        }
        "bpf_get_netns_cookie, sockops" => helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie),
        "SO_NETNS_COOKIE" => Some(crate::sys::own_netns_cookie().is_ok()),
        "sk_lookup" => is_program_supported(ProgramType::SkLookup).ok(),
        "BPF ring buffer" => map(MapType::RingBuf),
        "cgroup links and their update" => Some(link::has_link_update()),
        "bpf_get_netns_cookie, connect" => {
            helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie)
        }
        "bpf_get_current_cgroup_id, connect" => {
            helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_current_cgroup_id)
        }
        "bpf_sk_storage_get, connect and sockops" => {
            let connect = helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get)?;
            Some(connect && helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get)?)
        }
        "SK_STORAGE" => map(MapType::SkStorage),
        "bpf_skb_load_bytes_relative" => {
            helper(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_skb_load_bytes_relative)
        }
        "connect and bind hooks" => is_program_supported(ProgramType::CgroupSockAddr).ok(),
        "LPM trie" => map(MapType::LpmTrie),
        "per-CPU hash" => map(MapType::PerCpuHash),
        // A program must be attached to tell, or run.
        _ => None,
    }
}

fn sentence(release: &str, missing: &[&Feature]) -> String {
    let list: Vec<String> = missing
        .iter()
        .map(|feature| {
            let (major, minor) = feature.since;
            format!("{} (Linux {major}.{minor}; {})", feature.name, feature.used_for)
        })
        .collect();
    let (major, minor) = MINIMUM;
    format!(
        "this kernel ({release}) lacks what Culvert cannot do without: {}. Linux {major}.{minor} or newer has all of it",
        list.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_version_and_use() {
        let missing: Vec<&Feature> = FEATURES
            .iter()
            .filter(|feature| feature.without.is_none() && !by_version(feature, "5.15.0-91-generic"))
            .collect();
        assert_eq!(
            sentence("5.15.0-91-generic", &missing),
            "this kernel (5.15.0-91-generic) lacks what Culvert cannot do without: bpf_set_retval, connect and bind \
             (Linux 6.1; a refused connect() returns ECONNREFUSED). Linux 6.1 or newer has all of it"
        );
        assert_eq!(FEATURES.iter().filter(|feature| !by_version(feature, "5.4.0")).count(), 10);
    }
}
