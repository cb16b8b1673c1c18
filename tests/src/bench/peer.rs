//! Another proxy, put between the pods of namespace `peer` by a command of the user's. docs/performance.md has the contract.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::cluster::{CLIENT, FAR};
use super::load::{FIRST_PORT, LAST_PORT};
use crate::lab::Lab;
use crate::net::netns_path;
use crate::sys::{Place, put};

/// How long it may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "peer/";

/// A peer that is in place. Dropping it ends what it started.
pub(crate) struct Peer {
    start: Child,
    stop: Option<String>,
    environment: Vec<(String, String)>,
    cgroup: PathBuf,
    pids: PathBuf,
    log: PathBuf,
}

impl Peer {
    /// Runs the command, and waits until it has ended well, or has written its process ids and goes on.
    pub(crate) fn start(lab: &Lab, command: &str, stop: Option<String>) -> Result<Self> {
        let scratch = lab.dir().join("peer");
        fs::create_dir_all(&scratch)?;
        // Outside of both nodes: no program of Culvert's sees what a peer's processes connect to.
        let cgroup = lab.node_cgroup("n1").with_file_name("peer");
        fs::create_dir_all(&cgroup)?;
        let (pids, log) = (scratch.join("pids"), scratch.join("log"));
        let mut environment = environment(lab)?;
        let own = [("DIR", &scratch), ("PIDS", &pids), ("CGROUP", &cgroup)];
        environment.extend(own.map(|(name, path)| (variable(name), path.display().to_string())));
        let start = shell(command, &environment, &cgroup, &log)?;
        let mut peer = Self { start, stop, environment, cgroup, pids, log };
        peer.wait()?;
        Ok(peer)
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.start.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("--peer-start ended with {status}:\n{}", self.said()),
                None if !self.processes()?.is_empty() => return Ok(()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        bail!(
            "--peer-start neither ended nor wrote to $CULVERT_BENCH_PIDS within {PATIENCE:?}:\n{}",
            self.said()
        )
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The processes whose cost is the peer's; none when it named none.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(&self.pids).unwrap_or_default();
        let number = |word: &str| word.parse().with_context(|| format!("{word:?} in $CULVERT_BENCH_PIDS"));
        text.split_whitespace().map(number).collect()
    }

    /// Runs `--peer-stop`, if there is one, and ends what is left.
    pub(crate) fn stop(mut self) -> Result<()> {
        let Some(command) = self.stop.take() else { return Ok(()) };
        let status = shell(&command, &self.environment, &self.cgroup, &self.log)?.wait()?;
        if !status.success() {
            bail!("--peer-stop ended with {status}:\n{}", self.said());
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.start.id())
            && matches!(self.start.try_wait(), Ok(None))
        {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.start.wait();
        // What it left in the background.
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
    }
}

fn shell(command: &str, environment: &[(String, String)], cgroup: &Path, log: &Path) -> Result<Child> {
    let output = fs::File::options().create(true).append(true).open(log)?;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).process_group(0).stdin(Stdio::null());
    shell.envs(environment.iter().cloned()).stdout(output.try_clone()?).stderr(output);
    put(&mut shell, &Place { cgroup: Some(cgroup.to_owned()), ..Place::default() })?;
    shell.spawn().context("starting sh")
}

fn variable(name: &str) -> String {
    format!("CULVERT_BENCH_{name}")
}

/// Where the nodes and the peer's pods are; `pods.tsv` in the scratch folder has all of these pods.
fn environment(lab: &Lab) -> Result<Vec<(String, String)>> {
    let mut all = vec![(variable("PORTS"), format!("{FIRST_PORT}-{LAST_PORT}"))];
    for node in ["n1", "n2"] {
        let (netns, ips) = (netns_path(&lab.node_netns(node)?), lab.node_addresses(node)?);
        let cgroup = lab.node_cgroup(node).display().to_string();
        let values = [netns.display().to_string(), cgroup, ips.v4.to_string(), ips.v6.to_string()];
        all.extend(named(node, values));
    }
    let mut table = String::new();
    for (full, netns, ips) in lab.pods().filter(|(full, ..)| full.starts_with(NAMESPACE)) {
        let name = full.trim_start_matches(NAMESPACE);
        let cgroup = lab.pod(full)?.place().cgroup.unwrap_or_default();
        // Cold servers are on n2, too.
        let node = if [CLIENT, "near"].contains(&name) { "n1" } else { "n2" };
        let netns = netns_path(netns).display().to_string();
        let values = [netns, cgroup.display().to_string(), ips.v4.to_string(), ips.v6.to_string()];
        table.push_str(&format!("{name}\t{node}\t{}\n", values.join("\t")));
        match name {
            CLIENT => all.extend(named("client", values)),
            FAR => all.extend(named("server", values)),
            _ => {}
        }
    }
    let path = lab.dir().join("peer/pods.tsv");
    fs::write(&path, table)?;
    all.push((variable("PODS"), path.display().to_string()));
    Ok(all)
}

fn named(who: &str, values: [String; 4]) -> impl Iterator<Item = (String, String)> {
    let fields = ["NETNS", "CGROUP", "IP", "IP6"].into_iter();
    let who = who.to_uppercase();
    fields.zip(values).map(move |(field, value)| (variable(&format!("{who}_{field}")), value))
}
