//! Removing a lab by its id alone, so that it works after a crash too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{ROOT, cgroup_mount};
use crate::net;

/// Removes everything that carries the id.
///
/// # Errors
///
/// The first thing that could not be removed; the rest is tried all the same.
pub fn remove_lab(id: &str) -> Result<()> {
    let mut problems = Vec::new();
    if let Ok(mount) = cgroup_mount() {
        let cgroup = mount.join(format!("culvert-lab-{id}"));
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        problems.extend(remove_cgroup(&cgroup).err());
    }
    for name in names_in("/run/netns", &format!("clab-{id}-")) {
        problems.extend(net::remove_netns(&name).err());
    }
    for dir in ["/sys/fs/bpf/culvert", "/run/culvert"] {
        for name in names_in(dir, &format!("lab-{id}-")) {
            problems.extend(remove_tree(&Path::new(dir).join(name)).err());
        }
    }
    problems.extend(remove_tree(&Path::new(ROOT).join(id)).err());
    match problems.into_iter().next() {
        Some(first) => Err(first),
        None => Ok(()),
    }
}

/// What of a lab is still there: namespaces, cgroups, pins, folders.
pub fn leftovers(id: &str) -> Vec<PathBuf> {
    let mut left = Vec::new();
    let dirs = [
        ("/run/netns", format!("clab-{id}-")),
        ("/sys/fs/bpf/culvert", format!("lab-{id}-")),
        ("/run/culvert", format!("lab-{id}-")),
    ];
    for (dir, prefix) in dirs {
        left.extend(names_in(dir, &prefix).into_iter().map(|name| Path::new(dir).join(name)));
    }
    if let Ok(mount) = cgroup_mount() {
        left.push(mount.join(format!("culvert-lab-{id}")));
    }
    left.push(Path::new(ROOT).join(id));
    left.retain(|path| path.exists());
    left
}

/// A folder without a process that is younger than this belongs to a lab in the making.
const YOUNG: Duration = Duration::from_secs(30);

/// Removes labs whose process is gone. Returns their ids.
pub fn remove_dead_labs() -> Vec<String> {
    let mut removed = Vec::new();
    for id in names_in(ROOT, "") {
        let dir = Path::new(ROOT).join(&id);
        let alive = match fs::read_to_string(dir.join("pid")) {
            Ok(pid) if !pid.trim().is_empty() => Path::new("/proc").join(pid.trim()).exists(),
            // A lab that is just being made has not written its process yet.
            _ => fs::metadata(&dir)
                .and_then(|m| m.modified())
                .is_ok_and(|t| t.elapsed().is_ok_and(|age| age < YOUNG)),
        };
        if !alive && remove_lab(&id).is_ok() {
            removed.push(id);
        }
    }
    removed
}

/// Ids of all labs.
pub(crate) fn all_labs() -> Vec<String> {
    names_in(ROOT, "")
}

fn names_in(dir: &str, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(prefix)).collect()
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a cgroup and those below it, waiting for killed processes to be gone.
pub(super) fn remove_cgroup(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("removing cgroup {}", dir.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
