//! Whose a BPF program is and what it means, by owners.txt. Also compiled into xtask, so it uses nothing but the standard library.

/// The table; its head says what the columns are.
const TABLE: &str = include_str!("owners.txt");

/// What is known about the owner of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether the two get in each other's way.
    pub(crate) conflict: bool,
    /// What it means for Culvert.
    pub(crate) meaning: &'static str,
    /// What to do; empty: nothing.
    pub(crate) remedy: &'static str,
}

/// The kind of hook, as in the table, of an attach type in bpftool's words of either generation; `None`: Culvert has nothing there.
pub(crate) fn hook_kind(attach_type: &str) -> Option<&'static str> {
    Some(match attach_type {
        "connect4" | "connect6" | "cgroup_inet4_connect" | "cgroup_inet6_connect" => "connect",
        "sendmsg4" | "sendmsg6" | "recvmsg4" | "recvmsg6" => "datagram",
        "cgroup_udp4_sendmsg" | "cgroup_udp6_sendmsg" | "cgroup_udp4_recvmsg" | "cgroup_udp6_recvmsg" => {
            "datagram"
        }
        "bind4" | "bind6" | "cgroup_inet4_bind" | "cgroup_inet6_bind" => "bind",
        "getpeername4" | "getpeername6" => "peername",
        "cgroup_inet4_getpeername" | "cgroup_inet6_getpeername" => "peername",
        "sock_ops" | "cgroup_sock_ops" => "sockops",
        "sk_lookup" => "lookup",
        "ingress" | "egress" | "cgroup_inet_ingress" | "cgroup_inet_egress" => "packets",
        "tcx_ingress" | "tcx/ingress" | "clsact/ingress" => "filter",
        _ => return None,
    })
}

/// Whose program this is, by its name and the kind of its hook.
pub(crate) fn owner(program: &str, kind: &str) -> Owner {
    let known = rows().find(|row| {
        let [beginning, hooks, ..] = row;
        program.starts_with(beginning) && (*hooks == "*" || hooks.split(',').any(|hook| hook == kind))
    });
    let [_, _, name, level, meaning, remedy] =
        known.unwrap_or(["", "", "somebody unknown", "harmless", "Culvert has nothing on this hook", ""]);
    Owner { name, conflict: level == "conflict", meaning, remedy }
}

fn rows() -> impl Iterator<Item = [&'static str; 6]> {
    TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let columns: Vec<&str> = line.split(" | ").map(str::trim).collect();
        columns.try_into().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_columns_and_known_words() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(rows().count(), lines);
        let kinds = [
            "*",
            "connect",
            "datagram",
            "bind",
            "peername",
            "sockops",
            "lookup",
            "filter",
            "packets",
            "netfilter",
        ];
        for [_, hooks, owner, level, meaning, remedy] in rows() {
            assert!(hooks.split(',').all(|hook| kinds.contains(&hook)), "{hooks}");
            assert!(["harmless", "conflict"].contains(&level), "{level}");
            assert!(!owner.is_empty() && !meaning.is_empty());
            assert_eq!(
                level == "conflict",
                !remedy.is_empty(),
                "{owner}: a conflict has a remedy, nothing else does"
            );
        }
    }

    #[test]
    fn owners_are_told_by_names_that_the_kernel_has_cut() {
        for (program, hook, wanted, conflict) in [
            ("cil_sock4_conne", "connect4", "Cilium's socket load balancing", true),
            ("cil_sock6_sendm", "cgroup_udp6_sendmsg", "Cilium's socket load balancing", false),
            ("cil_from_contai", "tcx/ingress", "Cilium", false),
            ("calico_connect_", "cgroup_inet4_connect", "Calico's connect-time load balancing", true),
            ("cali_tc_preambl", "clsact/ingress", "Calico's eBPF data plane", false),
            ("cgroup_connect4", "connect4", "Kmesh", true),
            ("mb_sock_connect", "connect4", "Merbridge", true),
            ("sd_fw_ingress", "cgroup_inet_ingress", "systemd", false),
            ("culvert_connect", "connect4", "another Culvert", true),
            ("lb4", "connect4", "somebody unknown", true),
            ("", "sock_ops", "somebody unknown", false),
        ] {
            let kind = hook_kind(hook).unwrap();
            let found = owner(program, kind);
            assert_eq!((found.name, found.conflict), (wanted, conflict), "{program} at {hook}");
        }
        assert_eq!(hook_kind("cgroup_device"), None);
    }
}
