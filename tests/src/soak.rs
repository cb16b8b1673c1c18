//! `culvert-lab soak`: everything changes all the time, and every connection is judged.
//!
//! * [`cluster`]: pods, objects, flows. [`schedule`]: what happens next. [`pod`]: the flows, in the pods.
//! * [`state`]: what the cluster is told to be, and what that allows; [`oracle`]: what is allowed when.
//!   [`health`]: what agents hold. [`tally`]: the counts.

mod cluster;
mod health;
mod oracle;
pub(crate) mod pod;
mod schedule;
mod state;
mod tally;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::dice::Dice;
use crate::lab::{FlowRecord, Lab, Options, Placement, leftovers};
use crate::pod_process::Order;
use cluster::{Lane, NODES, PODS};
use health::Health;
use oracle::{Judgement, Timeline};
use pod::{Attempt, Flow, PORT, Task, now};
use schedule::Action;
use state::State;
use tally::Tally;

/// Between two looks at what the pods found.
const LOOK: Duration = Duration::from_millis(200);
/// From the last connection until nothing of it is left: drained tunnels, late segments, removed listeners.
const QUIET: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(3);
/// Between two looks at what the agents hold.
const HEALTH: Duration = Duration::from_secs(15);
/// Flow records kept to explain what went wrong, and shown of one connection.
const RECORDS: usize = 30_000;
const SHOWN: usize = 6;

/// `culvert-lab soak`.
#[derive(Args, Debug)]
pub struct SoakArgs {
    /// How long, beside building the lab and looking for leaks
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    minutes: f64,
    /// What the schedule follows from
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// The culvert binary [default: beside this program]
    #[arg(long, env = "CULVERT_BIN")]
    pub culvert: Option<PathBuf>,
}

/// Runs it; false when anything was wrong.
///
/// # Errors
///
/// When the lab cannot be built, or a pod's process has gone.
pub fn run(args: &SoakArgs, culvert: PathBuf) -> Result<bool> {
    let lab = build(culvert)?;
    let id = lab.id().to_owned();
    println!("soak: seed {}, {} minutes, lab {id}", args.seed, args.minutes);
    let mut soak = Soak::new(lab, args.seed);
    let ran = soak.all(Duration::from_secs_f64(args.minutes.clamp(0.0, 10_000.0) * 60.0));
    let logs = soak.lab.agent_logs(20);
    let Soak { lab, mut tally, step, .. } = soak;
    lab.stop().context("removing the lab")?;
    for path in leftovers(&id) {
        tally.wrong(format!("left behind: {}", path.display()));
    }
    print!("{tally}");
    if !tally.is_clean() || ran.is_err() {
        println!("{logs}again: culvert-lab soak --seed {} (it came to step {step})", args.seed);
    }
    ran?;
    Ok(tally.is_clean())
}

fn build(culvert: PathBuf) -> Result<Lab> {
    let options = Options {
        nodes: NODES.map(str::to_owned).into(),
        // Kept tunnels would hold up a restart for as long.
        agent_args: vec!["--drain=1".to_owned(), "--log=info,access=off".to_owned()],
        culvert: Some(culvert),
        id: crate::cli::new_id(),
        ..Options::default()
    };
    let placement = |pod: &state::Pod| Placement {
        node: pod.node.to_owned(),
        tcp: if pod.serves { vec![PORT] } else { Vec::new() },
        ..Placement::default()
    };
    let placements = PODS.iter().map(|pod| (pod.name.to_owned(), placement(pod))).collect();
    let mut lab = Lab::new(options, placements)?;
    lab.apply(&cluster::objects(&State::base()))?;
    lab.start_agents()?;
    Ok(lab)
}

struct Soak {
    lab: Lab,
    lanes: Vec<Lane>,
    dice: Dice,
    timeline: Timeline,
    tally: Tally,
    records: VecDeque<FlowRecord>,
    begun: Instant,
    step: u32,
    healthy: BTreeMap<&'static str, Health>,
}

