//! `cargo xtask lab`, `cargo xtask demo` and `cargo xtask soak`: build what is needed, then become culvert-lab.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{build, ebpf, exec, install};

/// Verbs of culvert-lab that start agents; the others only need culvert-lab itself.
const STARTS_AGENTS: [&str; 6] = ["bench", "demo", "run", "soak", "transfers", "up"];

/// `culvert-lab ARGS`.
pub(crate) fn lab(args: &[OsString]) -> Result<()> {
    let asks_help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    let starts_agents = args.first().is_some_and(|verb| STARTS_AGENTS.iter().any(|name| verb == name));
    if starts_agents && !asks_help {
        install::lab()?;
        ebpf::build(None)?;
        build::programs(false)?;
    } else {
        build::lab()?;
    }
    let mut command = Command::new(build::binary("culvert-lab", false));
    command.args(args);
    exec::forget_cargo(&mut command);
    Err(exec::become_command(&mut command))
}

/// `culvert-lab demo ARGS`.
pub(crate) fn demo(args: &[OsString]) -> Result<()> {
    verb("demo", args)
}

/// `culvert-lab soak ARGS`.
pub(crate) fn soak(args: &[OsString]) -> Result<()> {
    verb("soak", args)
}

fn verb(name: &str, args: &[OsString]) -> Result<()> {
    let args: Vec<OsString> = [OsString::from(name)].into_iter().chain(args.iter().cloned()).collect();
    lab(&args)
}
