//! `cargo xtask bench`: measurements. They print figures and never fail for being slow.

use anyhow::Result;
use clap::Subcommand;

use crate::exec::{self, become_command};
use crate::{ebpf, mounts};

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
        json: Option<std::path::PathBuf>,
    },
}

pub(crate) fn run(subject: Subject) -> Result<()> {
    ebpf::build(None)?;
    mounts::ensure()?;
    let Subject::Policy { quick, json } = subject;
    let mut command = exec::cargo("bench");
    command.args(["--quiet", "--locked", "--package", "culvert", "--bench", "policy", "--"]);
    if quick {
        command.arg("--quick");
    }
    if let Some(path) = json {
        command.arg("--json").arg(std::path::absolute(path)?);
    }
    Err(become_command(&mut command))
}