impl Soak {
    fn new(lab: Lab, seed: u64) -> Self {
        Self {
            lab,
            lanes: cluster::lanes(),
            dice: Dice::new(seed, 0),
            timeline: Timeline::new(State::base(), now()),
            tally: Tally::default(),
            records: VecDeque::new(),
            begun: Instant::now(),
            step: 0,
            healthy: BTreeMap::new(),
        }
    }

    /// Warms up, does steps for `length`, comes back to where it began, and looks for what is left.
    fn all(&mut self, length: Duration) -> Result<()> {
        self.residents(Self::start)?;
        self.pause(WARM_UP)?;
        self.residents(Self::stop)?;
        self.pause(QUIET)?;
        for node in NODES {
            self.healthy.insert(node, Health::of(&self.lab, node)?);
        }
        self.residents(Self::start)?;
        let end = Instant::now() + length;
        let mut look = Instant::now() + HEALTH;
        while Instant::now() < end {
            self.next_step()?;
            if Instant::now() > look {
                look += HEALTH;
                self.check_health(Health::excess)?;
            }
        }
        self.come_back()?;
        self.residents(Self::stop)?;
        self.pause(QUIET)?;
        self.check_health(Health::leaks)
    }

    fn residents(&mut self, act: fn(&mut Self, &str) -> Result<()>) -> Result<()> {
        PODS.iter().filter(|pod| !pod.guest).try_for_each(|pod| act(self, pod.name))
    }

    fn next_step(&mut self) -> Result<()> {
        let action = schedule::next(&mut self.dice, &self.timeline.current());
        self.step += 1;
        let head = format!("[{:6.1} s] step {}: {action}", self.begun.elapsed().as_secs_f64(), self.step);
        println!("{head} ({} tries, {} violations)", self.tally.total(), self.tally.violations());
        self.act(action)?;
        // Now upon each other, now with time to see what the step has led to.
        let pause = if self.dice.chance(1, 2) { (200, 1500) } else { (2500, 4500) };
        let pause = self.dice.between(pause.0, pause.1);
        self.pause(Duration::from_millis(pause))
    }

