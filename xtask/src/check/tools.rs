//! Programs that building and the lab call.

use anyhow::Result;

use super::Finding;
use crate::toolchain::Kind;
use crate::{install, machine};

/// Installs the compiler, the linker and what the lab needs, where missing.
pub(super) fn install() -> Result<()> {
    install::lab()?;
    install::bpf_toolchain(None)?;
    Ok(())
}

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![compiler(), linker()];
    findings.extend(install::LAB.iter().map(|need| match machine::program(need.name) {
        Some(path) => Finding::ok(need.name, format!("{} ({})", path.display(), need.why)),
        None => Finding::missing(need.name, need.why, need.remedy()),
    }));
    findings
}

fn compiler() -> Finding {
    let what = "Rust for BPF";
    match Kind::ready() {
        Some(kind) => Finding::ok(what, kind.to_string()),
        None => Finding::missing(
            what,
            "no compiler with a core library for BPF",
            "apt-get install rustc-web libstd-rust-web-dev-bpf, or rustup toolchain install nightly --component rust-src",
        ),
    }
}

fn linker() -> Finding {
    match install::bpf_linker() {
        Some(path) => Finding::ok("bpf-linker", path.display().to_string()),
        None => Finding::missing("bpf-linker", "links BPF programs", install::bpf_linker_remedy()),
    }
}
