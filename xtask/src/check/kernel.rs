//! What the kernel must be able to do, and since when it can.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Finding;
use crate::{exec, machine};

/// A kernel feature: the version that brought it, and what Culvert does with it.
struct Feature {
    name: &'static str,
    since: (u32, u32),
    used_for: &'static str,
    /// What Culvert does without it; `None` when it cannot do without.
    without: Option<&'static str>,
}

/// Newest first, as the first that is missing explains most.
const FEATURES: [Feature; 6] = [
    Feature {
        name: "tcx links",
        since: (6, 6),
        used_for: "source-address check on pods' interfaces",
        without: Some("pods can send under addresses not their own, which misleads policies by address"),
    },
    Feature {
        name: "bpf_set_retval",
        since: (5, 18),
        used_for: "connect() refuses with ECONNREFUSED",
        without: None,
    },
    Feature {
        name: "netns cookie, sockops",
        since: (5, 15),
        used_for: "who opens a connection, seen before its SYN",
        without: None,
    },
    Feature {
        name: "SO_NETNS_COOKIE",
        since: (5, 14),
        used_for: "the agent learns a pod's cookie",
        without: None,
    },
    Feature {
        name: "sk_lookup",
        since: (5, 9),
        used_for: "the verdict at the destination pod",
        without: None,
    },
    Feature { name: "BPF ring buffer", since: (5, 8), used_for: "flow events", without: None },
];

pub(super) fn findings() -> Vec<Finding> {
    let release = machine::kernel_release();
    let mut findings: Vec<Finding> = match version(&release) {
        Some(running) => FEATURES.iter().map(|feature| judge(feature, running, &release)).collect(),
        None => {
            vec![Finding::warn("kernel version", format!("{release:?} is no version"), "Linux 5.18 or newer")]
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

/// `6.1.0-18-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
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
    fn a_release_is_read_as_major_and_minor() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc3"), Some((5, 15)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn an_old_kernel_lacks_what_came_later() {
        let lacking = |running| {
            let judged = FEATURES.iter().map(|feature| judge(feature, running, "test"));
            judged.filter(|finding| finding.level != super::super::Level::Ok).count()
        };
        assert_eq!(lacking((6, 6)), 0);
        assert_eq!(lacking((5, 18)), 1);
        assert_eq!(lacking((5, 4)), 6);
    }
}
