//! What the kernel must be able to do, and since when it can.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Finding;
use super::features::{FEATURES, Feature, MINIMUM, version};
use crate::{exec, machine};

pub(super) fn findings() -> Vec<Finding> {
    let release = machine::kernel_release();
    let mut findings: Vec<Finding> = match version(&release) {
        Some(running) => FEATURES.iter().map(|feature| judge(feature, running, &release)).collect(),
        None => {
            let (major, minor) = MINIMUM;
            let remedy = format!("Linux {major}.{minor} or newer");
            vec![Finding::warn("kernel version", format!("{release:?} is no version"), remedy)]
        }
    };
    findings.push(btf());
    findings.push(socket_destroy());
    findings.push(namespaces());
    findings.push(nat());
    findings
}

fn judge(feature: &Feature, running: (u32, u32), release: &str) -> Finding {
    let (major, minor) = feature.since;
    let detail = format!("{} (since Linux {major}.{minor}, this is {release})", feature.used_for);
    if running >= feature.since {
        return Finding::ok(feature.name, detail);
    }
    let remedy = format!("Linux {major}.{minor} or newer");
    match feature.without {
        Some(without) => Finding::warn(feature.name, format!("{detail}; without it {without}"), remedy),
        None => Finding::missing(feature.name, detail, remedy),
    }
}

fn btf() -> Finding {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        return Finding::ok("kernel BTF", path);
    }
    Finding::warn(
        "kernel BTF",
        format!("no {path}; bpftool shows less"),
        "a kernel with CONFIG_DEBUG_INFO_BTF",
    )
}

/// Live connections that a new policy denies are closed through INET_DIAG.
fn socket_destroy() -> Finding {
    let what = "socket destroy";
    match config_has("CONFIG_INET_DIAG_DESTROY") {
        Some(true) => {
            Finding::ok(what, "CONFIG_INET_DIAG_DESTROY: closes connections that a new policy denies")
        }
        Some(false) => Finding::warn(
            what,
            "no CONFIG_INET_DIAG_DESTROY: connections that a new policy denies live on",
            "a kernel with that option",
        ),
        None => Finding::warn(
            what,
            "the kernel's configuration is not readable; CONFIG_INET_DIAG_DESTROY may be off",
            "modprobe configs",
        ),
    }
}

/// Is this option built in or a module? `None` when the configuration cannot be read.
fn config_has(option: &str) -> Option<bool> {
    let text = match exec::ask("gzip", ["-dc", "/proc/config.gz"]) {
        Ok(text) => text,
        Err(_) => fs::read_to_string(format!("/boot/config-{}", machine::kernel_release())).ok()?,
    };
    Some(
        [format!("{option}=y"), format!("{option}=m")].iter().any(|set| text.lines().any(|line| line == set)),
    )
}

/// A namespace and a veth pair, made for real and gone at once.
fn namespaces() -> Finding {
    let what = "namespaces, veth";
    if machine::program("ip").is_none() {
        return Finding::warn(what, "not tried: there is no `ip`", "apt-get install iproute2");
    }
    match in_new_namespace("ip link add culvert-a type veth peer name culvert-b") {
        Ok(()) => Finding::ok(what, "made one of each"),
        Err(error) => Finding::missing(what, error, "root, and a kernel with CONFIG_NET_NS and CONFIG_VETH"),
    }
}

/// The lab plays kube-proxy with DNAT, which needs connection tracking.
fn nat() -> Finding {
    let what = "NAT, conntrack";
    if machine::program("nft").is_none() {
        return Finding::warn(what, "not tried: there is no `nft`", "apt-get install nftables");
    }
    let rules = "nft 'add table inet t; add chain inet t c { type nat hook prerouting priority -100; }; \
                 add rule inet t c ip daddr 192.0.2.1 tcp dport 80 dnat ip to 192.0.2.2:81; \
                 add rule inet t c ip6 daddr 2001:db8::1 tcp dport 80 dnat ip6 to [2001:db8::2]:81; \
                 add rule inet t c ct state established accept'";
    match in_new_namespace(rules) {
        Ok(()) => Finding::ok(what, "DNAT and connection tracking, for virtual addresses outside the mesh"),
        Err(error) => Finding::missing(
            what,
            error,
            "root, and a kernel with CONFIG_NF_TABLES, CONFIG_NFT_NAT and CONFIG_NF_CONNTRACK",
        ),
    }
}

fn in_new_namespace(script: &str) -> Result<(), String> {
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start unshare: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(text.trim().lines().next().unwrap_or("refused without a word").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_lacks_what_came_later() {
        let lacking = |running| {
            let judged = FEATURES.iter().map(|feature| judge(feature, running, "test"));
            judged.filter(|finding| finding.level != super::super::Level::Ok).count()
        };
        assert_eq!(lacking((6, 6)), 0);
        assert_eq!(lacking(MINIMUM), 1);
        assert_eq!(lacking((5, 18)), 2);
        assert_eq!(lacking((5, 4)), 10);
    }
}
