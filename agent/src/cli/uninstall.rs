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
    if found.is_empty() {
        println!("nothing of instance {} is on this node", args.instance);
        return Ok(());
    }
    // While it runs, its programs must not vanish under it.
    let _lock = if state.exists() { Some(claim::instance(&state)?) } else { None };
    let mut out = io::stdout().lock();
    for path in found {
        let what = if *path == pins { "programs, links, filters and maps" } else { "state" };
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
    if pins {
        bpf::remove_filters(path).and_then(|_| bpf::remove_pins(path))
    } else {
        std::fs::remove_dir_all(path)
    }
}
