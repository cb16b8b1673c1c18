//! A pod: a network namespace with a link (its node's own with `hostNetwork`), a cgroup, and one process that serves and
//! asks.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Lab, Placement};
use crate::net::{self, Addresses};
use crate::objects::{self, Key};
use crate::pod_process::{Order, PodConfig};
use crate::sys::{Place, put};

/// A running pod.
pub(crate) struct Pod {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) netns: String,
    pub(crate) addresses: Addresses,
    pub(crate) serves: bool,
    /// Its link to the node; `None` when it shares the node's namespace.
    link: Option<net::Link>,
    cgroup: PathBuf,
    mounts: Vec<(PathBuf, &'static str)>,
    talk: Mutex<Talk>,
}

struct Talk {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    next: u64,
}

impl Lab {
    /// Makes the pod of a Pod object and fills in its status.
    pub(super) fn start_pod(&mut self, key: &Key) -> Result<()> {
        let object = self.store.get("Pod", &key.namespace, &key.name).context("the pod's object")?.clone();
        let placement = self.placement(key, &object)?;
        let (netns, addresses, link) = if object["spec"]["hostNetwork"] == true {
            (self.node_netns(&placement.node)?, self.node_addresses(&placement.node)?, None)
        } else {
            self.make_network(key, &object, &placement.node)?
        };
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let cgroup = self.cgroup.join(&placement.node).join("kubepods").join(format!("pod{uid}"));
        fs::create_dir_all(&cgroup)?;
        let version = object["metadata"]["labels"]["version"].as_str().unwrap_or("").to_owned();
        let config = PodConfig {
            name: key.name.clone(),
            version,
            http: placement.http.clone(),
            tcp: placement.tcp.clone(),
        };
        let mounts = self.name_files(&key.namespace)?;
        let place = Place {
            netns: Some(net::netns_path(&netns)),
            cgroup: Some(cgroup.clone()),
            mounts: mounts.clone(),
            dies_with_parent: true,
        };
        let talk = Talk::start(&config, &place, self.options.lab.as_deref())
            .with_context(|| format!("starting pod {}", key.full_name()))?;
        let pod = Pod {
            key: key.clone(),
            uid,
            netns,
            addresses,
            serves: !placement.http.is_empty() || !placement.tcp.is_empty(),
            link,
            cgroup,
            mounts,
            talk: Mutex::new(talk),
        };
        self.pods.insert(key.full_name(), pod);
        self.fill_status(key, &placement.node, addresses)
    }

    /// A namespace with a link to the node, and the pod's addresses on it.
    fn make_network(
        &mut self,
        key: &Key,
        object: &Value,
        node: &str,
    ) -> Result<(String, Addresses, Option<net::Link>)> {
        let addresses = match fixed_addresses(object) {
            Some(addresses) => addresses,
            None => self.next_address(node)?,
        };
        let netns = format!("clab-{}-{node}-{}-{}", self.id, key.namespace, key.name);
        let link = self.next_link;
        self.next_link += 1;
        let node = self.node(node)?;
        net::add_netns(&netns)?;
        let link = net::Link { node: node.netns.clone(), name: format!("v{link}") };
        net::connect_pod(&netns, &link, addresses, net::node_addresses(node.number))?;
        Ok((netns, addresses, Some(link)))
    }

    fn placement(&mut self, key: &Key, object: &Value) -> Result<Placement> {
        let mut placement = self.placements.get(&key.full_name()).cloned().unwrap_or_default();
        if placement.node.is_empty() {
            placement.node = object["spec"]["nodeName"].as_str().unwrap_or("").to_owned();
        }
        if placement.node.is_empty() {
            let nodes = self.nodes.len();
            placement.node = self.nodes[self.next_placement % nodes].name.clone();
            self.next_placement += 1;
        }
        self.node(&placement.node).with_context(|| format!("pod {}", key.full_name()))?;
        Ok(placement)
    }

