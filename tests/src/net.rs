//! Network namespaces, links and addresses of a lab.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::sys;

/// A pod's or node's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Whether `ip` is one of them; IPv4-mapped addresses count as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.to_canonical() == IpAddr::V4(self.v4) || ip == IpAddr::V6(self.v6)
    }
}

/// Addresses of the n-th node (from 1).
pub(crate) fn node_addresses(n: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(172, 30, 0, n),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, n.into()),
    }
}

/// The k-th pod address (from 2) of the n-th node.
pub(crate) fn pod_addresses(n: u8, k: u8) -> Addresses {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, n.into(), 0, 0, 0, k.into());
    Addresses { v4: Ipv4Addr::new(10, 244, n, k), v6 }
}

/// Path of a named namespace.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Makes a namespace with `lo` up and settings that let labs route freely.
pub(crate) fn add_netns(name: &str) -> Result<()> {
    run("ip", &["netns", "add", name])?;
    batch(Some(name), "link set lo up\n")?;
    let sysctls = [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
    ];
    sys::in_netns(&netns_path(name), || {
        for (key, value) in sysctls {
            fs::write(format!("/proc/sys/net/{key}"), value)?;
        }
        Ok(())
    })
    .with_context(|| format!("settings of network namespace {name}"))
}

/// The switch that joins the nodes.
pub(crate) fn add_switch(name: &str) -> Result<()> {
    add_netns(name)?;
    batch(Some(name), "link add br0 type bridge\nlink set br0 up\n")
}

/// A node's uplink to the switch, and its routes to the pods of the others.
pub(crate) fn connect_node(node: &str, switch: &str, n: u8, nodes: u8) -> Result<()> {
    let own = node_addresses(n);
    run(
        "ip",
        &[
            "link",
            "add",
            "eth0",
            "netns",
            node,
            "type",
            "veth",
            "peer",
            "name",
            &format!("n{n}"),
            "netns",
            switch,
        ],
    )?;
    batch(Some(switch), &format!("link set n{n} master br0\nlink set n{n} up\n"))?;
    let mut commands =
        format!("addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n", own.v4, own.v6);
    for other in (1..=nodes).filter(|other| *other != n) {
        let via = node_addresses(other);
        commands.push_str(&format!("route add 10.244.{other}.0/24 via {}\n", via.v4));
        commands.push_str(&format!("-6 route add fd00:10:244:{other:x}::/64 via {}\n", via.v6));
    }
    batch_mixed(node, &commands)
}

/// The node's end of a pod's link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// The node's namespace.
    pub(crate) node: String,
    /// The interface.
    pub(crate) name: String,
}

impl Link {
    /// Removes both ends and the routes over them; missing is no error.
    pub(crate) fn remove(&self) -> Result<()> {
        let missing = !sys::in_netns(&netns_path(&self.node), || {
            fs::exists(format!("/proc/sys/net/ipv4/conf/{}", self.name))
        })?;
        if missing { Ok(()) } else { run("ip", &["-n", &self.node, "link", "del", &self.name]) }
    }
}

/// A pod's link to its node: routed, no bridge.
pub(crate) fn connect_pod(pod: &str, link: &Link, pod_ips: Addresses, node_ips: Addresses) -> Result<()> {
    let Link { node, name: host } = link;
    run("ip", &["link", "add", "eth0", "netns", pod, "type", "veth", "peer", "name", host, "netns", node])?;
    batch_mixed(
        node,
        &format!(
            "addr add 169.254.1.1/32 dev {host}\naddr add fe80::1/64 dev {host} nodad\nlink set {host} up\n\
             route add {}/32 dev {host} src {}\n-6 route add {}/128 dev {host} src {}\n",
            pod_ips.v4, node_ips.v4, pod_ips.v6, node_ips.v6
        ),
    )?;
    batch_mixed(
        pod,
        &format!(
            "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0 src {}\n\
             -6 route add default via fe80::1 dev eth0\n",
            pod_ips.v4, pod_ips.v6, pod_ips.v4
        ),
    )
}

/// Removes a namespace; missing is no error.
pub(crate) fn remove_netns(name: &str) -> Result<()> {
    let there = || netns_path(name).exists();
    if !there() {
        return Ok(());
    }
    // Somebody else may have been quicker: a signal removes the lab while its owner does.
    run("ip", &["netns", "del", name]).or_else(|error| if there() { Err(error) } else { Ok(()) })
}

/// Runs `ip` commands of both families, IPv6 ones marked with `-6 `.
fn batch_mixed(netns: &str, commands: &str) -> Result<()> {
    let (six, four): (Vec<&str>, Vec<&str>) = commands.lines().partition(|line| line.starts_with("-6 "));
    batch(Some(netns), &(four.join("\n") + "\n"))?;
    let six: String = six.iter().filter_map(|l| l.strip_prefix("-6 ")).map(|l| format!("{l}\n")).collect();
    if six.is_empty() { Ok(()) } else { ip_batch(&["-6", "-n", netns], &six) }
}

fn batch(netns: Option<&str>, commands: &str) -> Result<()> {
    match netns {
        Some(netns) => ip_batch(&["-n", netns], commands),
        None => ip_batch(&[], commands),
    }
}

fn ip_batch(options: &[&str], commands: &str) -> Result<()> {
    pipe(Command::new("ip").args(options).args(["-batch", "-"]), commands)
}

/// Runs a program with `input`; an error holds what it printed and what it was given.
pub(crate) fn pipe(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}\nits input was:\n{input}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    pipe(Command::new(program).args(args), "")
}
