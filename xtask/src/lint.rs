//! `cargo xtask lint` and `fmt-check`: what must hold before a commit.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::exec::{self, Show};
use crate::{ebpf, machine};

/// Every check, so that one run shows all that is wrong.
pub(crate) fn run() -> Result<()> {
    let checks: [(&str, fn() -> Result<()>); 4] =
        [("fmt", fmt), ("clippy", clippy), ("BPF crate", ebpf::lint), ("licences and bans", deny)];
    let mut failed = Vec::new();
    for (name, check) in checks {
        let start = Instant::now();
        match check() {
            Ok(()) => println!("{name}: ok, {}", exec::since(start)),
            Err(error) => {
                println!("{name}: FAILED\n{error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("lint failed: {}", failed.join(", "))
}

/// rustfmt, over every crate.
pub(crate) fn fmt() -> Result<()> {
    let mut command = exec::cargo("fmt");
    command.args(["--all", "--check"]);
    exec::run("fmt", &mut command, Show::Nothing)?.ok("cargo fmt (run `cargo fmt --all`)")?;
    Ok(())
}

fn clippy() -> Result<()> {
    let mut command = exec::cargo("clippy");
    command.args(["--locked", "--all-targets", "--target-dir"]).arg(machine::target_dir());
    command.args(["--", "-Dwarnings"]);
    exec::run("clippy", &mut command, Show::Nothing)?.ok("cargo clippy")?;
    Ok(())
}

fn deny() -> Result<()> {
    if machine::program("cargo-deny").is_none() {
        println!(
            "licences and bans: skipped, cargo-deny is not installed (cargo install cargo-deny --locked)"
        );
        return Ok(());
    }
    let mut command = exec::cargo("deny");
    command.args(["check", "licenses", "bans", "sources"]);
    exec::run("deny", &mut command, Show::Nothing)?.ok("cargo deny")?;
    Ok(())
}
