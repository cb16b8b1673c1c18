//! Who else has programs on the hooks that Culvert uses, in which order they run, and what that means.
//!
//! A cgroup's own programs run before those of the cgroups above it, and of one cgroup those that were attached first (unless
//! attached with BPF_F_PREORDER, BPF_F_BEFORE and the like: the kernel's own list says how it is). Every program runs, whatever
//! another one answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::link::{AttachType, programs_at};
use super::load::{Kernel, lock};
use super::owners;

/// Hooks of cgroups, in bpftool's words.
const CGROUP_HOOKS: [(AttachType, &str); 14] = [
    (AttachType::Connect4, "connect4"),
    (AttachType::Connect6, "connect6"),
    (AttachType::SockOps, "sock_ops"),
    (AttachType::GetPeerName4, "getpeername4"),
    (AttachType::GetPeerName6, "getpeername6"),
    (AttachType::SockCreate, "sock_create"),
    (AttachType::Bind4, "bind4"),
    (AttachType::Bind6, "bind6"),
    (AttachType::SendMsg4, "sendmsg4"),
    (AttachType::SendMsg6, "sendmsg6"),
    (AttachType::RecvMsg4, "recvmsg4"),
    (AttachType::RecvMsg6, "recvmsg6"),
    (AttachType::PacketIngress, "ingress"),
    (AttachType::PacketEgress, "egress"),
];
/// cgroups below the agent's that are looked at: a look takes a few microseconds a hook.
const MOST_CGROUPS: usize = 2000;

/// Programs of somebody else at a hook that Culvert uses, one entry for all places with the same program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// The hook, in bpftool's words; `netfilter` for what is no program.
    pub hook: &'static str,
    /// Name of the program, as far as the kernel keeps it (15 characters).
    pub program: String,
    /// Whose it is, by its name.
    pub owner: &'static str,
    /// `before` or `after` Culvert's program; empty where Culvert has none.
    pub runs: &'static str,
    /// `conflict` or `harmless`.
    pub level: &'static str,
    /// What it means for Culvert.
    pub meaning: &'static str,
    /// What to do, or empty.
    pub remedy: &'static str,
    /// Ids of the programs, for `bpftool prog show id`.
    pub ids: BTreeSet<u32>,
    /// cgroups, pods or interfaces.
    pub places: Vec<String>,
}

impl Neighbour {
    /// What is known about a program, or about something else, by its name and the kind of its hook.
    pub(crate) fn new(hook: &'static str, kind: &str, program: &str, runs: &'static str) -> Self {
        let owner = owners::owner(program, kind);
        Self {
            hook,
            program: program.to_owned(),
            owner: owner.name,
            runs,
            level: if owner.conflict { "conflict" } else { "harmless" },
            meaning: owner.meaning,
            remedy: owner.remedy,
            ids: BTreeSet::new(),
            places: Vec::new(),
        }
    }

    /// Puts it into the log: a conflict as a warning.
    pub(crate) fn tell(&self) {
        let Self { hook, program, owner, runs, meaning, remedy, .. } = self;
        let place = self.places.first().map_or("", String::as_str);
        let places = self.places.len();
        if self.level == "conflict" {
            tracing::warn!(hook, program, owner, runs, place, places, remedy, "neighbour: {meaning}");
        } else {
            tracing::info!(hook, program, owner, runs, place, places, "neighbour: {meaning}");
        }
    }
}

/// A program of somebody else at one place.
struct Found {
    hook: &'static str,
    id: u32,
    runs: &'static str,
    place: String,
}

