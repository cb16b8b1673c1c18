//! `culvert-lab bench`: what a connection costs inside a node and through tunnels, held against the same machine's raw network.
//!
//! All legs run side by side in one lab, in alternating rounds: a machine that is slow for a while is slow for all of them, so
//! the ratio to the raw leg of the same round says more than any figure alone.
//!
//! * [`args`]: options. [`plan`]: workloads and legs. [`cluster`]: pods and objects. [`bed`]: the lab; [`peer`]: another proxy.
//! * [`load`]: the programs in the pods. [`measure`]: the rounds. [`cost`]: processor time, memory. [`path`]: which way it went.
//! * [`results`], [`stats`], [`machine`]: what is kept. [`table`], [`compare`], [`svg`]: for people.

mod args;
mod bed;
mod cluster;
mod compare;
mod cost;
pub(crate) mod load;
mod machine;
mod measure;
mod path;
mod peer;
mod plan;
mod results;
mod stats;
mod svg;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

pub use args::BenchArgs;
use bed::Bed;
use machine::Machine;
use measure::Measured;
use plan::{Leg, Plan};
use results::{FORMAT, Results};

/// Runs it; false when connections failed or did not take the path that they should. It is never too slow.
///
/// # Errors
///
/// When the lab cannot be built, or one of its programs has gone.
pub fn run(args: &BenchArgs, culvert: PathBuf) -> Result<bool> {
    let before = args.compare.as_deref().map(Results::read).transpose()?;
    let plan = args.plan();
    ensure!(!plan.workloads.is_empty(), "--only names nothing that --quick has");
    let machine = Machine::here(&culvert);
    println!("{}", machine.line());
    let mut bed = Bed::build(args, &plan, culvert)?;
    let measured = measured(&mut bed, args, &plan, machine);
    let logs = bed.lab.agent_logs(10);
    bed.stop()?;
    let results = measured?;
    print!("{}", table::text(&results));
    if let Some(before) = &before {
        print!("{}", compare::text(before, &results));
    }
    if let Some(path) = &args.json {
        results.write(path)?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::draw(&results)).with_context(|| format!("writing {}", path.display()))?;
    }
    if !results.problems.is_empty() {
        print!("{logs}");
    }
    Ok(results.problems.is_empty())
}

fn measured(bed: &mut Bed, args: &BenchArgs, plan: &Plan, machine: Machine) -> Result<Results> {
    let begin = bed.memory(Leg::Tunnel)?;
    let Measured { samples, problems } = measure::all(bed, plan, args.length())?;
    Ok(Results {
        format: FORMAT,
        machine,
        rounds: plan.rounds,
        duration_ms: u64::try_from(args.length().as_millis()).unwrap_or(u64::MAX),
        pods: args.pods,
        policies: args.policies,
        peer: args.peer.clone(),
        samples,
        agents: [begin, bed.memory(Leg::Tunnel)?],
        problems,
    })
}
