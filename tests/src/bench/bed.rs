//! The lab in which everything is measured: its servers, its clients, and the processes that cost.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::args::BenchArgs;
use super::cluster::{self, CLIENT};
use super::cost::{Memory, processor_seconds};
use super::load::{Outcome, Task};
use super::peer::Peer;
use super::plan::{Family, Leg, Plan};
use crate::lab::{Lab, Options};
use crate::sys::put;
use crate::transfers::verdict::Counted;

/// From a client's end until agents have done what is left to do of it: ends of connections, flow records.
const SETTLE: Duration = Duration::from_millis(30);

/// The lab and what runs in it.
pub(crate) struct Bed {
    // In this order: programs end before their pods are taken away.
    programs: Vec<Program>,
    peer: Option<Peer>,
    pub(crate) lab: Lab,
}

impl Bed {
    /// Builds it.
    ///
    /// # Errors
    ///
    /// When the lab, a server or the peer does not come up; what was made is removed.
    pub(crate) fn build(args: &BenchArgs, plan: &Plan, culvert: PathBuf) -> Result<Self> {
        allow_many_files()?;
        let options = Options {
            nodes: vec!["n1".to_owned(), "n2".to_owned()],
            agent_args: args.agent_arg.clone(),
            culvert: Some(culvert),
            id: crate::cli::new_id(),
            ..Options::default()
        };
        let mut lab = Lab::new(options, cluster::placements(plan, args.pods))?;
        for list in cluster::objects(plan, args.pods, args.policies) {
            lab.apply(&list.to_string())?;
        }
        lab.start_agents()?;
        let mut bed = Self { programs: Vec::new(), peer: None, lab };
        let legs = [Leg::RawNear, Leg::Direct, Leg::RawFar, Leg::Tunnel, Leg::Peer];
        for leg in legs.into_iter().filter(|leg| plan.peer || *leg != Leg::Peer) {
            let server = bed.start_in(&cluster::server(leg), &Task::Serve)?;
            bed.programs.push(server);
        }
        if let Some(start) = &args.peer_start {
            bed.peer = Some(Peer::start(&bed.lab, start, args.peer_stop.clone())?);
        }
        Ok(bed)
    }

    /// Starts a client on a leg, and waits for what it has found.
    pub(crate) fn start(&self, leg: Leg, task: &Task) -> Result<Program> {
        self.start_in(&format!("{}/{CLIENT}", leg.namespace()), task)
    }

    /// Starts a program of ours in a pod, and waits for what it has to say.
    fn start_in(&self, pod: &str, task: &Task) -> Result<Program> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("load").arg(serde_json::to_string(task)?);
        let mut place = self.lab.pod(pod)?.place();
        place.dies_with_parent = true;
        put(&mut command, &place)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut program = Program { child, said: Outcome::default() };
        let mut line = String::new();
        if let Some(stdout) = program.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.is_empty() {
            bail!("pod {pod}: the program of the benchmark ended without a word");
        }
        program.said = serde_json::from_str(&line).with_context(|| format!("pod {pod} said {line:?}"))?;
        Ok(program)
    }

    /// An address of a pod.
    pub(crate) fn address(&self, pod: &str, family: Family) -> Result<IpAddr> {
        let both = self.lab.pod_addresses(pod)?;
        Ok(if family == Family::V4 { both.v4.into() } else { both.v6.into() })
    }

    /// What the agents have counted.
    pub(crate) fn counted(&self) -> Result<Counted> {
        Ok(Counted::sum(&self.lab.metrics()?))
    }

    /// The processes that carry a leg: both agents (a raw leg must not cost them anything), or the peer's.
    pub(crate) fn processes(&self, leg: Leg) -> Result<Vec<u32>> {
        match (&self.peer, leg) {
            (Some(peer), Leg::Peer) => peer.processes(),
            _ => ["n1", "n2"].into_iter().map(|node| self.lab.agent_pid(node)).collect(),
        }
    }

    /// Processor seconds of a leg's processes so far.
    pub(crate) fn processor(&self, leg: Leg) -> Result<f64> {
        processor_seconds(&self.processes(leg)?)
    }

    /// Memory of a leg's processes.
    pub(crate) fn memory(&self, leg: Leg) -> Result<Memory> {
        Memory::of(&self.processes(leg)?)
    }

    /// Agents that have carried nothing yet.
    pub(crate) fn restart_agents(&mut self) -> Result<()> {
        ["n1", "n2"].into_iter().try_for_each(|node| self.lab.control_agent(node, "restart"))
    }

    /// Gives what is left of a client the time to be done.
    pub(crate) fn settle(&self) {
        std::thread::sleep(SETTLE);
    }

    /// Takes everything down.
    pub(crate) fn stop(self) -> Result<()> {
        let Self { programs, peer, lab } = self;
        drop(programs);
        let peer = peer.map_or(Ok(()), Peer::stop);
        lab.stop().context("removing the lab")?;
        peer
    }
}

/// A program in a pod. Dropping it ends it.
pub(crate) struct Program {
    child: Child,
    /// Its one line.
    pub(crate) said: Outcome,
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Thousands of idle connections are as many files of a process.
fn allow_many_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")
}
