//! Who else is on this machine: other users of the same hooks, kube-proxy, and labs that run or were left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Finding;
use super::owners::{Owner, hook_kind, owner};
use crate::{exec, machine};

/// How names of Culvert's programs begin.
const OWN: &str = "culvert_";
/// How names of a lab's namespaces, cgroups, pins and state begin.
const LAB_PREFIXES: [&str; 2] = ["culvert", "clab-"];

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = match programs() {
        Ok(programs) if programs.is_empty() => {
            vec![Finding::ok("other BPF programs", "none on the hooks that Culvert uses")]
        }
        Ok(programs) => told(&programs),
        Err(error) => {
            vec![Finding::warn(
                "other BPF programs",
                format!("cannot tell: {error:#}"),
                "run as root, with bpftool",
            )]
        }
    };
    findings.extend(kube_proxy());
    findings.push(labs());
    findings
}

/// A program at a hook that Culvert uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attached {
    kind: &'static str,
    hook: String,
    name: String,
}

/// Every program at such a hook, and how many times it is there. An agent's own are among them.
fn programs() -> anyhow::Result<BTreeMap<Attached, u32>> {
    let bpftool = |args: &[&str]| exec::ask("bpftool", [&["-j"], args].concat());
    let mut found = Vec::new();
    if let Some(cgroup) = machine::mount_point("cgroup2") {
        found.extend(at_cgroups(&bpftool(&["cgroup", "tree", &cgroup.to_string_lossy()])?));
    }
    let names = names(&bpftool(&["prog", "show"])?);
    found.extend(at_links(&bpftool(&["link", "show"]).unwrap_or_default(), &names));
    found.extend(at_interfaces(&bpftool(&["net"]).unwrap_or_default()));
    let mut counts = BTreeMap::new();
    for attached in found {
        *counts.entry(attached).or_default() += 1;
    }
    Ok(counts)
}

fn attached(hook: String, name: String) -> Option<Attached> {
    let kind = hook_kind(&hook)?;
    Some(Attached { kind, hook, name })
}

fn at_cgroups(json: &str) -> Vec<Attached> {
    let programs = objects(json).into_iter();
    programs
        .filter_map(|fields| attached(text(fields, "attach_type")?, text(fields, "name").unwrap_or_default()))
        .collect()
}

fn at_links(json: &str, names: &BTreeMap<u64, String>) -> Vec<Attached> {
    let links = objects(json).into_iter();
    // Those of cgroups are in the tree of cgroups too.
    links
        .filter(|fields| text(fields, "type").is_some_and(|kind| kind != "cgroup"))
        .filter_map(|fields| {
            let program = number(fields, "prog_id").and_then(|id| names.get(&id).cloned());
            attached(text(fields, "attach_type")?, program.unwrap_or_default())
        })
        .filter(|attached| attached.kind == "lookup")
        .collect()
}

fn at_interfaces(json: &str) -> Vec<Attached> {
    let filters = objects(json).into_iter();
    filters
        .filter_map(|fields| {
            // clsact filters have a name of their own, by default `<object>:[<section>]`.
            let name = text(fields, "prog_name").or_else(|| text(fields, "name"));
            attached(text(fields, "kind")?, name.unwrap_or_default())
        })
        .collect()
}

fn names(json: &str) -> BTreeMap<u64, String> {
    objects(json)
        .into_iter()
        .filter_map(|fields| Some((number(fields, "id")?, text(fields, "name")?)))
        .collect()
}

fn told(programs: &BTreeMap<Attached, u32>) -> Vec<Finding> {
    let (own, others): (Vec<_>, Vec<_>) =
        programs.iter().partition(|(attached, _)| attached.name.starts_with(OWN));
    let mut findings: Vec<Finding> = others.into_iter().map(tell).collect();
    let count: u32 = own.into_iter().map(|(_, count)| count).sum();
    if count > 0 {
        let detail =
            format!("{count} of Culvert; `culvert dump` of a running agent tells its own from another one's");
        findings.push(Finding::ok("other BPF programs", detail));
    }
    findings
}

