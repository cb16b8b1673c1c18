//! Who else is on this machine: other users of the same hooks, and labs that run or were left behind.

use std::collections::BTreeMap;
use std::path::Path;

use super::Finding;
use crate::{exec, machine};

/// Hooks that Culvert uses too: programs of others may rewrite or refuse connections before or after it.
const SHARED_HOOKS: [&str; 6] =
    ["connect4", "connect6", "getpeername4", "getpeername6", "sock_ops", "sk_lookup"];
/// bpftool's older names for the same hooks.
const OLD_NAMES: [(&str, &str); 4] = [
    ("cgroup_inet4_connect", "connect4"),
    ("cgroup_inet6_connect", "connect6"),
    ("cgroup_inet4_getpeername", "getpeername4"),
    ("cgroup_inet6_getpeername", "getpeername6"),
];
/// How names of a lab's namespaces, cgroups, pins and state begin.
const LAB_PREFIXES: [&str; 2] = ["culvert", "clab-"];

pub(super) fn findings() -> Vec<Finding> {
    vec![programs(), labs()]
}

fn programs() -> Finding {
    let what = "other BPF programs";
    let mut hooks = Vec::new();
    if let Some(cgroup) = machine::mount_point("cgroup2") {
        match exec::ask("bpftool", ["-j".as_ref(), "cgroup".as_ref(), "tree".as_ref(), cgroup.as_os_str()]) {
            Ok(json) => hooks.extend(strings(&json, "attach_type")),
            Err(error) => {
                return Finding::warn(what, format!("cannot tell: {error:#}"), "run as root, with bpftool");
            }
        }
    }
    let links = exec::ask("bpftool", ["-j", "link", "show"]).unwrap_or_default();
    hooks.extend(strings(&links, "attach_type").into_iter().filter(|hook| hook == "sk_lookup"));
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for hook in hooks.iter().map(|hook| modern(hook)).filter(|hook| SHARED_HOOKS.contains(hook)) {
        *counts.entry(hook.to_owned()).or_default() += 1;
    }
    if counts.is_empty() {
        return Finding::ok(what, "none on the hooks that Culvert uses");
    }
    let list: Vec<String> = counts.iter().map(|(hook, count)| format!("{count} {hook}")).collect();
    Finding::warn(
        what,
        format!("{} (a running Culvert's own among them)", list.join(", ")),
        "`bpftool cgroup tree` and `bpftool link show` tell whose; with a CNI's, see that its socket load balancing \
         is limited to the host's namespace",
    )
}

fn modern(hook: &str) -> &str {
    OLD_NAMES.iter().find(|(old, _)| *old == hook).map_or(hook, |(_, new)| new)
}

/// The string values of `key` in bpftool's JSON, which has no spaces and no escapes in such values.
fn strings(json: &str, key: &str) -> Vec<String> {
    let marker = format!("\"{key}\":\"");
    json.split(&marker).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
}

fn labs() -> Finding {
    let cgroup = machine::mount_point("cgroup2").unwrap_or_default();
    let places: [(&str, Vec<String>); 4] = [
        ("namespaces", of_labs("/run/netns".as_ref())),
        ("cgroups", if cgroup.as_os_str().is_empty() { Vec::new() } else { of_labs(&cgroup) }),
        ("pins", machine::names_in("/sys/fs/bpf/culvert")),
        ("states in /run/culvert", machine::names_in("/run/culvert")),
    ];
    let found: Vec<String> = places
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(kind, names)| format!("{} {kind}", names.len()))
        .collect();
    if found.is_empty() {
        return Finding::ok("labs", "none running, nothing left behind");
    }
    Finding::warn(
        "labs",
        format!("{}: running, or left behind", found.join(", ")),
        "cargo xtask lab list; cargo xtask lab clean",
    )
}

fn of_labs(folder: &Path) -> Vec<String> {
    let mut names = machine::names_in(folder);
    names.retain(|name| LAB_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_found_in_both_spellings() {
        let json = r#"[{"cgroup":"/x","programs":[{"id":7,"attach_type":"cgroup_inet4_connect","name":"a"},
            {"id":8,"attach_type":"sock_ops"}]}]"#;
        let found = strings(json, "attach_type");
        assert_eq!(found.iter().map(|hook| modern(hook)).collect::<Vec<_>>(), ["connect4", "sock_ops"]);
    }
}
