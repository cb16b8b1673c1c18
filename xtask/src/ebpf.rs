//! `cargo xtask build-ebpf`: the kernel side, compiled to target/bpf/culvert.o, and beside it log.o: the programs that tell what
//! those do, and others.o: the programs that tests attach in the place of somebody else's.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::exec::{self, Show};
use crate::toolchain::{self, Kind};
use crate::{btf, install, machine};

/// A BPF object that is up to date.
pub(crate) struct Object {
    path: PathBuf,
    bytes: usize,
    changed: bool,
    toolchain: Kind,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.changed { "built" } else { "up to date" };
        let kib = self.bytes.div_ceil(1024);
        write!(f, "{}: {state}, {kib} KiB, with {}", machine::short(&self.path), self.toolchain)
    }
}

/// Builds the BPF object, after installing what that needs. The file is rewritten only when its bytes changed, so
/// that the agent, which embeds it, is not rebuilt for nothing.
pub(crate) fn build(forced: Option<Kind>) -> Result<Object> {
    let toolchain = install::bpf_toolchain(forced)?;
    let what = match toolchain {
        Kind::Debian => "building the BPF object",
        // Nightly moves to a new LLVM before bpf-linker does.
        Kind::Nightly => "building the BPF object with nightly (its LLVM may be newer than bpf-linker's)",
    };
    exec::run("build-ebpf", &mut cargo(toolchain, "build")?, Show::Nothing)?.ok(what)?;
    let folder = machine::root().join("target/bpf");
    for name in ["log", "others"] {
        replace_if_different(&folder.join(name).with_extension("o"), &built(name)?)?;
    }
    let path = folder.join("culvert.o");
    let mut bytes = built("culvert")?;
    btf::name_text_type(&mut bytes)?;
    let changed = replace_if_different(&path, &bytes)?;
    Ok(Object { path, bytes: bytes.len(), changed, toolchain })
}

fn built(name: &str) -> Result<Vec<u8>> {
    let path = toolchain::build_dir().join(toolchain::TARGET).join("release").join(name);
    fs::read(&path).with_context(|| format!("cargo built no {}", path.display()))
}

/// Checks the BPF crate, warnings being errors.
pub(crate) fn lint() -> Result<()> {
    let toolchain = install::bpf_toolchain(None)?;
    let mut command = cargo(toolchain, "check")?;
    // Added to the target's flags in .cargo/config.toml, not in their place.
    command.args(["--config", &format!("target.{}.rustflags=[\"-Dwarnings\"]", toolchain::TARGET)]);
    exec::run("lint-ebpf", &mut command, Show::Nothing)?.ok("checking the BPF crate")?;
    Ok(())
}

fn cargo(toolchain: Kind, verb: &str) -> Result<Command> {
    let linker = install::bpf_linker().context("bpf-linker has just been here, and is gone")?;
    let mut command = toolchain.cargo(verb);
    command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    Ok(command)
}

fn replace_if_different(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let folder = path.parent().context("the object has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // A build of the agent that runs at the same time sees the old object or the new one, never a part.
    let half = path.with_extension(format!("o.{}", std::process::id()));
    fs::write(&half, bytes).with_context(|| format!("cannot write {}", half.display()))?;
    fs::rename(&half, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_with_the_same_bytes_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("culvert-xtask-{}", std::process::id()));
        let path = folder.join("bpf/culvert.o");
        assert!(replace_if_different(&path, b"one").unwrap());
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!replace_if_different(&path, b"one").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        assert!(replace_if_different(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::remove_dir_all(&folder).unwrap();
    }
}