    fn act(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Change(state, _) => self.change(state),
            Action::Come(pod) => {
                let mut state = self.timeline.current();
                state.present.insert(pod);
                self.change(state)?;
                self.start(pod)
            }
            Action::Go(pod) => self.go(pod),
            Action::Restart(node) => {
                self.gather();
                self.timeline.gone(node, now());
                self.lab.control_agent(node, "stop")?;
                self.bring_back(node)
            }
            Action::Kill(node, meanwhile) => {
                self.gather();
                self.timeline.gone(node, now());
                self.lab.control_agent(node, "kill")?;
                let pause = self.dice.between(0, 1500);
                self.pause(Duration::from_millis(pause))?;
                if let Some(action) = meanwhile {
                    self.act(*action)?;
                }
                self.bring_back(node)
            }
        }
    }

    fn bring_back(&mut self, node: &str) -> Result<()> {
        self.lab.control_agent(node, "start")?;
        self.timeline.back(now());
        Ok(())
    }

    fn change(&mut self, state: State) -> Result<()> {
        let (apply, delete) = cluster::difference(&self.timeline.current(), &state);
        self.timeline.change(state, now());
        if !apply.is_empty() {
            self.lab.apply(&apply)?;
        }
        if !delete.is_empty() {
            self.lab.delete(&delete)?;
        }
        self.timeline.applied(now());
        Ok(())
    }

    /// A pod ends as a cluster ends one: no service leads to it any more, then it stops.
    fn go(&mut self, name: &'static str) -> Result<()> {
        self.stop(name)?;
        if let Some(pod) = cluster::find(name).filter(|pod| pod.serves) {
            self.lab.apply(&cluster::retired(&pod).to_string())?;
            self.pause(Duration::from_millis(1500))?;
        }
        let mut state = self.timeline.current();
        state.present.remove(name);
        self.change(state)
    }

    /// Back to where the run began.
    fn come_back(&mut self) -> Result<()> {
        println!("[{:6.1} s] back to the beginning", self.begun.elapsed().as_secs_f64());
        for guest in self.timeline.current().present {
            self.go(guest)?;
        }
        self.change(State::base())?;
        self.pause(Duration::from_micros(oracle::SETTLE) + Duration::from_secs(1))
    }

    fn start(&mut self, pod: &str) -> Result<()> {
        let mut flows = Vec::new();
        for (id, lane) in (0..).zip(&self.lanes).filter(|(_, lane)| lane.route.from.name == pod) {
            let to = self.lab.substitute(&lane.address)?;
            let to = to.parse().with_context(|| format!("address {to:?}"))?;
            flows.push(Flow { id, to, style: lane.route.style, every: lane.every });
        }
        if flows.is_empty() { Ok(()) } else { self.lab.pod(pod)?.ask(&Order::Soak(Task::Start(flows))) }
    }

    fn stop(&mut self, pod: &str) -> Result<()> {
        let () = self.lab.pod(pod)?.ask(&Order::Soak(Task::Stop))?;
        self.judge(pod)
    }

    /// Waits, and judges what happens meanwhile.
    fn pause(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(LOOK));
            self.gather();
            let clients: Vec<String> = self.lab.pods().map(|(name, ..)| name.to_owned()).collect();
            clients.iter().try_for_each(|pod| self.judge(pod))?;
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    /// Flow records, to explain what may turn out wrong.
    fn gather(&mut self) {
        self.records.extend(self.lab.flows());
        let surplus = self.records.len().saturating_sub(RECORDS);
        self.records.drain(..surplus);
    }

    /// Judges what a pod has tried since the last call.
    fn judge(&mut self, pod: &str) -> Result<()> {
        let attempts: Vec<Attempt> = self.lab.pod(pod)?.ask(&Order::Soak(Task::Take))?;
        for attempt in attempts {
            let Some(lane) = self.lanes.get(attempt.flow as usize) else { continue };
            let judgement = self.timeline.judge(&lane.route, &attempt);
            self.tally.add(lane.title(), &judgement);
            if let Judgement::Wrong(why) = judgement {
                let text = self.describe(lane, &attempt, &why);
                self.wrong(text);
            }
        }
        Ok(())
    }

    fn describe(&self, lane: &Lane, attempt: &Attempt, why: &str) -> String {
        let from = lane.route.from.name;
        let mut text = format!(
            "{why}: {from} -> {} ({}), port {}, {} ms ago, took {} ms, connection {} ms old, {} ms after the last change, last step {}; now {:?}",
            lane.address,
            lane.title(),
            attempt.port,
            now().saturating_sub(attempt.ended) / 1000,
            attempt.ended.saturating_sub(attempt.since) / 1000,
            attempt.ended.saturating_sub(attempt.opened) / 1000,
            self.timeline.since_change(attempt.ended),
            self.step,
            self.timeline.current(),
        );
        // An attempt that failed in connect() does not know its port.
        let known = |port: u16| attempt.port != 0 && port == attempt.port;
        let mine = |flow: &&FlowRecord| {
            let to = lane.route.to.iter().any(|server| server.name == flow.destination.workload);
            let refused = attempt.port == 0 && flow.stage == "refused";
            flow.source.workload == from && to && (known(flow.source.port) || refused)
        };
        let shown: Vec<&FlowRecord> = self.records.iter().rev().filter(mine).take(SHOWN).collect();
        for record in shown.into_iter().rev() {
            text.push_str(&format!("\n    record: {record}"));
        }
        text
    }

    fn wrong(&mut self, text: String) {
        let line =
            format!("VIOLATION at {:.1} s, step {}: {text}", self.begun.elapsed().as_secs_f64(), self.step);
        if self.tally.wrong(text) {
            println!("{line}");
        }
    }

    fn check_health(&mut self, look: fn(&Health, &Health) -> Vec<String>) -> Result<()> {
        for node in NODES {
            let health = Health::of(&self.lab, node)?;
            let before = self.healthy.get(node).cloned().unwrap_or_default();
            let held: Vec<String> = health.held.iter().map(|(name, n)| format!("{name} {n}")).collect();
            println!("  {node} holds {}", held.join(", "));
            for text in look(&health, &before) {
                self.wrong(format!("{node}: {text}"));
            }
        }
        Ok(())
    }
}
