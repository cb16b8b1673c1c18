//! What this machine is: paths, programs, privileges.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where Debian keeps administrators' programs; a user's PATH often lacks them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The workspace's top folder.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo builds for this machine. The BPF object is always under `target/` itself: the agent's build script
/// has no other way to know where to look.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where xtask builds tools of its own, so that it never replaces what the user installed.
pub(crate) fn tools_dir() -> PathBuf {
    root().join("target/tools")
}

/// Where the output of what xtask runs is kept; made when missing.
pub(crate) fn log_dir() -> Result<PathBuf> {
    let folder = root().join("target/xtask");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// `path` as a person at the workspace's top would type it.
pub(crate) fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The program called `name`: our own tools first, then PATH, then the folders that PATH often lacks.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    [tools_dir().join("bin")]
        .into_iter()
        .chain(env::split_paths(&path))
        .chain(SBIN.iter().map(PathBuf::from))
        .chain(home.map(|home| home.join("bin")))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Is this Debian, or a system that says it is like it?
pub(crate) fn is_debian() -> bool {
    Path::new("/usr/bin/apt-get").exists() && Path::new("/etc/debian_version").exists()
}

/// Is Debian's package `name` installed?
pub(crate) fn has_package(name: &str) -> bool {
    // Packages that exist once per architecture have it in their file's name: `libzstd-dev:amd64.list`.
    names_in("/var/lib/dpkg/info").iter().any(|file| {
        let rest = file.strip_prefix(name).and_then(|rest| rest.strip_suffix(".list"));
        rest.is_some_and(|architecture| architecture.is_empty() || architecture.starts_with(':'))
    })
}

/// Does this process run as root?
pub(crate) fn is_root() -> bool {
    // Uid: real, effective, saved, filesystem.
    status_field("Uid:")
        .and_then(|uids| uids.split_whitespace().nth(1).map(|uid| uid == "0"))
        .unwrap_or(false)
}

/// Does this process have the capability with this number (capabilities(7))?
pub(crate) fn has_capability(number: u32) -> bool {
    status_field("CapEff:")
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> number & 1 == 1)
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

/// The running kernel's release, for example `6.1.0-18-amd64`.
pub(crate) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Where a file system of this type is mounted: the first mount, in the kernel's order.
pub(crate) fn mount_point(kind: &str) -> Option<PathBuf> {
    mounts().into_iter().find(|(mounted, _)| mounted == kind).map(|(_, point)| point)
}

/// Is a file system of this type mounted right there?
pub(crate) fn is_mounted(kind: &str, point: &Path) -> bool {
    mounts().iter().any(|(mounted, at)| mounted == kind && at == point)
}

/// Type and place of each mount.
fn mounts() -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        Some((fields.next()?.to_owned(), PathBuf::from(point)))
    };
    text.lines().filter_map(fields).collect()
}

/// The names in a folder; none when it cannot be read.
pub(crate) fn names_in(folder: impl AsRef<OsStr>) -> Vec<String> {
    let entries = fs::read_dir(Path::new(folder.as_ref())).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
