//! `cargo xtask fuzz`: builds the fuzz targets with coverage counters, on stable Rust, and runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::exec::{self, Show};
use crate::{install, machine};

/// The fuzz targets, each a program of the crate `culvert-fuzz`.
pub(crate) const TARGETS: [&str; 3] = ["manifests", "policy", "requests"];

/// What `cargo fuzz` passes to rustc too, without its sanitizer, which needs a nightly; the code under test is safe Rust.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];
/// Longer inputs find the same, later.
const LONGEST_INPUT: &str = "-max_len=8192";
/// An input that takes longer is a finding.
const LONGEST_RUN: &str = "-timeout=10";
/// An input that makes the process larger than this many MiB is a finding.
const MOST_MEMORY: &str = "-rss_limit_mb=2048";

/// How a run of one target ended.
pub(crate) enum Ended {
    /// Nothing was found; what was reached, in libFuzzer's words.
    Clean(String),
    /// Something was found; the text says what, where the input is and how to run it again.
    Found(String),
}

/// Runs `target`, or all of them, for `seconds` each.
pub(crate) fn run(target: Option<&str>, seconds: u32) -> Result<ExitCode> {
    let targets: Vec<&str> = TARGETS.into_iter().filter(|name| target.is_none_or(|t| t == *name)).collect();
    let start = Instant::now();
    build()?;
    println!("built in {}", exec::since(start));
    let mut found = false;
    for name in targets {
        println!("{name}: {seconds} s");
        match fuzz(name, seconds)? {
            Ended::Clean(reached) => println!("  nothing found; {reached}"),
            Ended::Found(text) => {
                found = true;
                println!("{text}");
            }
        }
    }
    Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Builds every target.
pub(crate) fn build() -> Result<()> {
    install::cpp_compiler()?;
    let triple = triple()?;
    let mut command = exec::cargo("build");
    command
        // With a target named, the flags leave build scripts and macros alone.
        .args(["--locked", "--package", "culvert-fuzz", "--bins", "--target", &triple, "--target-dir"])
        .arg(target_dir())
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    exec::run("build-fuzz", &mut command, Show::Nothing)?.ok("building the fuzz targets")?;
    Ok(())
}

/// Runs one target that was built. It begins with the corpus in the repository and with what earlier runs found.
pub(crate) fn fuzz(name: &str, seconds: u32) -> Result<Ended> {
    let work = machine::root().join("target/fuzz-work").join(name);
    let (corpus, crashes) = (work.join("corpus"), work.join("crashes"));
    for folder in [&corpus, &crashes] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let program = program(name)?;
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .args([LONGEST_INPUT, LONGEST_RUN, MOST_MEMORY, "-print_final_stats=1"])
        .args([&corpus, &machine::root().join("tests/fuzz/corpus").join(name)])
        .current_dir(machine::root());
    let words = machine::root().join("tests/fuzz").join(name).with_extension("dict");
    if words.is_file() {
        command.arg(format!("-dict={}", words.display()));
    }
    exec::forget_cargo(&mut command);
    let finished = exec::run(&format!("fuzz-{name}"), &mut command, Show::Nothing)?;
    if finished.success {
        return Ok(Ended::Clean(reached(&finished.output)));
    }
    Ok(Ended::Found(format!("{}\n{}", finished.tail(), again(&program, &finished.output, &finished.log))))
}

/// Where the input is, and how to run it again.
fn again(program: &Path, output: &str, log: &Path) -> String {
    let log = machine::short(log);
    match output.lines().find_map(|line| line.split("Test unit written to ").nth(1)) {
        Some(input) => {
            let input = machine::short(Path::new(input.trim()));
            format!("FOUND: {input}\n  run it again: {} {input}\n  all of it: {log}", machine::short(program))
        }
        None => format!("FAILED without an input; all of it: {log}"),
    }
}

/// The end of libFuzzer's last line of figures: `cov: 1234 ft: 5678 …`, and the number of runs.
fn reached(output: &str) -> String {
    let coverage =
        |line: &str| line.split_whitespace().skip_while(|w| *w != "cov:").nth(1).map(str::to_owned);
    let counts: Vec<String> = output.lines().filter_map(coverage).collect();
    let runs = output.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    match (counts.first(), counts.last()) {
        (Some(first), Some(last)) => {
            format!("{} inputs, coverage {first} to {last}", runs.unwrap_or("0").trim())
        }
        _ => "it told no coverage".to_owned(),
    }
}

/// A target directory of its own: other flags in the one that everything else uses would rebuild it each time.
fn target_dir() -> PathBuf {
    machine::target_dir().join("fuzz")
}

fn program(name: &str) -> Result<PathBuf> {
    Ok(target_dir().join(triple()?).join("debug").join(name))
}

/// What rustc builds for when nobody says.
fn triple() -> Result<String> {
    let version = exec::ask("rustc", ["-vV"])?;
    match version.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(triple) => Ok(triple.to_owned()),
        None => bail!("rustc -vV does not tell its host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_is_told_from_the_first_count_to_the_last() {
        let output = "#2\tINITED cov: 30 ft: 31 corp: 1/1b exec/s: 0\n#9\tNEW    cov: 45 ft: 50 corp: 2/9b\n\
                      Done 900 runs in 1 second(s)\nstat::number_of_executed_units: 900\n";
        assert_eq!(reached(output), "900 inputs, coverage 30 to 45");
        assert_eq!(reached(""), "it told no coverage");
    }

    #[test]
    fn a_finding_is_told_with_its_input() {
        let output = "panicked\nartifact_prefix='x/'; Test unit written to x/crash-12\nBase64: AA==\n";
        let text = again(Path::new("bin/policy"), output, Path::new("log"));
        assert!(text.contains("run it again: bin/policy x/crash-12"), "{text}");
        assert!(again(Path::new("p"), "killed", Path::new("log")).contains("FAILED"));
    }
}
