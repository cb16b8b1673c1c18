//! The walkthrough.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

/// `culvert-lab demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// The culvert binary [default: beside this program]
    #[arg(long, env = "CULVERT_BIN")]
    pub culvert: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
///
/// When a step does not do what it tells.
pub fn run(_args: &DemoArgs, _culvert: PathBuf) -> Result<()> {
    anyhow::bail!("soon")
}
