//! `culvert uninstall`: nothing of an instance stays on the node.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::{app, bpf, claim};

/// `culvert uninstall`.
#[derive(Args, Debug)]
pub(super) struct UninstallArgs {
    /// The instance to remove
    #[arg(long, env = "CULVERT_INSTANCE", default_value = "default")]
    instance: String,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// Removes the instance's programs, maps and state. The agent must have stopped; its listeners went with it.
pub(super) fn run(args: &UninstallArgs) -> Result<()> {
    let pins = app::pins(&args.instance)?;
    let state = app::state_dir(&args.instance);
    let found: Vec<&PathBuf> = [&pins, &state].into_iter().filter(|path| path.exists()).collect();
    let filters = bpf::count_filters(&args.instance).context("looking for filters on interfaces")?;
    if found.is_empty() && filters == 0 {
        println!("nothing of instance {} is on this node", args.instance);
        return Ok(());
    }
    // While it runs, its programs must not vanish under it.
    let _lock = if state.exists() { Some(claim::instance(&state)?) } else { None };
    let mut out = io::stdout().lock();
    if filters > 0 && args.dry_run {
        writeln!(out, "would remove the source guard's filters: on {filters} interfaces")?;
    } else if filters > 0 {
        // Before the maps: a filter without its maps' entries drops everything.
        let removed = bpf::remove_filters(&args.instance).context("removing filters from interfaces")?;
        writeln!(out, "removed the source guard's filters: on {removed} interfaces")?;
    }
    for path in found {
        let what = if *path == pins { "programs, links and maps" } else { "state" };
        if args.dry_run {
            writeln!(out, "would remove {what}: {}", path.display())?;
            continue;
        }
        remove(path, *path == pins).with_context(|| format!("removing {}", path.display()))?;
        writeln!(out, "removed {what}: {}", path.display())?;
    }
    if !args.dry_run {
        writeln!(
            out,
            "Connections are no longer decided by Culvert. Keys of the embedded CA, where you keep them, are left alone."
        )?;
    }
    Ok(())
}

fn remove(path: &Path, pins: bool) -> io::Result<()> {
    if pins { bpf::remove_pins(path) } else { std::fs::remove_dir_all(path) }
}
