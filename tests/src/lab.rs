//! A lab: nodes, pods, agents and the objects that describe them.

mod agent;
mod cleanup;
mod kubeproxy;
mod names;
mod pod;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::RngExt;
use serde_json::{Value, json};

pub use agent::FlowRecord;
pub(crate) use cleanup::all_labs;
pub use cleanup::{leftovers, remove_dead_labs, remove_lab};

use crate::net::{self, Addresses};
use crate::objects::{self, Key, Store, WORKLOAD_KINDS};
use crate::sys::{Place, put};
use agent::Agent;
pub(crate) use pod::Pod;

/// Where labs keep their files.
pub(crate) const ROOT: &str = "/run/culvert-lab";

/// How a lab is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Node names.
    pub nodes: Vec<String>,
    /// Extra arguments of every agent.
    pub agent_args: Vec<String>,
    /// The `culvert` binary; `None` runs no agents.
    pub culvert: Option<PathBuf>,
    /// The lab's id; random when empty.
    pub id: String,
    /// The `culvert-lab` binary, which the pods run; `None`: the running program is it.
    pub lab: Option<PathBuf>,
}

/// The agent beside the lab's binary.
///
/// # Errors
///
/// There is none: how to make it.
pub fn agent_beside(lab: &str) -> Result<PathBuf> {
    let culvert = Path::new(lab).with_file_name("culvert");
    anyhow::ensure!(culvert.exists(), "{} is missing: `cargo xtask build` makes it", culvert.display());
    Ok(culvert)
}

impl Options {
    /// For a program that is not the lab's binary but knows where that is: pods run it, agents the one beside it.
    ///
    /// # Errors
    ///
    /// As [`agent_beside`].
    pub fn built(lab: &str, nodes: &[&str], agent_args: &[&str]) -> Result<Self> {
        let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        Ok(Self {
            nodes: owned(nodes),
            agent_args: owned(agent_args),
            culvert: Some(agent_beside(lab)?),
            lab: Some(PathBuf::from(lab)),
            id: String::new(),
        })
    }
}

/// What runs in a pod, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Node name.
    pub node: String,
    /// HTTP server ports.
    pub http: Vec<u16>,
    /// TCP echo ports.
    pub tcp: Vec<u16>,
}

struct Node {
    name: String,
    number: u8,
    netns: String,
    next_pod: u8,
    agent: Option<Agent>,
}

/// A running lab. Dropping it removes everything.
pub struct Lab {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    nodes: Vec<Node>,
    pods: BTreeMap<String, Pod>,
    store: Store,
    placements: BTreeMap<String, Placement>,
    options: Options,
    next_link: usize,
    next_placement: usize,
}

