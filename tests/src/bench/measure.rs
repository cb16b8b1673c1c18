//! The rounds.

use std::time::Duration;

use anyhow::Result;

use super::bed::Bed;
use super::cluster;
use super::cost::Memory;
use super::load::{Outcome, Task, Time};
use super::path;
use super::plan::{Family, Leg, Plan, Workload};
use super::results::Sample;

/// Warm-up: this part of the measurement, and within these.
const WARM_PART: u32 = 10;
const LEAST_WARM: Duration = Duration::from_millis(20);
const MOST_WARM: Duration = Duration::from_millis(500);
/// From opening idle connections until what was needed only for opening them is given back.
const REST: Duration = Duration::from_millis(300);
const PROBLEMS_TOLD: usize = 20;

/// What the rounds found.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) samples: Vec<Sample>,
    pub(crate) problems: Vec<String>,
}

/// Runs all rounds. Each runs every workload on every leg, one leg right after the other.
///
/// # Errors
///
/// When a program or an agent of the lab has gone. What is wrong with a measurement is among the problems.
pub(crate) fn all(bed: &mut Bed, plan: &Plan, length: Duration) -> Result<Measured> {
    let mut measured = Measured::default();
    for round in 0..plan.rounds {
        for family in &plan.families {
            eprintln!("round {} of {}, {}", round + 1, plan.rounds, family.name());
            for workload in plan.workloads.iter().filter(|workload| round == 0 || !workload.once()) {
                for leg in plan.legs(*workload, round) {
                    let place = Place { round, family: *family, workload: *workload, leg };
                    place.measure(bed, length, &mut measured)?;
                }
            }
        }
    }
    Ok(measured)
}

/// One measurement among all.
struct Place {
    round: u32,
    family: Family,
    workload: Workload,
    leg: Leg,
}

impl Place {
    fn measure(&self, bed: &mut Bed, length: Duration, measured: &mut Measured) -> Result<()> {
        let mut sample = self.sample();
        let idle = matches!(self.workload, Workload::Idle { .. });
        if idle && self.leg != Leg::Peer {
            // Memory that was used before and given back would be used again, and count as none.
            bed.restart_agents()?;
        }
        self.warm(bed)?;
        let task = self.task(bed, length)?;
        let counted = bed.counted()?;
        let processor = bed.processor(self.leg)?;
        let before = if idle { bed.memory(self.leg)? } else { Memory::default() };
        let program = bed.start(self.leg, &task)?;
        bed.settle();
        sample.processor = bed.processor(self.leg)? - processor;
        let outcome = program.said.clone();
        sample.take(&outcome);
        if idle {
            std::thread::sleep(REST);
            let after = bed.memory(self.leg)?;
            sample.value = (after.pss as f64 - before.pss as f64) / outcome.connections.max(1) as f64;
            sample.memory = Some(after);
        }
        drop(program);
        let counted = bed.counted()?.since(&counted);
        measured.problem(self, failure(&outcome));
        measured.problem(self, path::wrong(self.leg, &outcome, &counted));
        measured.samples.push(sample);
        Ok(())
    }

    /// Opens the HBONE connection between the two pods, but for the workload that measures that.
    fn warm(&self, bed: &Bed) -> Result<()> {
        if self.workload != Workload::First {
            let to = bed.address(&cluster::server(self.leg), self.family)?;
            drop(bed.start(self.leg, &Task::First { to })?);
            bed.settle();
        }
        Ok(())
    }

    fn task(&self, bed: &Bed, length: Duration) -> Result<Task> {
        let server = match self.workload {
            Workload::First => cluster::cold(self.leg, self.round),
            _ => cluster::server(self.leg),
        };
        let to = bed.address(&server, self.family)?;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let warm = (length / WARM_PART).clamp(LEAST_WARM, MOST_WARM);
        let time = Time { warm: milliseconds(warm), measured: milliseconds(length) };
        Ok(match self.workload {
            Workload::Rr { size, connections } => Task::Rr { to, size, connections, time },
            Workload::Stream { write, flows } => Task::Stream { to, write, flows, time },
            Workload::Connect { parallel } | Workload::Storm { parallel } => {
                Task::Connect { to, parallel, time }
            }
            Workload::Idle { connections } => Task::Idle { to, count: connections },
            Workload::First => Task::First { to },
        })
    }

    fn sample(&self) -> Sample {
        let Self { round, family, workload, leg } = *self;
        Sample::empty(round + 1, family, workload, leg)
    }
}

/// What a client says of its connections, in words.
fn failure(outcome: &Outcome) -> Option<String> {
    let Outcome { failures, connections, error, .. } = outcome;
    (*failures > 0).then(|| format!("{failures} failures with {connections} connections; the last: {error}"))
}

impl Measured {
    fn problem(&mut self, place: &Place, problem: Option<String>) {
        let Some(problem) = problem else { return };
        let Place { round, family, workload, leg } = place;
        let title = workload.kind().title();
        let leg = leg.name("peer");
        let text = format!("round {}, {}, {title} {workload}, {leg}: {problem}", round + 1, family.name());
        if self.problems.len() < PROBLEMS_TOLD {
            eprintln!("WRONG {text}");
        }
        self.problems.push(text);
    }
}
