//! What the folder held at the last look, and what has changed since.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file::{self, Content};
use crate::control::{Ignored, Object, ObjectRef, Problem, Report, Update};

pub(super) struct Folder {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    objects: HashMap<ObjectRef, Object>,
    report: Report,
}

struct File {
    stamp: Stamp,
    /// The last content without problems.
    good: Option<(Stamp, Content)>,
    problems: Vec<Problem>,
}

/// Tells one version of a file from another, and the younger from the older.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    seconds: i64,
    nanoseconds: i64,
    size: u64,
    inode: u64,
}

impl Folder {
    pub(super) fn new(dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { dir, files: BTreeMap::new(), objects: HashMap::new(), report: Report::default() }
    }

    /// Reads what has changed and says what that changes.
    pub(super) fn scan(&mut self) -> Vec<Update> {
        let trouble = match list(&self.dir) {
            Ok(found) => {
                self.files.retain(|path, _| found.contains_key(path));
                found.into_iter().for_each(|(path, stamp)| self.visit(path, stamp));
                Vec::new()
            }
            // Nothing is known, so nothing is taken back.
            Err(error) => vec![Problem {
                file: self.dir.display().to_string(),
                line: 0,
                object: String::new(),
                field: String::new(),
                message: format!("cannot be listed: {error}"),
                remedy: "what was read before stays in force; make the folder readable".to_owned(),
            }],
        };
        self.updates(trouble)
    }

    fn visit(&mut self, path: PathBuf, stamp: Stamp) {
        let old = self.files.remove(&path);
        let good = match old {
            Some(old) if old.stamp == stamp => {
                self.files.insert(path, old);
                return;
            }
            Some(old) => old.good,
            None => None,
        };
        let file = match file::read(&path) {
            Ok(content) => File { stamp, good: Some((stamp, content)), problems: Vec::new() },
            Err(mut problems) => {
                let remedy = match good {
                    Some(_) => "the file's last good content stays in force; correct the file",
                    None => "nothing of this file is in force; correct it",
                };
                problems.iter_mut().for_each(|p| remedy.clone_into(&mut p.remedy));
                File { stamp, good, problems }
            }
        };
        self.files.insert(path, file);
    }

    fn updates(&mut self, mut problems: Vec<Problem>) -> Vec<Update> {
        let (objects, doubles) = self.merge();
        problems.extend(self.files.values().flat_map(|f| f.problems.iter().cloned()));
        problems.extend(doubles);
        let mut updates: Vec<Update> = Vec::new();
        let gone = self.objects.keys().filter(|key| !objects.contains_key(key));
        let mut gone: Vec<_> = gone.cloned().collect();
        gone.sort_unstable();
        updates.extend(gone.into_iter().map(Update::Remove));
        let changed =
            objects.iter().filter(|(key, object)| !self.objects.get(key).is_some_and(|old| old.same(object)));
        let mut changed: Vec<_> = changed.collect();
        changed.sort_unstable_by_key(|(key, _)| *key);
        updates.extend(changed.into_iter().map(|(_, object)| Update::Upsert(object.clone())));
        self.objects = objects;
        let report = Report { problems, ignored: self.ignored() };
        if report != self.report {
            log(&self.report, &report);
            self.report = report.clone();
            updates.push(Update::Report(report));
        }
        updates
    }

    /// Every object, from the file that counts; and the doubles.
    fn merge(&self) -> (HashMap<ObjectRef, Object>, Vec<Problem>) {
        let mut chosen: HashMap<ObjectRef, (Stamp, &Path, &Object)> = HashMap::new();
        let mut doubles = Vec::new();
        for (path, file) in &self.files {
            let Some((stamp, content)) = &file.good else { continue };
            for object in &content.objects {
                let key = object.key();
                let new = (*stamp, path.as_path(), object);
                let Some(old) = chosen.get(&key).copied() else {
                    chosen.insert(key, new);
                    continue;
                };
                let younger = (stamp.seconds, stamp.nanoseconds) > (old.0.seconds, old.0.nanoseconds);
                let (wins, loses) = if younger { (new, old) } else { (old, new) };
                doubles.push(double(&key, wins.1, loses.1));
                chosen.insert(key, wins);
            }
        }
        (chosen.into_iter().map(|(key, (_, _, object))| (key, object.clone())).collect(), doubles)
    }

    fn ignored(&self) -> Vec<Ignored> {
        let mut kinds: BTreeMap<&str, Ignored> = BTreeMap::new();
        for (path, file) in &self.files {
            for (kind, count) in file.good.iter().flat_map(|(_, content)| &content.ignored) {
                let first = || Ignored { kind: kind.clone(), count: 0, file: path.display().to_string() };
                kinds.entry(kind).or_insert_with(first).count += count;
            }
        }
        kinds.into_values().collect()
    }
}

fn double(key: &ObjectRef, wins: &Path, loses: &Path) -> Problem {
    Problem {
        file: loses.display().to_string(),
        line: 0,
        object: key.to_string(),
        field: String::new(),
        message: format!("is also in {}", wins.display()),
        remedy: format!("the one in {} counts; remove one of them", wins.display()),
    }
}

/// Each problem is logged when it appears, not at every look.
fn log(old: &Report, new: &Report) {
    for problem in new.problems.iter().filter(|p| !old.problems.contains(p)) {
        tracing::warn!("{problem}");
    }
    for ignored in new.ignored.iter().filter(|i| !old.ignored.iter().any(|o| o.kind == i.kind)) {
        tracing::info!("{}: {} is not a kind that Culvert uses: ignored", ignored.file, ignored.kind);
    }
}

fn list(dir: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        // It may have gone since; then it is not there.
        let Some(meta) = super::is_manifest(&path).then(|| std::fs::metadata(&path).ok()).flatten() else {
            continue;
        };
        if meta.is_file() {
            let stamp = Stamp {
                seconds: meta.mtime(),
                nanoseconds: meta.mtime_nsec(),
                size: meta.size(),
                inode: meta.ino(),
            };
            found.insert(path, stamp);
        }
    }
    Ok(found)
}
