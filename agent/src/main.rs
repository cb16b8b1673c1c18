//! The `culvert` binary.

use std::process::ExitCode;

use clap::Parser;
use culvert::cli::{Cli, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("culvert: {error:#}");
            ExitCode::FAILURE
        }
    }
}
