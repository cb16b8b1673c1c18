//! Where a pod lives: from its UID to its cgroup, from there to a process, from there to its network namespace.
//!
//! The kubelet names a pod's cgroup after its UID with either driver: `…/pod<uid>` (cgroupfs) or
//! `…-pod<uid with _>.slice` (systemd). The oldest process in it is the sandbox's pause process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How deep below the root pod cgroups are looked for: `kubepods/<qos>/pod<uid>` is 3, `kubelet/kubepods/…` is 4.
const DEPTH: usize = 5;

/// A pod's network namespace, held open.
#[derive(Debug)]
pub struct PodNetns {
    /// The namespace.
    pub file: File,
    /// Its inode number, as `ls -i /proc/PID/ns/net` shows it.
    pub inode: u64,
}

/// Finds the network namespace of the pod with this UID below `root`; `None` when no process of it runs (yet).
///
/// # Errors
///
/// When the cgroup tree cannot be read at all.
pub fn find(root: &Path, uid: &str) -> io::Result<Option<PodNetns>> {
    let Some(cgroup) = find_cgroup(root, uid, DEPTH)? else { return Ok(None) };
    let host = fs::metadata("/proc/self/ns/net")?.ino();
    let mut pids = Vec::new();
    collect_pids(&cgroup, &mut pids);
    pids.sort_by_key(|&pid| start_time(pid));
    for pid in pids {
        // A process may end between two looks: the next one speaks for the pod as well.
        let Ok(file) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
        let inode = file.metadata()?.ino();
        if inode != host {
            return Ok(Some(PodNetns { file, inode }));
        }
    }
    Ok(None)
}

fn find_cgroup(dir: &Path, uid: &str, depth: usize) -> io::Result<Option<PathBuf>> {
    let plain = format!("pod{uid}");
    let systemd = format!("pod{}.slice", uid.replace('-', "_"));
    let mut level = vec![dir.to_owned()];
    for _ in 0..depth {
        let mut next = Vec::new();
        for dir in level {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name == plain || name == systemd || name.ends_with(&format!("-{systemd}")) {
                    return Ok(Some(entry.path()));
                }
                next.push(entry.path());
            }
        }
        level = next;
    }
    Ok(None)
}

fn collect_pids(cgroup: &Path, pids: &mut Vec<u32>) {
    if let Ok(text) = fs::read_to_string(cgroup.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    let Ok(entries) = fs::read_dir(cgroup) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        collect_pids(&entry.path(), pids);
    }
}

/// Clock ticks since boot at which a process started (proc(5): field 22 of stat), late when it is gone.
fn start_time(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(20)?.parse().ok()))
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cgroup_drivers_are_understood() {
        let root = tempfile::tempdir().unwrap();
        let uid = "0b1c-22";
        let cgroupfs = root.path().join("kubepods/burstable/pod0b1c-22");
        fs::create_dir_all(&cgroupfs).unwrap();
        assert_eq!(find_cgroup(root.path(), uid, DEPTH).unwrap(), Some(cgroupfs));
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("kubepods.slice/kubepods-besteffort-pod0b1c_22.slice");
        fs::create_dir_all(&slice).unwrap();
        assert_eq!(find_cgroup(root.path(), uid, DEPTH).unwrap(), Some(slice));
        assert_eq!(find_cgroup(root.path(), "other", DEPTH).unwrap(), None);
    }

    #[test]
    fn a_cgroup_without_processes_is_not_ready() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("podx")).unwrap();
        assert!(find(root.path(), "x").unwrap().is_none());
    }
}