fn tell((attached, count): (&Attached, &u32)) -> Finding {
    let Attached { kind, hook, name } = attached;
    let Owner { name: owner, conflict, meaning, remedy } = owner(name, kind);
    let times = if *count == 1 { String::new() } else { format!(", {count} times") };
    let name = if name.is_empty() { "without a name" } else { name };
    let detail = format!("{hook} {name}{times}: {owner}; {meaning}");
    if conflict {
        return Finding::warn("other BPF programs", detail, remedy);
    }
    Finding::ok("other BPF programs", detail)
}

/// The innermost objects of bpftool's JSON, which has no spaces and no escapes in the values that matter here. Of an object that
/// holds others (a link with its processes) the part before them.
fn objects(json: &str) -> Vec<&str> {
    json.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or_default()).collect()
}

fn text(fields: &str, key: &str) -> Option<String> {
    let (_, rest) = fields.split_once(&format!("\"{key}\":\""))?;
    Some(rest.split_once('"')?.0.to_owned())
}

fn number(fields: &str, key: &str) -> Option<u64> {
    let (_, rest) = fields.split_once(&format!("\"{key}\":"))?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// kube-proxy, by what it leaves in the kernel in each of its modes, or by its process.
fn kube_proxy() -> Option<Finding> {
    let chains = || exec::ask("nft", ["list", "chains"]).unwrap_or_default();
    let place = if Path::new("/sys/class/net/kube-ipvs0").exists() {
        "ipvs: interface kube-ipvs0"
    } else if runs("kube-proxy") {
        "process kube-proxy"
    } else if chains().contains("kube-proxy") {
        "nftables: table kube-proxy"
    } else if chains().contains("KUBE-SERVICES") {
        "iptables: chain KUBE-SERVICES"
    } else {
        return None;
    };
    let known = owner("kube-proxy", "netfilter");
    Some(Finding::ok("kube-proxy", format!("{place}: {}", known.meaning)))
}

fn runs(name: &str) -> bool {
    machine::names_in("/proc")
        .iter()
        .filter_map(|process| fs::read_to_string(Path::new("/proc").join(process).join("comm")).ok())
        .any(|comm| comm.trim_end() == name)
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
    fn programs_are_found_where_bpftool_shows_them() {
        let tree = r#"[{"cgroup":"/x","programs":[{"id":7,"attach_type":"cgroup_inet4_connect","attach_flags":"multi",
            "name":"cil_sock4_conne"},{"id":8,"attach_type":"cgroup_device","name":"sd_devices"}]}]"#
            .replace("\n            ", "");
        let of_cgroups = at_cgroups(&tree);
        assert_eq!(of_cgroups.len(), 1, "{of_cgroups:?}");
        assert_eq!((of_cgroups[0].kind, of_cgroups[0].name.as_str()), ("connect", "cil_sock4_conne"));
        let names = names(r#"[{"id":9,"type":"sk_lookup","name":"dispatcher","tag":"00"}]"#);
        let links = r#"[{"id":3,"type":"netns","prog_id":9,"netns_ino":40,"attach_type":"sk_lookup","pids":[{"pid":1}]},
            {"id":4,"type":"cgroup","prog_id":7,"cgroup_id":1,"attach_type":"connect4"}]"#;
        let of_links = at_links(links, &names);
        assert_eq!(of_links.len(), 1, "{of_links:?}");
        assert_eq!((of_links[0].kind, of_links[0].name.as_str()), ("lookup", "dispatcher"));
        let net = r#"[{"xdp":[],"tc":[{"devname":"v1","ifindex":3,"kind":"clsact/ingress","name":"a.o:[tc]","id":5}],
            "flow_dissector":[]}]"#;
        assert_eq!(at_interfaces(net).len(), 1);
    }

    #[test]
    fn a_conflict_is_a_warning_with_a_remedy() {
        let calico = attached("connect4".to_owned(), "calico_connect_".to_owned()).unwrap();
        let line = tell((&calico, &2)).to_string();
        assert!(line.starts_with("warn") && line.contains("2 times") && line.contains("Calico"), "{line}");
        assert!(line.contains("remedy: FelixConfiguration"), "{line}");
        let systemd = attached("cgroup_inet_ingress".to_owned(), "sd_fw_ingress".to_owned()).unwrap();
        assert!(tell((&systemd, &1)).to_string().starts_with("ok"));
    }
}
