//! Which compiler builds the BPF object.
//!
//! BPF is a tier 3 target: rustup ships no `core` for it. Debian's rustc-web does (libstd-rust-web-dev-bpf), and a
//! nightly with rust-src can build it. The linker, bpf-linker, is the same for both.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::{exec, machine};

/// Debian's compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Where Debian puts `core` for the BPF target.
const DEBIAN_BPF_LIBRARIES: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// The target of the BPF object: little-endian, as all machines that Culvert runs on.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// A compiler for the BPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's rustc-web with its prebuilt core library
    Debian,
    /// rustup's nightly with rust-src (-Z build-std=core)
    Nightly,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian => write!(f, "Debian's rustc-web"),
            Self::Nightly => write!(f, "rustup's nightly (build-std)"),
        }
    }
}

impl Kind {
    /// Can this compiler build for BPF on this machine, now?
    pub(crate) fn is_ready(self) -> bool {
        match self {
            Self::Debian => {
                Path::new(DEBIAN_RUSTC).exists()
                    && machine::names_in(DEBIAN_BPF_LIBRARIES).iter().any(|name| name.starts_with("libcore-"))
            }
            Self::Nightly => nightly_source().is_some_and(|source| source.exists()),
        }
    }

    /// The compiler that is ready, Debian's before nightly's.
    pub(crate) fn ready() -> Option<Self> {
        [Self::Debian, Self::Nightly].into_iter().find(|kind| kind.is_ready())
    }

    /// A cargo command that builds for BPF with this compiler.
    pub(crate) fn cargo(self, verb: &str) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut command = exec::cargo(verb);
                // The libraries are prebuilt, but the target is unstable all the same.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", verb, "-Z", "build-std=core"]);
                command.current_dir(machine::root()).env("CARGO_TERM_COLOR", "never");
                command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
                exec::forget_cargo(&mut command);
                command
            }
        };
        // These would take the place of the target's own flags, or put a wrapper around another compiler.
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
            command.env_remove(variable);
        }
        command.args([
            "--release",
            "--locked",
            "--package",
            "culvert-ebpf",
            "--target",
            TARGET,
            "--target-dir",
        ]);
        command.arg(build_dir());
        command
    }
}

/// Its own target folder: another RUSTC in the common one would have cargo rebuild everything at each turn.
pub(crate) fn build_dir() -> PathBuf {
    machine::root().join("target/bpf-build")
}

fn nightly_source() -> Option<PathBuf> {
    let sysroot = exec::ask("rustup", ["run", "nightly", "rustc", "--print", "sysroot"]).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs"))
}
