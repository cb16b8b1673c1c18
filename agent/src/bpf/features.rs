//! What Culvert needs of the kernel, and the version that brought it. Also compiled into xtask, so it uses nothing but the standard
//! library. docs/kernel.md says the same for readers.

/// A kernel feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// Its name.
    pub(crate) name: &'static str,
    /// The first mainline version that has it; distributions carry some into older ones.
    pub(crate) since: (u32, u32),
    /// What Culvert does with it.
    pub(crate) used_for: &'static str,
    /// What Culvert does without it; `None` when it cannot do without.
    pub(crate) without: Option<&'static str>,
}

const fn required(name: &'static str, since: (u32, u32), used_for: &'static str) -> Feature {
    Feature { name, since, used_for, without: None }
}

/// Newest first, as the first that is missing explains most.
pub(crate) const FEATURES: [Feature; 17] = [
    Feature {
        name: "tcx links",
        since: (6, 6),
        used_for: "source guard on pods' interfaces",
        without: Some("a tc filter at the clsact qdisc does it"),
    },
    required("bpf_set_retval, connect and bind", (6, 1), "a refused connect() returns ECONNREFUSED"),
    required("bpf_get_netns_cookie, sockops", (5, 15), "whose connection it is, before its SYN leaves"),
    required("SO_NETNS_COOKIE", (5, 14), "the agent learns a pod's cookie"),
    required("sk_lookup", (5, 9), "the verdict at the destination pod"),
    required("getpeername hooks", (5, 8), "an app sees the address that it asked for"),
    required("BPF ring buffer", (5, 8), "flow events"),
    required(
        "cgroup links and their update",
        (5, 7),
        "programs outlive the agent, and are replaced in place",
    ),
    required("bpf_get_netns_cookie, connect", (5, 7), "whose connection it is"),
    required("bpf_get_current_cgroup_id, connect", (5, 7), "the agent's own sockets are told from an app's"),
    required("bpf_sk_storage_get, connect and sockops", (5, 3), "what was decided stays with the socket"),
    required("SK_STORAGE", (5, 2), "what was decided stays with the socket"),
    required("bpf_skb_load_bytes_relative", (4, 18), "source guard on pods' interfaces"),
    required("connect and bind hooks", (4, 17), "decisions at connect()"),
    required("sockops state callbacks", (4, 16), "the end of a connection"),
    required("LPM trie", (4, 11), "policies that ask for the client's address"),
    required("per-CPU hash", (4, 6), "counts of AUDIT and dry-run policies"),
];

/// The oldest kernel that has all that Culvert cannot do without.
pub(crate) const MINIMUM: (u32, u32) = (6, 1);

/// `6.1.0-18-amd64` is (6, 1).
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_as_major_and_minor() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc3"), Some((5, 15)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn features_are_sorted_and_the_minimum_is_that_of_the_required_ones() {
        assert!(FEATURES.is_sorted_by(|a, b| a.since >= b.since));
        let needed = FEATURES.iter().filter(|feature| feature.without.is_none());
        assert_eq!(needed.map(|feature| feature.since).max(), Some(MINIMUM));
    }

    #[test]
    fn the_reference_lists_every_feature_with_its_version() {
        let page = include_str!("../../../docs/kernel.md");
        for feature in FEATURES {
            let (major, minor) = feature.since;
            let row = format!("| {} | {major}.{minor} |", feature.name);
            assert!(page.contains(&row), "docs/kernel.md lacks {row:?}");
        }
        assert!(page.contains(&format!("Linux {}.{}", MINIMUM.0, MINIMUM.1)));
    }
}
