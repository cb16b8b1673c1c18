//! What kube-proxy does for pods outside the mesh: virtual addresses become endpoints, by DNAT in the node's namespace.

use std::fmt::Write;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::net::pipe;
use crate::objects::{Key, Store};

/// Replaces the node's table as a whole.
pub(super) fn program(store: &Store, netns: &str) -> Result<()> {
    let mut script = String::new();
    for family in ["ip", "ip6"] {
        table(store, family, &mut script);
    }
    pipe(Command::new("ip").args(["netns", "exec", netns, "nft", "-f", "-"]), &script)
}

fn table(store: &Store, family: &str, script: &mut String) {
    let (mut chains, mut rules, mut masquerade) = (String::new(), String::new(), String::new());
    for (key, service) in store.of_kind("Service") {
        for (vip, port, endpoints) in ports(store, key, service, family) {
            let number = chains.matches("chain ep").count();
            if endpoints.is_empty() {
                let _ = writeln!(rules, "    {family} daddr {vip} tcp dport {port} counter");
                continue;
            }
            let count = endpoints.len();
            let mut map = Vec::new();
            for (i, (ip, target)) in endpoints.iter().enumerate() {
                let address =
                    if family == "ip" { format!("{ip}:{target}") } else { format!("[{ip}]:{target}") };
                let _ =
                    writeln!(chains, "  chain ep{} {{ meta l4proto tcp dnat to {address}; }}", number + i);
                map.push(format!("{i} : goto ep{}", number + i));
                let _ = writeln!(masquerade, "    {family} saddr {ip} {family} daddr {ip} masquerade");
            }
            let _ = writeln!(
                rules,
                "    {family} daddr {vip} tcp dport {port} numgen random mod {count} vmap {{ {} }}",
                map.join(", ")
            );
        }
    }
    let _ = write!(
        script,
        "table {family} culvert_lab {{}}\ndelete table {family} culvert_lab\ntable {family} culvert_lab {{\n{chains}\
         \x20 chain services {{\n{rules}  }}\n\
         \x20 chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         \x20 chain output {{ type nat hook output priority -100; jump services; }}\n\
         \x20 chain postrouting {{ type nat hook postrouting priority srcnat;\n{masquerade}  }}\n}}\n"
    );
}

type Port<'a> = (&'a str, u64, Vec<(String, u64)>);

fn ports<'a>(store: &Store, key: &Key, service: &'a Value, family: &str) -> Vec<Port<'a>> {
    let of_family = |ip: &str| ip.contains(':') == (family == "ip6");
    let spec = &service["spec"];
    let vips = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let Some(vip) = vips.filter(|ip| *ip != "None").find(|ip| of_family(ip)) else { return Vec::new() };
    let mut found = Vec::new();
    for port in spec["ports"].as_array().into_iter().flatten() {
        if port["protocol"].as_str().unwrap_or("TCP") != "TCP" {
            continue;
        }
        let endpoints = store.endpoints(key, port).into_iter();
        let endpoints = endpoints.flat_map(|(ips, target)| ips.into_iter().map(move |ip| (ip, target)));
        let endpoints = endpoints.filter(|(ip, _)| of_family(ip)).collect();
        found.push((vip, port["port"].as_u64().unwrap_or(0), endpoints));
    }
    found
}
