//! `culvert check`: whether everything on this node is as it should be, and what to do where it is not.
//!
//! * [`machine`]: privileges, mounts and the kernel: also without an agent.
//! * [`hooks`]: what an instance has pinned: programs, and whether they are attached. Also without an agent.
//! * [`agent`]: what a running agent says of itself, or what `culvert dump` has kept.

mod agent;
mod finding;
mod hooks;
mod machine;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::style::Style;
use super::{client, dump, show};
use crate::app;
use finding::{Finding, Level};

/// `culvert check`.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// The agent's instance, when several run on this machine
    #[arg(long, env = "CULVERT_INSTANCE")]
    instance: Option<String>,
    /// Look only at what `culvert dump` wrote (`-` is standard input), not at this machine
    #[arg(short, long, value_name = "DUMP", conflicts_with = "machine")]
    file: Option<PathBuf>,
    /// Look only at what an agent needs of this machine, before there is one
    #[arg(long)]
    machine: bool,
    /// The level from which a finding makes the exit status 1
    #[arg(long, value_enum, default_value_t = Threshold::Error)]
    failure_threshold: Threshold,
    /// Leave out what is as it should be
    #[arg(short, long)]
    quiet: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = CheckOutput::Table)]
    output: CheckOutput,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Threshold {
    Warning,
    Error,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum CheckOutput {
    /// A line each, for people.
    Table,
    /// JSON.
    Json,
}

/// Prints the findings.
pub(super) async fn run(args: &CheckArgs) -> Result<ExitCode> {
    let findings = match &args.file {
        Some(path) => agent::of_dump(&dump::read_file(path)?),
        None if args.machine => machine::findings(),
        None => all(args.instance.as_deref()).await,
    };
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    let shown: Vec<&Finding> =
        findings.iter().filter(|finding| !args.quiet || finding.level > Level::Ok).collect();
    match args.output {
        CheckOutput::Json => show::print(&(serde_json::to_string_pretty(&shown)? + "\n"))?,
        CheckOutput::Table => show::print(&finding::table(&shown, &findings, Style::of_stdout()))?,
    }
    let limit = match args.failure_threshold {
        Threshold::Warning => Level::Warning,
        Threshold::Error => Level::Error,
    };
    Ok(if worst >= limit { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn all(instance: Option<&str>) -> Vec<Finding> {
    let mut findings = machine::findings();
    let answer = ask(instance).await;
    let name = match (&answer, instance) {
        (Ok((name, _)), _) => Some(name.as_str()),
        (_, named) => named,
    };
    findings.extend(hooks::findings(name));
    match &answer {
        Ok((_, dump)) => findings.extend(agent::of_dump(dump)),
        Err(error) => findings.push(Finding::error(
            "agent",
            format!("{error:#}"),
"start it: the DaemonSet of deploy/, or `culvert agent`; what is attached goes on deciding meanwhile",
        )),
    }
    findings
}

/// The instance and what its agent knows.
async fn ask(instance: Option<&str>) -> Result<(String, Value)> {
    let socket = client::socket(instance)?;
    let name = socket.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    app::pins(&name)?;
    let text = client::get(&socket, "/dump").await?;
    Ok((name, serde_json::from_str(&text).context("the agent's dump")?))
}
