//! Culvert's commands for people who work on it: `cargo xtask VERB`.
//!
//! One file per verb. `machine` knows what this machine is, `install` and `mounts` get what it lacks, `exec` runs programs
//! quietly; the verbs are [`ebpf`], [`build`], [`check`], [`lint`], [`test`], [`fuzz`], [`bench`] and [`lab`].

mod bench;
mod btf;
mod build;
mod check;
mod ebpf;
mod exec;
mod fuzz;
mod install;
mod lab;
mod lint;
mod machine;
mod mounts;
mod test;
mod toolchain;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use toolchain::Kind;

/// Build, check, test and play with Culvert.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true, after_help = HELP_AFTER)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const HELP_AFTER: &str = "Every verb installs what it needs on Debian as root, and says so first; elsewhere it prints \
                          the commands to run.\nLogs of what ran are in target/xtask/.";

#[derive(Subcommand)]
enum Verb {
    /// Build the BPF object, target/bpf/culvert.o
    BuildEbpf {
        /// Compiler for the BPF target [default: Debian's if it is there, else rustup's nightly]
        #[arg(long, value_enum)]
        toolchain: Option<Kind>,
    },
    /// Build the BPF object, the agent and the lab
    Build {
        /// Optimised, into target/release
        #[arg(long)]
        release: bool,
    },
    /// Print what this machine and kernel offer and lack, with the remedy
    Check {
        /// Install the tools that are missing, and mount bpffs and cgroup v2 where they are not
        #[arg(long)]
        fix: bool,
    },
    /// Check the formatting (rustfmt)
    FmtCheck,
    /// Check formatting, clippy, the BPF crate's warnings, and licences (cargo-deny, when installed)
    Lint,
    /// Run everything: lint, builds, unit, property, ABI and kernel tests, fuzz targets, scenarios
    Test {
        /// The inner loop: no lint, no fuzzing, no scenarios, few cases per property
        #[arg(long)]
        quick: bool,
    },
    /// Feed random input to the parsers and to the policy compiler
    Fuzz {
        /// Only this one [default: every target]
        #[arg(value_parser = fuzz::TARGETS)]
        target: Option<String>,
        /// How long each target runs
        #[arg(long, default_value_t = 60, value_name = "N")]
        seconds: u32,
    },
    /// Measure, in the release build: figures as a table, and as JSON; net | policy | count
    Bench {
        #[command(subcommand)]
        subject: bench::Subject,
    },
    /// Play with a lab: run FILES… | up FILE | down [NAME] | exec … | transfers | list | clean
    #[command(disable_help_flag = true, after_help = "The arguments go to target/debug/culvert-lab.")]
    Lab {
        /// Arguments of culvert-lab; `--help` shows them all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Change policies, pods and agents all the time under load, and judge every connection [--minutes N] [--seed S]
    #[command(disable_help_flag = true)]
    Soak {
        /// Arguments of `culvert-lab soak`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Watch the ambient walkthrough on two nodes, told step by step
    #[command(disable_help_flag = true)]
    Demo {
        /// Arguments of `culvert-lab demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::BuildEbpf { toolchain } => println!("{}", ebpf::build(toolchain)?),
        Verb::Build { release } => build::run(release)?,
        Verb::Check { fix } => return check::run(fix),
        Verb::FmtCheck => lint::fmt()?,
        Verb::Bench { subject } => bench::run(subject)?,
        Verb::Fuzz { target, seconds } => return fuzz::run(target.as_deref(), seconds),
        Verb::Lint => lint::run()?,
        Verb::Test { quick } => return test::run(quick),
        Verb::Lab { args } => lab::lab(&args)?,
        Verb::Soak { args } => lab::soak(&args)?,
        Verb::Demo { args } => lab::demo(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
