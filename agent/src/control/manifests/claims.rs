//! Which file counts for each object: the younger, of equals the one whose path is first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::stamp::Stamp;
use crate::control::{Object, ObjectRef, Problem, Update};

/// Every object of every file. What a change costs depends on the files that changed, not on those that did not.
#[derive(Default)]
pub(super) struct Claims {
    by_object: HashMap<ObjectRef, Vec<Claim>>,
    /// Objects that are there more than once.
    doubled: BTreeSet<ObjectRef>,
    /// What counted before the changes since [`Claims::updates`].
    touched: BTreeMap<ObjectRef, Option<Object>>,
}

struct Claim {
    path: Arc<Path>,
    stamp: Stamp,
    object: Object,
}

impl Claims {
    /// A file holds `objects` now. What it held before is to be removed first.
    pub(super) fn add(&mut self, path: &Path, stamp: Stamp, objects: &[Object]) {
        let path: Arc<Path> = path.into();
        for object in objects {
            let key = object.key();
            self.touch(&key);
            let claims = self.by_object.entry(key.clone()).or_default();
            // Equal paths stay in the order of the file.
            let at = claims.partition_point(|claim| claim.path <= path);
            claims.insert(at, Claim { path: path.clone(), stamp, object: object.clone() });
            if claims.len() > 1 {
                self.doubled.insert(key);
            }
        }
    }

    /// A file that held `objects` does so no longer.
    pub(super) fn remove(&mut self, path: &Path, objects: &[Object]) {
        for object in objects {
            let key = object.key();
            self.touch(&key);
            let Some(claims) = self.by_object.get_mut(&key) else { continue };
            claims.retain(|claim| *claim.path != *path);
            if claims.len() < 2 {
                self.doubled.remove(&key);
            }
            if claims.is_empty() {
                self.by_object.remove(&key);
            }
        }
    }

    /// What has changed since the last call: what is gone first, each in the order of the objects' names.
    pub(super) fn updates(&mut self) -> Vec<Update> {
        let (mut gone, mut changed) = (Vec::new(), Vec::new());
        for (key, before) in std::mem::take(&mut self.touched) {
            match (before, self.by_object.get(&key).and_then(|claims| winner(claims))) {
                (Some(_), None) => gone.push(Update::Remove(key)),
                (None, None) => {}
                (Some(before), Some(now)) if before.same(&now.object) => {}
                (_, Some(now)) => changed.push(Update::Upsert(now.object.clone())),
            }
        }
        gone.append(&mut changed);
        gone
    }

    /// The objects that are there more than once, where they do not count.
    pub(super) fn doubles(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for key in &self.doubled {
            let Some(claims) = self.by_object.get(key) else { continue };
            let Some(wins) = winner(claims) else { continue };
            let losers = claims.iter().filter(|claim| !std::ptr::eq(*claim, wins));
            problems.extend(losers.map(|loses| double(key, &wins.path, &loses.path)));
        }
        problems
    }

    fn touch(&mut self, key: &ObjectRef) {
        if !self.touched.contains_key(key) {
            let before = self.by_object.get(key).and_then(|claims| winner(claims));
            self.touched.insert(key.clone(), before.map(|claim| claim.object.clone()));
        }
    }
}

fn winner(claims: &[Claim]) -> Option<&Claim> {
    claims.iter().reduce(|best, claim| if claim.stamp.is_younger_than(&best.stamp) { claim } else { best })
}

fn double(key: &ObjectRef, wins: &Path, loses: &Path) -> Problem {
    let (message, remedy) = if wins == loses {
        ("is in this file twice".to_owned(), "the first one counts; remove one of them".to_owned())
    } else {
        let wins = wins.display();
        (format!("is also in {wins}"), format!("the one in {wins} counts; remove one of them"))
    };
    let (file, field) = (loses.display().to_string(), "metadata.name".to_owned());
    Problem { file, line: 0, object: key.to_string(), field, message, remedy }
}
