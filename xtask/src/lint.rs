//! `cargo xtask lint` and `fmt-check`: what must hold before a commit.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::exec::{self, Show};
use crate::{ebpf, install, machine};

/// A check; what it says, if anything, is why it did not run.
type Check = fn() -> Result<Option<&'static str>>;

const CHECKS: [(&str, Check); 4] = [
    ("formatting", || fmt().map(|()| None)),
    ("clippy", || clippy().map(|()| None)),
    ("BPF crate", || ebpf::lint().map(|()| None)),
    ("licences and bans", deny),
];

/// Every check, so that one run shows all that is wrong.
pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let start = Instant::now();
        match check() {
            Ok(None) => println!("  {name}: ok, {}", exec::since(start)),
            Ok(Some(skipped)) => println!("  {name}: skipped, {skipped}"),
            Err(error) => {
                println!("  {name}: FAILED\n{error:#}");
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
    command.args(["--all", "--check", "--", "--color", "never"]);
    exec::run("fmt", &mut command, Show::Nothing)?.ok("cargo fmt (run `cargo fmt --all`)")?;
    Ok(())
}

/// Every crate for this machine, the fuzz targets too.
fn clippy() -> Result<()> {
    install::cpp_compiler()?;
    let mut command = exec::cargo("clippy");
    command.args(["--workspace", "--exclude", "culvert-ebpf", "--locked", "--all-targets", "--target-dir"]);
    command.arg(machine::target_dir());
    command.args(["--", "-Dwarnings"]);
    exec::run("clippy", &mut command, Show::Nothing)?.ok("cargo clippy")?;
    Ok(())
}

fn deny() -> Result<Option<&'static str>> {
    if machine::program("cargo-deny").is_none() {
        return Ok(Some("cargo-deny is not installed (cargo install cargo-deny --locked)"));
    }
    let mut command = exec::cargo("deny");
    command.args(["check", "licenses", "bans", "sources"]);
    exec::run("deny", &mut command, Show::Nothing)?.ok("cargo deny")?;
    Ok(None)
}
