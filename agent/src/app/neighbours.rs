//! Who else shapes this node's connections: programs on the same hooks, and kube-proxy.

use std::fs;

use nix::net::if_::if_nametoindex;

use crate::bpf::{Kernel, Neighbour};
use crate::sys::netfilter;

/// Everybody else, at this moment.
pub(super) fn all(kernel: &Kernel) -> Vec<Neighbour> {
    let mut all = kernel.neighbours();
    all.extend(kube_proxy());
    all
}

/// Says who is there when the agent starts: a warning for each conflict. Pods report theirs when they join.
pub(super) fn report(kernel: &Kernel) {
    let all = all(kernel);
    for neighbour in &all {
        neighbour.tell();
    }
    if all.is_empty() {
        tracing::info!("nobody else is on the hooks that Culvert uses");
    }
}

/// kube-proxy in the agent's network namespace, by the mode it runs in.
fn kube_proxy() -> Option<Neighbour> {
    let mode = if if_nametoindex("kube-ipvs0").is_ok() {
        "ipvs: interface kube-ipvs0"
    } else if netfilter::has_chain(|table, _| table == "kube-proxy").unwrap_or(false) {
        "nftables: table kube-proxy"
    } else if netfilter::has_chain(|_, chain| chain == "KUBE-SERVICES").unwrap_or(false) {
        "iptables: chain KUBE-SERVICES"
    } else if runs("kube-proxy") {
        "process kube-proxy"
    } else {
        return None;
    };
    let mut found = Neighbour::new("netfilter", "netfilter", "kube-proxy", "");
    found.places.push(mode.to_owned());
    Some(found)
}

/// Whether a process of this name runs, in the agent's PID namespace or one below. Rules of iptables-legacy show nowhere else.
fn runs(name: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut names = processes.filter_map(|process| fs::read_to_string(process.path().join("comm")).ok());
    names.any(|comm| comm.trim_end() == name)
}
