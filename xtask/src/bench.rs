//! `cargo xtask bench`: measurements. They print figures and never fail for being slow.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::exec::{self, become_command};
use crate::{build, ebpf, install, mounts};

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Subject {
    /// Policy at scale: full start, one change until it is in force, map memory, a decision in the kernel
    Policy {
        /// Small sizes only
        #[arg(long)]
        quick: bool,
        /// Write the figures to this file, too
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Direct and tunnelled connections against the raw network, side by side in one lab: rates, latencies, processor, memory
    #[command(disable_help_flag = true)]
    Net {
        /// Arguments of `culvert-lab bench`; `--help` shows them all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Instructions of pure parts, under callgrind: the same on a machine that has other work
    Count(CountArgs),
}

/// `cargo xtask bench count`.
#[derive(Args)]
pub(crate) struct CountArgs {
    /// Only these parts [default: all]
    parts: Vec<String>,
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show what changed since an earlier --json
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

pub(crate) fn run(subject: Subject) -> Result<()> {
    match subject {
        Subject::Policy { quick, json } => policy(quick, json),
        Subject::Net { args } => net(&args),
        Subject::Count(args) => count(args),
    }
}

fn policy(quick: bool, json: Option<PathBuf>) -> Result<()> {
    ebpf::build(None)?;
    mounts::ensure()?;
    let mut command = cargo_bench("policy");
    if quick {
        command.arg("--quick");
    }
    file(&mut command, "--json", json)?;
    Err(become_command(&mut command))
}

/// The lab's own programs are the clients and servers, so it is the release build of both.
fn net(args: &[OsString]) -> Result<()> {
    if !args.iter().any(|arg| arg == "--help" || arg == "-h") {
        install::lab()?;
    }
    ebpf::build(None)?;
    build::programs(true)?;
    let mut command = Command::new(build::binary("culvert-lab", true));
    command.arg("bench").args(args);
    exec::forget_cargo(&mut command);
    Err(become_command(&mut command))
}

fn count(args: CountArgs) -> Result<()> {
    if let Err(error) = install::valgrind() {
        println!("skipped: instructions are counted by valgrind. {error:#}");
        return Ok(());
    }
    ebpf::build(None)?;
    let mut command = cargo_bench("count");
    file(&mut command, "--json", args.json)?;
    file(&mut command, "--compare", args.compare)?;
    command.args(args.parts);
    Err(become_command(&mut command))
}

fn cargo_bench(name: &str) -> Command {
    let mut command = exec::cargo("bench");
    command.args(["--quiet", "--locked", "--package", "culvert", "--bench", name, "--"]);
    command
}

/// Cargo runs a bench in its package's folder.
fn file(command: &mut Command, option: &str, path: Option<PathBuf>) -> Result<()> {
    if let Some(path) = path {
        command.arg(option).arg(std::path::absolute(path)?);
    }
    Ok(())
}
