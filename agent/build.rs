//! Tells the agent where the BPF object is: `CULVERT_BPF_OBJECT`, for `include_bytes_aligned!`.
//!
//! The object comes from `cargo xtask build-ebpf`. Without it the agent embeds an empty file, so that `cargo check`
//! and editors work on a machine that has no BPF toolchain.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let folder = from_env("CARGO_MANIFEST_DIR").join("../target/bpf");
    let object = folder.join("culvert.o");
    println!("cargo::rerun-if-changed=build.rs");
    let embedded = if object.exists() {
        println!("cargo::rerun-if-changed={}", object.display());
        object
    } else {
        // Watching a file that is not there would rebuild the agent every time; its folder changes when it comes.
        if fs::create_dir_all(&folder).is_ok() {
            println!("cargo::rerun-if-changed={}", folder.display());
        }
        empty(&from_env("OUT_DIR"))
    };
    println!("cargo::rustc-env=CULVERT_BPF_OBJECT={}", embedded.display());
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
