//! What AUDIT and dry-run policies say beside a verdict, and how often they said it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use culvert_common::MAX_NOTES;
use serde::Serialize;

/// Everything that is to be noted of one connection. Policies by `namespace/name`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct Note {
    /// The AUDIT policies that match.
    pub audit: Vec<String>,
    /// The dry-run policies that match.
    pub dry_run: Vec<String>,
    /// What the verdict would be were the dry-run policies enforced, when it would be another one.
    pub would: Option<Would>,
}

/// The verdict of another world.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Would {
    /// Allowed, else refused.
    pub allow: bool,
    /// The dry-run policy that makes the difference, or the one that decides.
    pub policy: String,
}

impl Note {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.audit.is_empty() && self.dry_run.is_empty() && self.would.is_none()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.audit.is_empty() {
            parts.push(format!("audit: {}", self.audit.join(", ")));
        }
        if !self.dry_run.is_empty() {
            parts.push(format!("dry run: {} matches", self.dry_run.join(", ")));
        }
        if let Some(would) = &self.would {
            let verdict = if would.allow { "allowed" } else { "refused" };
            parts.push(format!("dry run: would be {verdict} [{}]", would.policy));
        }
        f.write_str(&parts.join("; "))
    }
}

/// How often a policy's word was noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// It is an AUDIT policy and matched.
    pub audited: u64,
    /// It is a dry run and matched.
    pub dry_run_matched: u64,
    /// Enforced, it would have refused what was allowed.
    pub would_refuse: u64,
    /// Enforced, it would have allowed what was refused.
    pub would_allow: u64,
}

/// Numbers for notes. A number belongs to its content for as long as the process lives.
#[derive(Default)]
pub struct Notes(Mutex<Known>);

#[derive(Default)]
struct Known {
    ids: HashMap<Note, u32>,
    notes: BTreeMap<u32, (Note, u64)>,
    last: u32,
}

impl Notes {
    /// The number of `note`: 0 for an empty one, and when there are too many to number.
    pub(super) fn id(&self, note: Note) -> u32 {
        if note.is_empty() {
            return 0;
        }
        let mut known = self.lock();
        if let Some(id) = known.ids.get(&note) {
            return *id;
        }
        if known.ids.len() >= MAX_NOTES {
            return 0;
        }
        known.last += 1;
        let id = known.last;
        known.ids.insert(note.clone(), id);
        known.notes.insert(id, (note, 0));
        id
    }

    /// Numbers up to `highest` are an earlier agent's: they may still be in pinned maps.
    pub(super) fn set_floor(&self, highest: u32) {
        let mut known = self.lock();
        known.last = known.last.max(highest);
    }

    /// Every number, ascending.
    pub fn ids(&self) -> Vec<u32> {
        self.lock().notes.keys().copied().collect()
    }

    /// The note behind a number, in words.
    pub fn text(&self, id: u32) -> Option<String> {
        self.lock().notes.get(&id).map(|(note, _)| note.to_string())
    }

    /// A connection that the agent decided itself.
    pub fn count(&self, id: u32) {
        if id != 0
            && let Some((_, times)) = self.lock().notes.get_mut(&id)
        {
            *times += 1;
        }
    }

    /// The counts by policy; `kernel` says how often the programs met a number.
    pub fn tallies(&self, kernel: impl Fn(u32) -> u64) -> BTreeMap<String, Tally> {
        let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
        for (id, (note, own)) in &self.lock().notes {
            let times = own + kernel(*id);
            for policy in &note.audit {
                tallies.entry(policy.clone()).or_default().audited += times;
            }
            for policy in &note.dry_run {
                tallies.entry(policy.clone()).or_default().dry_run_matched += times;
            }
            if let Some(would) = &note.would {
                let tally = tallies.entry(would.policy.clone()).or_default();
                let field = if would.allow { &mut tally.would_allow } else { &mut tally.would_refuse };
                *field += times;
            }
        }
        tallies
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