impl Kernel {
    /// Everybody else on the hooks of this node, of its pods and of their interfaces. What cannot be asked is left out.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let own = self.own_programs();
        let mut found = self.at_cgroup(&own);
        found.extend(self.below_cgroup(&own));
        if let Ok(netns) = File::open("/proc/thread-self/ns/net") {
            found.extend(at_netns(&own, &netns, "the node"));
        }
        let pods: Vec<u64> = lock(&self.pods).keys().copied().collect();
        for cookie in pods {
            found.extend(self.at_pod(&own, cookie));
        }
        for (cookie, index) in self.guarded_interfaces() {
            found.extend(self.at_interface(&own, cookie, index));
        }
        gather(found)
    }

    fn own_programs(&self) -> BTreeSet<u32> {
        lock(&self.programs).programs().filter_map(|(_, program)| Some(program.info().ok()?.id())).collect()
    }

    /// With the programs of the cgroups above.
    fn at_cgroup(&self, own: &BTreeSet<u32>) -> Vec<Found> {
        let Ok(cgroup) = File::open(&self.cgroup) else { return Vec::new() };
        let place = self.cgroup.display().to_string();
        let ask = |(kind, hook): (AttachType, &'static str)| {
            let ids = programs_at(cgroup.as_raw_fd() as u32, kind, true).unwrap_or_default();
            foreign(hook, &ids, own, &place)
        };
        CGROUP_HOOKS.into_iter().flat_map(ask).collect()
    }

    /// What is attached to cgroups below runs first there.
    fn below_cgroup(&self, own: &BTreeSet<u32>) -> Vec<Found> {
        let mut found = Vec::new();
        for path in below(&self.cgroup) {
            let Ok(cgroup) = File::open(&path) else { continue };
            for (kind, hook) in CGROUP_HOOKS {
                let ids = programs_at(cgroup.as_raw_fd() as u32, kind, false).unwrap_or_default();
                let place = path.display().to_string();
                let ids = ids.into_iter().filter(|id| !own.contains(id));
                found.extend(ids.map(|id| Found { hook, id, runs: "before", place: place.clone() }));
            }
        }
        found
    }

    fn at_pod(&self, own: &BTreeSet<u32>, cookie: u64) -> Vec<Found> {
        let place = self.place_of(cookie);
        lock(&self.pods).get(&cookie).map(|pod| at_netns(own, &pod.netns, &place)).unwrap_or_default()
    }

    fn at_interface(&self, own: &BTreeSet<u32>, cookie: u64, index: u32) -> Vec<Found> {
        let programs = self.filters_at(index);
        let ours = programs.iter().position(|(_, id)| own.contains(id));
        let place = format!("interface {index} of {}", self.place_of(cookie));
        let others = programs.iter().enumerate().filter(|(_, (_, id))| !own.contains(id));
        others
            .map(|(n, (hook, id))| Found { hook, id: *id, runs: order(n, ours), place: place.clone() })
            .collect()
    }

    fn place_of(&self, cookie: u64) -> String {
        let Ok(pod) = lock(&self.maps.pods).get(&cookie, 0) else {
            return format!("the pod with netns cookie {cookie}"); // it joins at this moment
        };
        let name: Vec<u8> = pod.name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
        format!("pod {}", String::from_utf8_lossy(&name))
    }
}

fn at_netns(own: &BTreeSet<u32>, netns: &impl AsFd, place: &str) -> Vec<Found> {
    let fd = netns.as_fd().as_raw_fd() as u32;
    let ids = programs_at(fd, AttachType::SkLookup, false).unwrap_or_default();
    foreign("sk_lookup", &ids, own, place)
}

/// Those of `ids`, in the order in which they run, that are not `own`.
fn foreign(hook: &'static str, ids: &[u32], own: &BTreeSet<u32>, place: &str) -> Vec<Found> {
    let ours = ids.iter().position(|id| own.contains(id));
    let others = ids.iter().enumerate().filter(|(_, id)| !own.contains(id));
    others.map(|(n, id)| Found { hook, id: *id, runs: order(n, ours), place: place.to_owned() }).collect()
}

fn order(position: usize, ours: Option<usize>) -> &'static str {
    match ours {
        Some(ours) if position < ours => "before",
        Some(_) => "after",
        None => "",
    }
}

/// The cgroups below, as many as are looked at.
fn below(root: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = children(root);
    let mut next = 0;
    while let Some(path) = paths.get(next).filter(|_| paths.len() < MOST_CGROUPS) {
        let more = children(path);
        paths.extend(more);
        next += 1;
    }
    paths.truncate(MOST_CGROUPS);
    paths
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// One entry for the same program at the same hook, conflicts first.
fn gather(found: Vec<Found>) -> Vec<Neighbour> {
    if found.is_empty() {
        return Vec::new();
    }
    let names: HashMap<u32, String> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())))
        .collect();
    let mut gathered: BTreeMap<(&str, String, &str), Neighbour> = BTreeMap::new();
    for Found { hook, id, runs, place } in found {
        let Some(kind) = owners::hook_kind(hook) else { continue };
        let name = names.get(&id).cloned().unwrap_or_default();
        let entry = gathered
            .entry((hook, name.clone(), runs))
            .or_insert_with(|| Neighbour::new(hook, kind, &name, runs));
        entry.ids.insert(id);
        entry.places.push(place);
    }
    let mut neighbours: Vec<Neighbour> = gathered.into_values().collect();
    neighbours.sort_by_key(|neighbour| neighbour.level != "conflict");
    neighbours
}