impl Lab {
    /// Builds the nodes. Agents start with [`Lab::start_agents`], after the first objects.
    ///
    /// # Errors
    ///
    /// When something cannot be made; what was made is removed.
    pub fn new(mut options: Options, placements: BTreeMap<String, Placement>) -> Result<Self> {
        if options.id.is_empty() {
            options.id = format!("{:06x}", rand::rng().random_range(0..0x100_0000_u32));
        }
        if options.nodes.is_empty() {
            options.nodes.push("n1".to_owned());
        }
        let id = options.id.clone();
        let dir = Path::new(ROOT).join(&id);
        fs::create_dir_all(dir.join("manifests")).with_context(|| format!("creating {}", dir.display()))?;
        fs::write(dir.join("pid"), std::process::id().to_string())?;
        let cgroup = cgroup_mount()?.join(format!("culvert-lab-{id}"));
        let mut lab = Self {
            id,
            dir,
            cgroup,
            nodes: Vec::new(),
            pods: BTreeMap::new(),
            store: Store::default(),
            placements,
            options,
            next_link: 1,
            next_placement: 0,
        };
        lab.build()?;
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        let switch = format!("clab-{}-sw", self.id);
        net::add_switch(&switch)?;
        fs::create_dir_all(&self.cgroup)?;
        let names = self.options.nodes.clone();
        let count = u8::try_from(names.len()).context("too many nodes")?;
        for (number, name) in (1..=count).zip(names) {
            let netns = format!("clab-{}-{name}", self.id);
            net::add_netns(&netns)?;
            net::connect_node(&netns, &switch, number, count)?;
            for part in ["agent", "system", "kubepods"] {
                fs::create_dir_all(self.cgroup.join(&name).join(part))?;
            }
            let ips = net::node_addresses(number);
            self.store.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": ips.v4.to_string()},
                                         {"type": "InternalIP", "address": ips.v6.to_string()}]}}))?;
            self.nodes.push(Node { name, number, netns, next_pod: 2, agent: None });
        }
        Ok(())
    }

    /// The lab's id: in the names of its namespaces, cgroups and pins.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The lab's folder: manifests, logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Instance name of a node's agent.
    pub fn instance(&self, node: &str) -> String {
        format!("lab-{}-{node}", self.id)
    }

    /// Node names.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|n| n.name.as_str())
    }

    /// Network namespace of a node.
    pub fn node_netns(&self, node: &str) -> Result<String> {
        Ok(self.node(node)?.netns.clone())
    }

    /// The cgroup that its agent decides for.
    pub fn node_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup.join(node)
    }

    /// Pods by `namespace/name`.
    pub fn pods(&self) -> impl Iterator<Item = (&str, &str, Addresses)> {
        self.pods.iter().map(|(name, pod)| (name.as_str(), pod.netns.as_str(), pod.addresses))
    }

    /// The objects.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn node(&self, name: &str) -> Result<&Node> {
        let known = || self.nodes().collect::<Vec<_>>().join(", ");
        self.nodes
            .iter()
            .find(|n| n.name == name)
            .with_context(|| format!("no node {name:?} (there are: {})", known()))
    }

    pub(crate) fn pod(&self, name: &str) -> Result<&Pod> {
        let known = || self.pods.keys().cloned().collect::<Vec<_>>().join(", ");
        self.pods.get(name).with_context(|| format!("no pod {name:?} (there are: {})", known()))
    }

    /// Addresses of a pod.
    pub fn pod_addresses(&self, name: &str) -> Result<Addresses> {
        Ok(self.pod(name)?.addresses)
    }

    /// Addresses of a node.
    pub fn node_addresses(&self, name: &str) -> Result<Addresses> {
        Ok(net::node_addresses(self.node(name)?.number))
    }

    /// Applies objects as `kubectl apply` would, makes their pods, and tells the agents.
    ///
    /// # Errors
    ///
    /// When the text is no list of objects, or a pod cannot be made.
    pub fn apply(&mut self, text: &str) -> Result<()> {
        let objects = objects::read(text)?;
        let mut keys = Vec::new();
        for object in objects {
            keys.push(self.store.apply(object)?);
        }
        for key in keys.iter().filter(|k| WORKLOAD_KINDS.contains(&k.kind.as_str())) {
            self.expand(key)?;
        }
        self.settle()
    }

    /// Deletes the objects that the text identifies.
    ///
    /// # Errors
    ///
    /// When the text is no list of objects, or one of them does not exist.
    pub fn delete(&mut self, text: &str) -> Result<()> {
        for object in objects::read(text)? {
            let key = Key::of(&object)?;
            let gone = self.store.delete(&key);
            if gone.is_empty() {
                bail!("there is no {} {} to delete", key.kind, key.full_name());
            }
        }
        self.settle()
    }

    /// Pods that are placed and that no object declares.
    pub fn declare_missing_pods(&mut self) -> Result<()> {
        let names: Vec<String> = self.placements.keys().cloned().collect();
        for full in names {
            let (namespace, name) =
                full.split_once('/').with_context(|| format!("pod {full:?}: write namespace/name"))?;
            if self.store.get("Pod", namespace, name).is_none() {
                self.store.apply(json!({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}}}))?;
            }
        }
        self.settle()
    }

    /// Makes the pods of a Deployment and the like: placed ones under their names, else `<name>-<i>`.
    fn expand(&mut self, key: &Key) -> Result<()> {
        let Some(workload) = self.store.get(&key.kind, &key.namespace, &key.name).cloned() else {
            return Ok(());
        };
        let prefix = format!("{}/{}", key.namespace, key.name);
        let placed: Vec<String> = self
            .placements
            .keys()
            .filter(|p| **p == prefix || p.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with('-')))
            .filter(|p| self.owner_is_longer(key, p).is_none())
            .filter_map(|p| p.split_once('/').map(|(_, name)| name.to_owned()))
            .collect();
        let replicas = workload["spec"]["replicas"].as_u64().unwrap_or(1);
        let names = if placed.is_empty() {
            (0..replicas).map(|i| format!("{}-{i}", key.name)).collect()
        } else {
            placed
        };
        let template = &workload["spec"]["template"];
        for name in &names {
            let mut metadata = template["metadata"].clone();
            if !metadata.is_object() {
                metadata = json!({});
            }
            metadata["name"] = name.clone().into();
            metadata["namespace"] = key.namespace.clone().into();
            metadata["ownerReferences"] = json!([{"kind": key.kind, "name": key.name}]);
            self.store.apply(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}),
            )?;
        }
        let surplus: Vec<Key> = self
            .store
            .of_kind("Pod")
            .filter(|(pod, object)| {
                let owner = &object["metadata"]["ownerReferences"][0];
                pod.namespace == key.namespace && owner["name"] == *key.name && !names.contains(&pod.name)
            })
            .map(|(pod, _)| pod.clone())
            .collect();
        for pod in surplus {
            self.store.delete(&pod);
        }
        Ok(())
    }

    /// `a-b-1` belongs to the Deployment `a-b` rather than to `a`.
    fn owner_is_longer(&self, key: &Key, placed: &str) -> Option<()> {
        let longer = self.store.all().filter(|(other, _)| {
            WORKLOAD_KINDS.contains(&other.kind.as_str())
                && other.namespace == key.namespace
                && other.name.len() > key.name.len()
                && placed.starts_with(&format!("{}/{}", other.namespace, other.name))
        });
        longer.map(|_| ()).next()
    }

    /// Brings pods, names, kube-proxy and manifests in line with the objects.
    fn settle(&mut self) -> Result<()> {
        let gone: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, pod)| {
                let object = self.store.get("Pod", &pod.key.namespace, &pod.key.name);
                // The kubelet gives a pod whose processes are gone a new sandbox: same UID, new network namespace.
                object.is_none_or(|o| o["metadata"]["uid"] != *pod.uid) || pod.has_ended()
            })
            .map(|(name, _)| name.clone())
            .collect();
        // The objects go first: an agent must not look for pods that are being taken down.
        self.write_manifests()?;
        for name in gone {
            if let Some(pod) = self.pods.remove(&name) {
                pod.remove()?;
            }
        }
        let missing: Vec<Key> = self
            .store
            .of_kind("Pod")
            .map(|(key, _)| key.clone())
            .filter(|key| !self.pods.contains_key(&key.full_name()))
            .collect();
        for key in missing {
            self.start_pod(&key)?;
        }
        self.write_names()?;
        self.write_manifests()?;
        for node in &self.nodes {
            kubeproxy::program(&self.store, &node.name, net::node_addresses(node.number), &node.netns)?;
        }
        Ok(())
    }

    /// Starts agents on all nodes and waits until they are ready and have enrolled what they should.
    ///
    /// # Errors
    ///
    /// When one does not become ready; the error holds the end of its log.
    pub fn start_agents(&mut self) -> Result<()> {
        if self.options.culvert.is_none() {
            return Ok(());
        }
        let names: Vec<String> = self.nodes().map(str::to_owned).collect();
        for name in &names {
            self.launch_agent(name)?;
        }
        for name in &names {
            self.agent(name)?.wait_ready(Duration::from_secs(15))?;
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        for name in &names {
            while Instant::now() < deadline && self.agent(name)?.has_pending_pods() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Starts a node's agent without waiting until it is ready.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn launch_agent(&mut self, name: &str) -> Result<()> {
        let Some(binary) = self.options.culvert.clone() else { return Ok(()) };
        let (instance, dir, args) = (self.instance(name), self.dir.clone(), self.options.agent_args.clone());
        let cgroup = self.cgroup.join(name);
        self.resolv_file()?;
        let node =
            self.nodes.iter_mut().find(|n| n.name == name).with_context(|| format!("no node {name:?}"))?;
        let agent = Agent::start(&binary, name, &instance, &dir, &cgroup, &node.netns, &args)?;
        node.agent = Some(agent);
        Ok(())
    }

    fn agent(&self, node: &str) -> Result<&Agent> {
        self.node(node)?.agent.as_ref().with_context(|| format!("no agent runs on {node}"))
    }

    /// `kill` (SIGKILL), `stop` (SIGTERM), `start` or `restart` of a node's agent.
    ///
    /// # Errors
    ///
    /// When the agent does not stop or start.
    pub fn control_agent(&mut self, node: &str, action: &str) -> Result<()> {
        self.node(node)?;
        let signal = match action {
            "kill" => Some(nix::sys::signal::Signal::SIGKILL),
            "stop" | "restart" => Some(nix::sys::signal::Signal::SIGTERM),
            "start" => None,
            other => bail!("agent: do: {other:?} is none of kill, stop, start, restart"),
        };
        if let Some(signal) = signal
            && let Some(agent) = self.nodes.iter_mut().find(|n| n.name == node).and_then(|n| n.agent.take())
        {
            agent.end(signal)?;
        }
        if action == "start" || action == "restart" {
            self.launch_agent(node)?;
            self.agent(node)?.wait_ready(Duration::from_secs(15))?;
        }
        Ok(())
    }

    /// New flow records of all agents since the last call.
    pub fn flows(&self) -> Vec<FlowRecord> {
        self.nodes.iter().filter_map(|n| n.agent.as_ref()).flat_map(Agent::new_flows).collect()
    }

    /// Process id of a node's agent.
    ///
    /// # Errors
    ///
    /// When none runs there.
    pub fn agent_pid(&self, node: &str) -> Result<u32> {
        Ok(self.agent(node)?.pid())
    }

    /// The metrics of all agents that run, by series.
    ///
    /// # Errors
    ///
    /// When one does not answer.
    pub fn metrics(&self) -> Result<Vec<BTreeMap<String, u64>>> {
        self.nodes.iter().filter_map(|n| n.agent.as_ref()).map(Agent::metrics).collect()
    }

    /// The last lines of every agent's log.
    pub fn agent_logs(&self, lines: usize) -> String {
        let agents = self.nodes.iter().filter_map(|n| n.agent.as_ref());
        agents.map(|agent| agent.log_tail(lines)).collect()
    }

    /// Runs a program in a pod: its network namespace, cgroup and names.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not end within `limit`.
    pub fn exec(&self, pod: &str, command: &[String], limit: Duration) -> Result<Output> {
        let place = self.pod(pod)?.place();
        self.run_program(command, &place, None, limit)
    }

    /// Runs a program on a node, beside its agent.
    ///
    /// # Errors
    ///
    /// As [`Lab::exec`].
    pub fn run_on(&self, node: &str, command: &[String], limit: Duration) -> Result<Output> {
        let place = Place {
            netns: Some(net::netns_path(&self.node(node)?.netns)),
            cgroup: Some(self.cgroup.join(node).join("system")),
            ..Place::default()
        };
        self.run_program(command, &place, Some(self.instance(node)), limit)
    }

    fn run_program(
        &self,
        command: &[String],
        place: &Place,
        instance: Option<String>,
        limit: Duration,
    ) -> Result<Output> {
        let [program, args @ ..] = command else { bail!("an empty command") };
        let mut child = Command::new("timeout");
        child.arg("--signal=KILL").arg(limit.as_secs_f64().to_string()).arg(program).args(args);
        if let Some(dir) = self.options.culvert.as_deref().and_then(Path::parent) {
            let path = std::env::var("PATH").unwrap_or_default();
            child.env("PATH", format!("{}:{path}", dir.display()));
        }
        if let Some(instance) = instance {
            child.env("CULVERT_INSTANCE", instance);
        }
        // What a program leaves there goes with the lab.
        child.env("TMPDIR", &self.dir);
        put(&mut child, place)?;
        child.stdin(Stdio::null()).output().with_context(|| format!("starting {program:?}"))
    }

    fn write_manifests(&self) -> Result<()> {
        let dir = self.dir.join("manifests");
        let mut wanted = BTreeMap::new();
        for (key, object) in self.store.all() {
            let name = format!("{}_{}_{}.json", key.kind, key.namespace, key.name).to_lowercase();
            wanted.insert(name.replace(['/', ':'], "-"), serde_json::to_string_pretty(object)?);
        }
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if !wanted.contains_key(&*entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        for (name, text) in wanted {
            let path = dir.join(&name);
            if fs::read_to_string(&path).is_ok_and(|old| old == text) {
                continue;
            }
            let half = dir.join(format!(".{name}.tmp"));
            fs::write(&half, text)?;
            fs::rename(&half, &path)?;
        }
        Ok(())
    }

    /// Everything that a stopped lab must leave behind: nothing.
    ///
    /// # Errors
    ///
    /// When something cannot be removed; the rest is removed all the same.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(agent) = node.agent.take() {
                let _ = agent.end(nix::sys::signal::Signal::SIGKILL);
            }
        }
        self.pods.clear();
        remove_lab(&self.id)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.dir.exists()
            && let Err(error) = self.end()
        {
            eprintln!("lab {}: not everything could be removed: {error:#}", self.id);
        }
    }
}

/// Where cgroup v2 is mounted.
pub(crate) fn cgroup_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        tail.starts_with("cgroup2 ").then(|| head.split(' ').nth(4)).flatten()
    });
    mount.map(PathBuf::from).context("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// A text field of an object, or "".
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}
