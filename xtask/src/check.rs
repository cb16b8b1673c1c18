//! `cargo xtask check`: what this machine and kernel offer and lack, a line each.

// The agent's own tables: what it needs of the kernel, and whose programs are whose.
#[path = "../../agent/src/bpf/features.rs"]
mod features;
mod kernel;
mod neighbours;
#[path = "../../agent/src/bpf/owners.rs"]
mod owners;
mod system;
mod tools;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    /// There.
    Ok,
    /// Culvert works, with less.
    Warn,
    /// Culvert or its lab does not work.
    Missing,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Missing => "missing",
        })
    }
}

/// One line.
struct Finding {
    level: Level,
    what: &'static str,
    detail: String,
    remedy: String,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, detail: detail.into(), remedy: String::new() }
    }

    fn warn(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, what, detail: detail.into(), remedy: remedy.into() }
    }

    fn missing(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Missing, what, detail: detail.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<40} {}", self.level, self.what, self.detail)?;
        if !self.remedy.is_empty() {
            write!(f, "; remedy: {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Prints the findings; fails when something that is required is missing.
pub(crate) fn run(fix: bool) -> Result<ExitCode> {
    if fix {
        tools::install()?;
    }
    let mut missing = 0;
    for finding in system::findings()
        .into_iter()
        .chain(kernel::findings())
        .chain(tools::findings())
        .chain(neighbours::findings())
    {
        println!("{finding}");
        missing += u32::from(finding.level == Level::Missing);
    }
    if missing == 0 {
        println!("\nAll that Culvert and its lab require is here.");
        return Ok(ExitCode::SUCCESS);
    }
    let hint = if fix { "" } else { "; `cargo xtask check --fix` installs tools and mounts file systems" };
    println!("\n{missing} required missing{hint}.");
    Ok(ExitCode::FAILURE)
}
