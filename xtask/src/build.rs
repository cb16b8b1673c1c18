//! `cargo xtask build`: the BPF object, the agent that embeds it, and the lab.

use std::path::PathBuf;

use anyhow::Result;

use crate::exec::{self, Show};
use crate::{ebpf, machine};

/// Builds all three and prints where they are.
pub(crate) fn run(release: bool) -> Result<()> {
    println!("{}", ebpf::build(None)?);
    programs(release)?;
    for name in ["culvert", "culvert-lab"] {
        let path = binary(name, release);
        if path.exists() {
            println!("{}", machine::short(&path));
        }
    }
    Ok(())
}

/// Builds the agent and the lab. The BPF object must be there: the agent embeds it.
pub(crate) fn programs(release: bool) -> Result<()> {
    let mut command = exec::cargo("build");
    command.args(["--locked", "--package", "culvert", "--package", "culvert-lab", "--target-dir"]);
    command.arg(machine::target_dir());
    if release {
        command.arg("--release");
    }
    exec::run("build", &mut command, Show::Nothing)?.ok("building the agent and the lab")?;
    Ok(())
}

/// Builds only the lab's own program.
pub(crate) fn lab() -> Result<()> {
    let mut command = exec::cargo("build");
    command.args(["--locked", "--package", "culvert-lab", "--target-dir"]).arg(machine::target_dir());
    exec::run("build-lab", &mut command, Show::Nothing)?.ok("building the lab")?;
    Ok(())
}

/// Where cargo puts a program.
pub(crate) fn binary(name: &str, release: bool) -> PathBuf {
    machine::target_dir().join(if release { "release" } else { "debug" }).join(name)
}
