//! Enrolled pods that change under the agent: whose processes end, or start anew in another network namespace.

use super::super::discovery::{Cgroups, PodNetns};
use super::{Enrolled, PodState, Pods};

/// What a look at the enrolled pods has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A pod lives in another network namespace now: its sandbox was made anew. Time to release and prepare.
    pub moved: bool,
    /// What there is to tell of a pod is different now.
    pub changed: bool,
}

impl Pods {
    /// Looks whether enrolled pods still live where they were found. One system call a pod, unless something is different.
    ///
    /// A pod without processes stays enrolled: nothing leaves its namespace, and when a container starts in it again it must
    /// not find the mesh gone. Only another namespace ends the enrolment of the old one.
    pub fn look_after(&mut self) -> Seen {
        let mut seen = Seen::default();
        let lost = |pod: &&mut Enrolled| !pod.moved && !pod.home.is_lived_in();
        let mut lost = self.enrolled.values_mut().filter(lost).peekable();
        if lost.peek().is_none() {
            return seen;
        }
        let cgroups = match Cgroups::read(&self.cgroup_root) {
            Ok(cgroups) => cgroups,
            Err(error) => {
                tracing::warn!(%error, "cannot look after enrolled pods: reading cgroups");
                return seen;
            }
        };
        for pod in lost {
            match cgroups.find(&pod.wanted.uid, Some(pod.home.inode)) {
                Ok(found) => pod.settle(found, &mut seen),
                Err(error) => tracing::warn!(pod = pod.wanted.name, %error, "cannot look after it"),
            }
        }
        seen
    }

    /// All pods and their state.
    pub fn states(&self) -> Vec<PodState> {
        let enrolled = self.enrolled.iter().filter(|(uid, _)| !self.pending.contains_key(*uid));
        let enrolled = enrolled.map(|(_, pod)| PodState {
            name: pod.wanted.name.clone(),
            state: "enrolled",
            redirection: "enabled",
            reason: pod.remark(),
            netns_cookie: pod.cookie,
            older_connections: self.olders.of(pod.cookie).to_vec(),
        });
        let pending = self.pending.values().map(|(name, reason)| PodState {
            name: name.clone(),
            state: "pending",
            redirection: "pending",
            reason: reason.clone(),
            netns_cookie: 0,
            older_connections: Vec::new(),
        });
        let mut states: Vec<PodState> = enrolled.chain(pending).collect();
        states.sort_by(|a, b| a.name.cmp(&b.name));
        states
    }
}

impl Enrolled {
    fn settle(&mut self, found: Option<PodNetns>, seen: &mut Seen) {
        let home = found.map(|found| found.home);
        match home {
            Some(home) if home.inode != self.home.inode => {
                tracing::info!(pod = self.wanted.name, "has another network namespace now");
                self.moved = true;
                seen.moved = true;
            }
            _ => {
                let pid = home.and_then(|home| home.pid);
                seen.changed |= pid.is_some() != self.home.pid.is_some();
                self.home.pid = pid;
            }
        }
    }

    /// What of it is missing; or empty.
    fn remark(&self) -> String {
        if self.home.pid.is_none() {
            return "no process of it runs; its network namespace stays in the mesh".to_owned();
        }
        self.unguarded.clone()
    }
}
