//! `culvert-lab transfers`: every byte of thousands of connections arrives, exact, in order, and then the end.
//!
//! * [`plan`]: what a connection does, from the seed and its number. [`play`]: one end of it. [`pod`]: in the pods.
//! * [`verdict`]: what both ends and the agents' counters say of it. [`summary`]: for people.

pub(crate) mod plan;
pub(crate) mod play;
#[cfg(test)]
mod play_tests;
pub(crate) mod pod;
mod summary;
pub(crate) mod verdict;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use crate::lab::{Lab, Options};
use crate::pod_process::Order;
use plan::Rules;
use play::Outcome;
use pod::{Batch, FIRST_PORT, Served, Targets, Task};
use summary::Summary;
use verdict::{Counted, Path};

const CLIENT: &str = "transfers/client";
const SERVER: &str = "transfers/server";
/// Connections of a lane in one batch: enough that lanes rarely wait for each other.
const LANE: usize = 25;

/// What the agents have to count what has happened.
const SETTLE: Duration = Duration::from_secs(5);

/// `culvert-lab transfers`.
#[derive(Args, Debug)]
pub struct TransferArgs {
    /// The way that connections take
    #[arg(long, value_enum, default_value_t = Path::Tunnel)]
    path: Path,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    connections: u64,
    /// At a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=200))]
    parallel: u16,
    /// Largest payload of one direction: bytes, or with KiB or MiB
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    max_size: u64,
    /// What sizes, bytes, pauses and endings follow from
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Only this connection of the run, with its number (may be repeated)
    #[arg(long, value_name = "NUMBER")]
    only: Vec<u64>,
    /// Extra argument of every agent, for example --agent-arg=--same-node=tunnel
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
    /// The culvert binary [default: beside this program]
    #[arg(long, env = "CULVERT_BIN")]
    pub(crate) culvert: Option<PathBuf>,
}

impl TransferArgs {
    /// Whether agents take part.
    pub(crate) fn needs_agents(&self) -> bool {
        self.path != Path::Raw
    }
}

/// `65536`, `64KiB`, `64MiB`.
fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("", 0)];
    let found = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = found.unwrap_or((text, &0));
    let bytes = number.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    bytes.filter(|n| *n <= 1 << 30).ok_or_else(|| "write up to 1024MiB, as 65536, 64KiB or 64MiB".to_owned())
}

/// Runs it; false when anything was wrong.
///
/// # Errors
///
/// When the lab cannot be built, or a pod's process has gone.
pub fn run(args: &TransferArgs, culvert: Option<PathBuf>) -> Result<bool> {
    let numbers: Vec<u64> =
        if args.only.is_empty() { (0..args.connections).collect() } else { args.only.clone() };
    println!("transfers: {}, {} connections, seed {}", args.path.as_str(), numbers.len(), args.seed);
    let lab = build(args, culvert)?;
    let result = Run::new(&lab, args).and_then(|mut run| {
        run.all(numbers)?;
        Ok(run.summary)
    });
    let logs = lab.agent_logs(10);
    lab.stop().context("removing the lab")?;
    let summary = result?;
    print!("{summary}");
    if !summary.is_clean() {
        print!("{logs}");
    }
    Ok(summary.is_clean())
}

fn build(args: &TransferArgs, culvert: Option<PathBuf>) -> Result<Lab> {
    let nodes = if args.path == Path::Direct { 1 } else { 2 };
    let options = Options {
        nodes: (1..=nodes).map(|n| format!("n{n}")).collect(),
        agent_args: args.agent_arg.clone(),
        culvert,
        id: crate::cli::new_id(),
        ..Options::default()
    };
    let mut lab = Lab::new(options, BTreeMap::new())?;
    let ports: Vec<_> = (FIRST_PORT..FIRST_PORT + args.parallel)
        .map(|port| json!({"name": format!("lane-{port}"), "port": port}))
        .collect();
    let pod = |name: &str, node: String| {
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": node},
               "metadata": {"name": name, "namespace": "transfers", "labels": {"app": name}}})
    };
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace",
         "metadata": {"name": "transfers", "labels": {"istio.io/dataplane-mode": "ambient"}}},
        {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
         "metadata": {"name": "default", "namespace": "istio-system"}, "spec": {"mtls": {"mode": "STRICT"}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "transfers"},
         "spec": {"selector": {"app": "server"}, "ports": ports, "ipFamilyPolicy": "RequireDualStack"}},
        pod("client", "n1".to_owned()),
        pod("server", format!("n{nodes}")),
    ]});
    lab.apply(&objects.to_string())?;
    lab.start_agents()?;
    Ok(lab)
}

