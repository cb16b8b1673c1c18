//! What kube-proxy does for those outside the mesh: virtual addresses and node ports become endpoints, by DNAT in the
//! node's namespace.

use std::fmt::Write;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::net::{Addresses, pipe};
use crate::objects::{Key, Store, addresses};

/// The mark of what is to leave under the node's own address (kube-proxy's `KUBE-MARK-MASQ`).
const MASQUERADE: &str = "0x4000";

/// What differs between the two families' tables.
struct Family {
    name: &'static str,
    /// All pods of the cluster.
    pods: &'static str,
    loopback: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { name: "ip", pods: "10.244.0.0/16", loopback: "127.0.0.0/8" },
    Family { name: "ip6", pods: "fd00:10:244::/48", loopback: "::1" },
];

/// Replaces the node's table as a whole.
pub(super) fn program(store: &Store, node: &str, own: Addresses, netns: &str) -> Result<()> {
    let mut script = String::new();
    for (family, own) in FAMILIES.iter().zip([own.v4.to_string(), own.v6.to_string()]) {
        let (chains, rules, hairpins) = Default::default();
        Table { family, store, node, own, chains, rules, hairpins }.write(&mut script);
    }
    pipe(Command::new("ip").args(["netns", "exec", netns, "nft", "-f", "-"]), &script)
}

/// One family's table of one node.
struct Table<'a> {
    family: &'a Family,
    store: &'a Store,
    node: &'a str,
    /// The node's address.
    own: String,
    /// Where rules lead.
    chains: String,
    /// In the order in which they are asked.
    rules: String,
    /// A pod that reaches itself through a service must see another address than its own.
    hairpins: String,
}

impl Table<'_> {
    fn write(mut self, script: &mut String) {
        for (key, service) in self.store.of_kind("Service") {
            for port in ports(self.store, key, service, self.family.name) {
                self.add(&port);
            }
        }
        let Self { chains, rules, hairpins, own, .. } = self;
        let family = self.family.name;
        let _ = write!(
            script,
            "table {family} culvert_lab {{}}\ndelete table {family} culvert_lab\ntable {family} culvert_lab {{\n{chains}\
             \x20 chain services {{\n{rules}  }}\n\
             \x20 chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
             \x20 chain output {{ type nat hook output priority -100; jump services; }}\n\
             \x20 chain postrouting {{ type nat hook postrouting priority srcnat;\n\
             \x20   meta mark & {MASQUERADE} == {MASQUERADE} snat to {own}\n{hairpins}  }}\n}}\n"
        );
    }

    fn add(&mut self, port: &Port<'_>) {
        let family = self.family.name;
        for (ip, _) in &port.endpoints {
            let _ = writeln!(self.hairpins, "    {family} saddr {ip} {family} daddr {ip} masquerade");
        }
        let all = self.choose(&port.endpoints);
        let Port { vip, number, .. } = port;
        let lead = all.as_deref().unwrap_or("counter");
        let _ = writeln!(self.rules, "    {family} daddr {vip} tcp dport {number} {lead}");
        if let (Some(node_port), Some(all)) = (port.node_port, all) {
            self.add_node_port(port, node_port, &all);
        }
    }

    /// `externalTrafficPolicy: Cluster` takes any endpoint, under the node's address. `Local` keeps the client's address
    /// and takes endpoints of this node only, except for the cluster's own pods and the node's processes.
    fn add_node_port(&mut self, port: &Port<'_>, node_port: u64, all: &str) {
        let Family { name: family, pods, loopback } = self.family;
        let masquerade = format!("meta mark set meta mark | {MASQUERADE}");
        let chain = if port.local_only {
            let mut local = port.endpoints.clone();
            local.retain(|(ip, _)| self.runs_here(ip));
            let local = self.choose(&local).unwrap_or_else(|| "drop".to_owned());
            format!(
                "    {family} saddr {pods} {all}\n    fib saddr type local {masquerade}\n    fib saddr type local {all}\n    {local}\n"
            )
        } else {
            format!("    {masquerade}\n    {all}\n")
        };
        let _ = write!(self.chains, "  chain np{node_port} {{\n{chain}  }}\n");
        let _ = writeln!(
            self.rules,
            "    {family} daddr != {loopback} fib daddr type local tcp dport {node_port} goto np{node_port}"
        );
    }

    /// A statement that leads to one of the endpoints; `None` without any.
    fn choose(&mut self, endpoints: &[(String, u64)]) -> Option<String> {
        let first = self.chains.matches("chain ep").count();
        let mut map = Vec::new();
        for (i, (ip, target)) in endpoints.iter().enumerate() {
            let address =
                if self.family.name == "ip" { format!("{ip}:{target}") } else { format!("[{ip}]:{target}") };
            let number = first + i;
            let _ = writeln!(self.chains, "  chain ep{number} {{ meta l4proto tcp dnat to {address}; }}");
            map.push(format!("{i} : goto ep{number}"));
        }
        let count = endpoints.len();
        (count > 0).then(|| format!("numgen random mod {count} vmap {{ {} }}", map.join(", ")))
    }

    fn runs_here(&self, ip: &str) -> bool {
        let mut pods = self.store.of_kind("Pod");
        pods.any(|(_, pod)| pod["spec"]["nodeName"] == *self.node && addresses(pod).iter().any(|a| a == ip))
    }
}

/// One port of a service, in one family.
struct Port<'a> {
    vip: &'a str,
    number: u64,
    node_port: Option<u64>,
    /// `externalTrafficPolicy: Local`.
    local_only: bool,
    endpoints: Vec<(String, u64)>,
}

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
        found.push(Port {
            vip,
            number: port["port"].as_u64().unwrap_or(0),
            node_port: port["nodePort"].as_u64(),
            local_only: spec["externalTrafficPolicy"] == "Local",
            endpoints: endpoints.filter(|(ip, _)| of_family(ip)).collect(),
        });
    }
    found
}
