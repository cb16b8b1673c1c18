//! What the folder held at the last look, and what has changed since.

use std::collections::{BTreeMap, HashSet};
use std::fs::FileType;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::claims::Claims;
use super::file::{self, Content};
use super::stamp::Stamp;
use crate::control::{Ignored, Problem, Report, Update};

pub(super) struct Folder {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    claims: Claims,
    report: Report,
}

struct File {
    /// `None`: there is no file to read.
    stamp: Option<Stamp>,
    /// The last content without problems.
    good: Option<(Stamp, Content)>,
    problems: Vec<Problem>,
}

/// What a name leads to: a version of a file, or why there is none.
type Found = Result<Stamp, Problem>;

impl Folder {
    pub(super) fn new(dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { dir, files: BTreeMap::new(), claims: Claims::default(), report: Report::default() }
    }

    /// Reads what has changed and says what that changes.
    pub(super) fn scan(&mut self) -> Vec<Update> {
        let trouble = match list(&self.dir) {
            Ok(found) => {
                let found = self.with_overlooked(found);
                for (path, file) in self.files.extract_if(.., |path, _| !found.contains_key(path)) {
                    let held = file.good.map(|(_, content)| content.objects).unwrap_or_default();
                    self.claims.remove(&path, &held);
                }
                found.into_iter().for_each(|(path, found)| self.visit(path, found));
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

    /// A listing may lack a file that is being replaced meanwhile (readdir(3) leaves that open). What is still there under its
    /// name has not gone: without it its policies would be out of force until the next look.
    fn with_overlooked(&self, mut found: BTreeMap<PathBuf, Found>) -> BTreeMap<PathBuf, Found> {
        for path in self.files.keys() {
            if !found.contains_key(path)
                && let Some(what) = find(path)
            {
                found.insert(path.clone(), what);
            }
        }
        found
    }

    fn visit(&mut self, path: PathBuf, found: Found) {
        let stamp = found.as_ref().ok().copied();
        let good = match self.files.remove(&path) {
            Some(old) if stamp.is_some() && old.stamp == stamp => {
                self.files.insert(path, old);
                return;
            }
            Some(old) => old.good,
            None => None,
        };
        let read = found.map_err(|p| vec![p]).and_then(|stamp| Ok((stamp, file::read(&path)?)));
        let file = match read {
            Ok((stamp, content)) => {
                if let Some((_, old)) = &good {
                    self.claims.remove(&path, &old.objects);
                }
                self.claims.add(&path, stamp, &content.objects);
                File { stamp: Some(stamp), good: Some((stamp, content)), problems: Vec::new() }
            }
            Err(mut problems) => {
                problems.iter_mut().for_each(|p| p.remedy = remedy(good.is_some(), &p.remedy));
                File { stamp, good, problems }
            }
        };
        self.files.insert(path, file);
    }

    fn updates(&mut self, mut problems: Vec<Problem>) -> Vec<Update> {
        problems.extend(self.files.values().flat_map(|f| f.problems.iter().cloned()));
        problems.extend(file::shorten(&self.dir, self.claims.doubles()));
        let mut updates = self.claims.updates();
        let report = Report { problems, ignored: self.ignored() };
        if report != self.report {
            log(&self.report, &report);
            self.report = report.clone();
            updates.push(Update::Report(report));
        }
        updates
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

/// What is in force while a file is broken, and what to do.
fn remedy(has_good: bool, todo: &str) -> String {
    let todo = if todo.is_empty() { "correct the file" } else { todo };
    match has_good {
        true => format!("the file's last good content stays in force; {todo}"),
        false => format!("nothing of this file is in force; {todo}"),
    }
}

/// Each problem is logged when it appears, not at every look.
fn log(old: &Report, new: &Report) {
    let known: HashSet<_> = old.problems.iter().collect();
    for problem in new.problems.iter().filter(|p| !known.contains(p)) {
        tracing::warn!("{problem}");
    }
    let known: HashSet<_> = old.ignored.iter().map(|i| &i.kind).collect();
    for ignored in new.ignored.iter().filter(|i| !known.contains(&i.kind)) {
        tracing::info!("{}: {} is not a kind that Culvert uses: ignored", ignored.file, ignored.kind);
    }
}

fn list(dir: &Path) -> io::Result<BTreeMap<PathBuf, Found>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if !super::is_manifest(&path) {
            continue;
        }
        if let Some(what) = find(&path) {
            found.insert(path, what);
        }
    }
    Ok(found)
}

/// `None`: there is nothing of this name.
fn find(path: &Path) -> Option<Found> {
    let wrong = |message: String, remedy: &str| {
        let (file, remedy) = (path.display().to_string(), remedy.to_owned());
        Some(Err(Problem { file, line: 0, object: String::new(), field: String::new(), message, remedy }))
    };
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => Some(Ok(Stamp::of(&meta))),
        Ok(meta) => wrong(format!("is no file, but a {}", name_of(meta.file_type())), "remove it"),
        Err(e) if e.kind() == io::ErrorKind::NotFound && std::fs::symlink_metadata(path).is_err() => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            wrong("is a link to what does not exist".to_owned(), "mend the link, or remove it")
        }
        Err(e) => wrong(format!("cannot be looked at: {e}"), "make it readable"),
    }
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "folder",
        kind if kind.is_fifo() => "pipe",
        kind if kind.is_socket() => "socket",
        _ => "device",
    }
}