/// A run in its lab.
struct Run<'a> {
    lab: &'a Lab,
    args: &'a TransferArgs,
    rules: Rules,
    targets: Targets,
    counted: Counted,
    begun: Instant,
    summary: Summary,
}

impl<'a> Run<'a> {
    fn new(lab: &'a Lab, args: &'a TransferArgs) -> Result<Self> {
        let pod = lab.pod_addresses(SERVER)?;
        let service =
            |kind: &str| -> Result<IpAddr> { Ok(lab.substitute(&format!("${{{kind}:{SERVER}}}"))?.parse()?) };
        let rules = Rules { seed: args.seed, max_size: args.max_size };
        Ok(Self {
            lab,
            args,
            rules,
            targets: Targets {
                pod: [pod.v4.into(), pod.v6.into()],
                service: [service("vip")?, service("vip6")?],
            },
            counted: Counted::sum(&lab.metrics()?),
            begun: Instant::now(),
            summary: Summary::new(args.path, rules),
        })
    }

    fn all(&mut self, numbers: Vec<u64>) -> Result<()> {
        let mut left = VecDeque::from(numbers);
        let total = left.len();
        while !left.is_empty() {
            let lanes = lanes(&mut left, usize::from(self.args.parallel));
            let unplayed = self.batch(lanes)?;
            left.extend(unplayed);
            self.summary.took = self.begun.elapsed();
            println!("{}", self.summary.progress(total));
        }
        Ok(())
    }

    /// Plays a batch; returns the connections that a lane's failure kept from being played.
    fn batch(&mut self, lanes: Vec<Vec<u64>>) -> Result<Vec<u64>> {
        let batch = Batch { rules: self.rules, lanes };
        let (client, server) = (self.lab.pod(CLIENT)?, self.lab.pod(SERVER)?);
        let answer: serde_json::Value = server.ask(&Order::Transfers(Task::Serve(batch.clone())))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{error}");
        }
        let opened: Vec<Outcome> =
            client.ask(&Order::Transfers(Task::Open(batch.clone(), self.targets.clone())))?;
        let served: Served = server.ask(&Order::Transfers(Task::Served))?;
        self.judge(&opened, served)?;
        let played: Vec<u64> = opened.iter().map(|outcome| outcome.number).collect();
        Ok(batch.lanes.concat().into_iter().filter(|number| !played.contains(number)).collect())
    }

    fn judge(&mut self, opened: &[Outcome], served: Served) -> Result<()> {
        let from = self.lab.pod_addresses(CLIENT)?;
        let server: BTreeMap<u64, &Outcome> = served.outcomes.iter().map(|o| (o.number, o)).collect();
        let mut bytes = (0, 0);
        for client in opened {
            let plan = self.rules.plan(client.number);
            let wrong = verdict::connection(&plan, client, server.get(&client.number).copied(), &from);
            bytes = (bytes.0 + plan.client.size, bytes.1 + plan.server.size);
            self.summary.add(&plan, wrong);
        }
        if served.surplus > 0 {
            self.summary.wrong(format!("{} connections arrived that nobody opened", served.surplus));
        }
        // The last ends of connections are still on their way to the agents.
        let begun = Instant::now();
        let (now, wrong) = loop {
            let now = Counted::sum(&self.lab.metrics()?);
            let wrong = verdict::path(self.args.path, opened.len() as u64, bytes, &now.since(&self.counted));
            if wrong.is_empty() || begun.elapsed() > SETTLE {
                break (now, wrong);
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.summary.count(&now.since(&self.counted));
        self.counted = now;
        for text in wrong {
            self.summary.wrong(text);
        }
        for record in verdict::records(self.args.path, &self.lab.flows()).take(3) {
            self.summary.wrong(format!("a flow record of another kind: {record}"));
        }
        Ok(())
    }
}

/// The next connections, dealt to `count` lanes.
fn lanes(left: &mut VecDeque<u64>, count: usize) -> Vec<Vec<u64>> {
    let mut lanes = vec![Vec::new(); count.clamp(1, left.len().max(1))];
    let now = left.len().min(lanes.len() * LANE);
    for (n, number) in left.drain(..now).enumerate() {
        let lane = n % lanes.len();
        lanes[lane].push(number);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("16 KiB"), Ok(16 << 10));
        assert_eq!(size("7"), Ok(7));
        for wrong in ["", "x", "-1", "64MB", "2000MiB", "99999999999999999999KiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_connection_is_dealt_once() {
        let mut left: VecDeque<u64> = (0..130).collect();
        let first = lanes(&mut left, 4);
        assert_eq!((first.len(), first.concat().len()), (4, 100));
        let second = lanes(&mut left, 40);
        assert_eq!((second.len(), left.len()), (30, 0));
        let mut all = [first.concat(), second.concat()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..130).collect::<Vec<u64>>());
    }
}
