//! The `culvert-lab` binary.

use std::process::ExitCode;

use clap::Parser;
use culvert_lab::cli::{Cli, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("culvert-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
