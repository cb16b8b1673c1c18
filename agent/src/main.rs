//! The `culvert` binary.

use std::process::ExitCode;

use clap::Parser;
use culvert::cli::{Cli, run};
use culvert::profile::FollowedAllocator;

/// So that `culvert profile heap` can look at a running agent.
#[global_allocator]
static ALLOCATOR: FollowedAllocator = FollowedAllocator;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("culvert: {error:#}");
            ExitCode::FAILURE
        }
    }
}
