//! Tells the agent where the BPF objects are: `CULVERT_BPF_OBJECT` and `CULVERT_BPF_LOG_OBJECT`, for `include_bytes_aligned!`.
//!
//! They come from `cargo xtask build-ebpf`. Without them the agent embeds empty files, so that `cargo check`
//! and editors work on a machine that has no BPF toolchain.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for (object, variable) in [("culvert.o", "CULVERT_BPF_OBJECT"), ("log.o", "CULVERT_BPF_LOG_OBJECT")] {
        println!("cargo::rustc-env={variable}={}", embedded(object).display());
    }
}

fn embedded(name: &str) -> PathBuf {
    let folder = from_env("CARGO_MANIFEST_DIR").join("../target/bpf");
    let object = folder.join(name);
    if object.exists() {
        println!("cargo::rerun-if-changed={}", object.display());
        return object;
    }
    // Watching a file that is not there would rebuild the agent every time; its folder changes when it comes.
    if fs::create_dir_all(&folder).is_ok() {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    empty(&from_env("OUT_DIR"))
}

fn empty(folder: &Path) -> PathBuf {
    let path = folder.join("no-culvert.o");
    if let Err(error) = fs::write(&path, []) {
        println!("cargo::error=cannot write {}: {error}", path.display());
    }
    path
}

fn from_env(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_default()
}
