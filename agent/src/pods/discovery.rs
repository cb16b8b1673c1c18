//! Where a pod lives: from its UID to its cgroup, from there to a process, from there to its network namespace.
//!
//! The kubelet names a pod's cgroup after its UID with either driver: `…/pod<uid>` (cgroupfs) or
//! `…-pod<uid with _>.slice` (systemd). The oldest process in it is the sandbox's pause process.

use std::collections::HashMap;
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
    /// Where it was found.
    pub home: Home,
}

/// A network namespace by a process that lives in it: the cheapest way to see that it is still the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Inode number of the namespace, as `ls -i /proc/PID/ns/net` shows it; not given again while somebody holds the namespace.
    pub inode: u64,
    /// The process; `None`: none is left.
    pub pid: Option<u32>,
}

impl Home {
    /// Whether the process still runs, in this namespace. One system call.
    pub fn is_lived_in(&self) -> bool {
        self.pid.is_some_and(|pid| netns_inode(pid).is_ok_and(|inode| inode == self.inode))
    }
}

/// The cgroups of pods, as they were at one look: reading the tree once serves all pods.
#[derive(Debug)]
pub struct Cgroups {
    /// By UID, with `_` for `-`.
    pods: HashMap<String, PathBuf>,
    /// Inode number of the node's own namespace.
    host: u64,
}

impl Cgroups {
    /// Looks for pods below `root`.
    ///
    /// # Errors
    ///
    /// When the agent's own namespace cannot be told.
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut pods = HashMap::new();
        let mut level = vec![root.to_owned()];
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for dir in level {
                let Ok(entries) = fs::read_dir(&dir) else { continue };
                for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                    if let Some(uid) = pod_uid(&entry.file_name().to_string_lossy()) {
                        pods.entry(uid).or_insert_with(|| entry.path());
                    }
                    next.push(entry.path());
                }
            }
            level = next;
        }
        Ok(Self { pods, host: fs::metadata("/proc/self/ns/net")?.ino() })
    }

    /// The network namespace of the pod with this UID; `None` when no process of it runs (yet). It is the one with inode `known`
    /// as long as a process of the pod lives there, else that of the oldest process.
    ///
    /// # Errors
    ///
    /// When a namespace that was opened cannot be told from others.
    pub fn find(&self, uid: &str, known: Option<u64>) -> io::Result<Option<PodNetns>> {
        let Some(cgroup) = self.pods.get(&uid.replace('-', "_")) else { return Ok(None) };
        let mut pids = Vec::new();
        collect_pids(cgroup, &mut pids);
        pids.sort_by_cached_key(|&pid| {
            let stays = known.is_some() && netns_inode(pid).ok() == known;
            (!stays, start_time(pid))
        });
        for pid in pids {
            // A process may end between two looks: the next one speaks for the pod as well.
            let Ok(file) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
            let inode = file.metadata()?.ino();
            if inode != self.host {
                return Ok(Some(PodNetns { file, home: Home { inode, pid: Some(pid) } }));
            }
        }
        Ok(None)
    }
}

/// The UID that a pod's cgroup is named after, with `_` for `-`.
fn pod_uid(name: &str) -> Option<String> {
    let own = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once('-').map_or(slice, |(_, own)| own),
        None => name,
    };
    own.strip_prefix("pod").filter(|uid| !uid.is_empty()).map(|uid| uid.replace('-', "_"))
}

fn netns_inode(pid: u32) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/net"))?.ino())
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
        let cgroupfs = root.path().join("kubepods/burstable/pod0b1c-22");
        let slice = root.path().join("kubepods.slice/kubepods-besteffort-pod77_1.slice");
        fs::create_dir_all(cgroupfs.join("container")).unwrap();
        fs::create_dir_all(slice.join("cri-containerd-1.scope")).unwrap();
        let found = Cgroups::read(root.path()).unwrap().pods;
        let expected = [("0b1c_22".to_owned(), cgroupfs), ("77_1".to_owned(), slice)];
        assert_eq!(found, HashMap::from(expected));
    }

    #[test]
    fn a_cgroup_without_processes_is_not_ready() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("podx")).unwrap();
        assert!(Cgroups::read(root.path()).unwrap().find("x", None).unwrap().is_none());
    }

    #[test]
    fn the_known_namespace_comes_before_an_older_process() {
        use std::sync::mpsc::channel;
        let (say, heard) = channel();
        let (_keep, end) = channel::<()>();
        // A thread has an entry in /proc of its own: it stands for a younger process elsewhere.
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            say.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            let _ = end.recv();
        });
        let (older, younger) = (std::process::id(), heard.recv().unwrap());
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("podx")).unwrap();
        fs::write(root.path().join("podx/cgroup.procs"), format!("{younger}\n{older}\n")).unwrap();
        let cgroups = Cgroups { host: 0, ..Cgroups::read(root.path()).unwrap() };
        let found = |known| cgroups.find("x", known).unwrap().unwrap().home;
        assert_eq!(found(None).pid, Some(older));
        let home = found(Some(netns_inode(younger).unwrap()));
        assert_eq!(home.pid, Some(younger));
        assert_eq!(found(Some(0)).pid, Some(older), "nobody lives there");
        assert!(home.is_lived_in());
        assert!(!Home { pid: Some(older), ..home }.is_lived_in());
        assert!(!Home { pid: None, ..home }.is_lived_in());
    }
}