    fn next_address(&mut self, node: &str) -> Result<Addresses> {
        let taken: Vec<Addresses> = self.pods.values().map(|p| p.addresses).collect();
        let node = self.nodes.iter_mut().find(|n| n.name == node).context("the pod's node")?;
        for _ in 0..253 {
            let addresses = net::pod_addresses(node.number, node.next_pod);
            node.next_pod = if node.next_pod >= 254 { 2 } else { node.next_pod + 1 };
            if !taken.contains(&addresses) {
                return Ok(addresses);
            }
        }
        bail!("node {} has no pod address left", node.name)
    }

    fn fill_status(&mut self, key: &Key, node: &str, addresses: Addresses) -> Result<()> {
        let object = self.store.get_mut(key).context("the pod's object")?;
        object["spec"]["nodeName"] = node.into();
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        let status = &mut object["status"];
        if status["podIPs"].is_null() {
            status["podIP"] = addresses.v4.to_string().into();
            status["podIPs"] = json!([{"ip": addresses.v4.to_string()}, {"ip": addresses.v6.to_string()}]);
        }
        if status["phase"].is_null() {
            status["phase"] = "Running".into();
        }
        if status["conditions"].is_null() {
            status["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        }
        Ok(())
    }
}

fn fixed_addresses(object: &Value) -> Option<Addresses> {
    let ips: Vec<IpAddr> = objects::addresses(object).iter().filter_map(|ip| ip.parse().ok()).collect();
    let v4 = ips.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None })?;
    let v6 = ips.iter().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None });
    // "Both families always": the other one follows from the IPv4 address.
    let [_, _, c, d] = v4.octets();
    Some(Addresses { v4, v6: v6.unwrap_or(net::pod_addresses(c, d).v6) })
}

impl Pod {
    /// Where programs of the pod run.
    pub(crate) fn place(&self) -> Place {
        Place {
            netns: Some(net::netns_path(&self.netns)),
            cgroup: Some(self.cgroup.clone()),
            mounts: self.mounts.clone(),
            dies_with_parent: false,
        }
    }

    /// Has the pod's process do something and waits for the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&self, order: &Order) -> Result<T> {
        let mut talk = self.talk.lock().unwrap_or_else(|e| e.into_inner());
        let name = self.key.full_name();
        let answer = talk.ask(order).with_context(|| format!("pod {name}: its process does not answer"))?;
        serde_json::from_value(answer).with_context(|| format!("pod {name}: its answer"))
    }

    /// Whether its process has ended by itself (or by an `exec` step).
    pub(super) fn has_ended(&self) -> bool {
        let mut talk = self.talk.lock().unwrap_or_else(|e| e.into_inner());
        matches!(talk.child.try_wait(), Ok(Some(_)))
    }

    pub(super) fn remove(self) -> Result<()> {
        let Self { netns, cgroup, talk, link, .. } = self;
        // Also what `exec` left behind.
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        drop(talk);
        super::cleanup::remove_cgroup(&cgroup)?;
        let Some(link) = link else { return Ok(()) };
        // An agent may hold the namespace for a while: what else leads to the pod goes at once, as a CNI plugin has it.
        link.remove()?;
        net::remove_netns(&netns)
    }
}

impl Talk {
    fn start(config: &PodConfig, place: &Place, lab: Option<&Path>) -> Result<Self> {
        let program = lab.map_or_else(std::env::current_exe, |lab| Ok(lab.to_owned()))?;
        let mut command = Command::new(program);
        command.args(["pod", &serde_json::to_string(config)?]);
        put(&mut command, place)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut talk = Self { child, stdin, stdout, next: 1 };
        talk.answer(0).context("it did not start (a port that is taken?)")?;
        Ok(talk)
    }

    fn ask(&mut self, order: &Order) -> Result<Value> {
        let id = self.next;
        self.next += 1;
        writeln!(self.stdin, "{}", json!({"id": id, "order": order}))?;
        self.stdin.flush()?;
        self.answer(id)
    }

    fn answer(&mut self, id: u64) -> Result<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.stdout.read_line(&mut line)? == 0 {
                bail!("it has ended");
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if answer["id"] == id {
                return Ok(answer["answer"].take());
            }
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
