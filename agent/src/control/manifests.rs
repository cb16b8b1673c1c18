//! A watched folder of Kubernetes YAML or JSON. A broken file keeps its last good content; the rest goes on.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::parse::{MAX_FILE, Parsed, parse};
use super::{ManifestError, Object, ObjectKey, SourceReport, Update};

/// Events closer together than this are one change.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// A look at the folder without an event: some file systems tell of none.
const RESCAN: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    good: Parsed,
    error: Option<ManifestError>,
}

/// Follows `dir`: the first batch holds all that is there and ends with [`Update::Synced`]. Ends when the receiver goes.
///
/// # Errors
///
/// When the folder does not exist or cannot be watched.
pub fn follow(dir: &Path) -> io::Result<mpsc::Receiver<Vec<Update>>> {
    if !dir.is_dir() {
        let text =
            format!("{}: no such folder: --manifests names a folder of Kubernetes YAML", dir.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let (wake, woken) = std_mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the files is no change: it would wake the reader for ever.
        if !event.is_ok_and(|e| e.kind.is_access()) {
            let _ = wake.send(());
        }
    })
    .map_err(io::Error::other)?;
    watcher.watch(dir, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
    let (sender, receiver) = mpsc::channel(16);
    let dir = dir.to_owned();
    std::thread::Builder::new().name("manifests".to_owned()).spawn(move || {
        let _watcher = watcher;
        let mut folder = Folder::new(dir);
        let mut first = true;
        loop {
            let mut batch = folder.scan();
            if first {
                batch.push(Update::Synced);
                first = false;
            }
            if sender.is_closed() || (!batch.is_empty() && sender.blocking_send(batch).is_err()) {
                return;
            }
            if woken.recv_timeout(RESCAN).is_ok() {
                while woken.recv_timeout(DEBOUNCE).is_ok() {}
            }
        }
    })?;
    Ok(receiver)
}

struct Folder {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    objects: HashMap<ObjectKey, Object>,
    report: SourceReport,
}

impl Folder {
    fn new(dir: PathBuf) -> Self {
        Self { dir, files: BTreeMap::new(), objects: HashMap::new(), report: SourceReport::default() }
    }

    /// Reads what changed and says what follows from it.
    fn scan(&mut self) -> Vec<Update> {
        let mut folder_error = None;
        match list(&self.dir) {
            Ok(found) => {
                self.files.retain(|path, _| found.contains_key(path));
                for (path, stamp) in found {
                    let file = self.files.entry(path.clone()).or_default();
                    if file.stamp.as_ref() != Some(&stamp) {
                        file.read(&path, stamp);
                    }
                }
            }
            // An unreadable folder is not an empty one: everything stays.
            Err(error) => {
                folder_error = Some(problem(&self.dir, "folder", format!("cannot be read: {error}")))
            }
        }
        self.updates(folder_error)
    }

    fn updates(&mut self, folder_error: Option<ManifestError>) -> Vec<Update> {
        let mut wanted: HashMap<ObjectKey, (Object, &Path)> = HashMap::new();
        let mut report = SourceReport::default();
        report.errors.extend(folder_error);
        for (path, file) in &self.files {
            report.errors.extend(file.error.clone());
            for (kind, count) in &file.good.ignored {
                *report.ignored_kinds.entry(kind.clone()).or_default() += count;
            }
            for object in &file.good.objects {
                let key = object.key();
                if let Some((_, other)) = wanted.get(&key) {
                    let message = format!("is also in {}, which wins: remove one", other.display());
                    report.errors.push(problem(path, &key.to_string(), message));
                    continue;
                }
                wanted.insert(key, (object.clone(), path));
            }
        }
        let mut updates: Vec<Update> = self
            .objects
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .cloned()
            .map(Update::Remove)
            .collect();
        for (key, (object, _)) in &wanted {
            if self.objects.get(key) != Some(object) {
                updates.push(Update::Upsert(Box::new(object.clone())));
            }
        }
        self.objects = wanted.into_iter().map(|(key, (object, _))| (key, object)).collect();
        if report != self.report {
            for error in report.errors.iter().filter(|e| !self.report.errors.contains(e)) {
                tracing::error!(%error, "manifest not used; its last good state stays in force");
            }
            self.report = report.clone();
            updates.push(Update::Report(report));
        }
        updates
    }
}

impl File {
    fn read(&mut self, path: &Path, stamp: Stamp) {
        let result = if stamp.length > MAX_FILE {
            Err(problem(path, "file", format!("is larger than {} MiB: split it", MAX_FILE >> 20)))
        } else {
            fs::read(path).map_err(|e| problem(path, "file", format!("cannot be read: {e}"))).and_then(
                |bytes| {
                    let text = String::from_utf8(bytes)
                        .map_err(|e| problem(path, "file", format!("is not UTF-8: {e}")))?;
                    parse(path, &text)
                },
            )
        };
        match result {
            Ok(parsed) => {
                self.good = parsed;
                self.error = None;
            }
            Err(error) => self.error = Some(error),
        }
        self.stamp = Some(stamp);
    }
}

fn problem(path: &Path, object: &str, message: String) -> ManifestError {
    ManifestError { file: path.to_owned(), line: None, object: object.to_owned(), message }
}

fn list(dir: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if hidden || !known {
            continue;
        }
        // Follows links: a ConfigMap volume is made of them. A file that vanished meanwhile is gone.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_file() {
            let stamp = Stamp { modified: meta.modified()?, length: meta.len(), inode: meta.ino() };
            found.insert(path, stamp);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    fn names(folder: &Folder) -> Vec<&str> {
        let mut names: Vec<_> = folder.objects.keys().map(|k| k.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_content_and_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(dir.path().to_owned());
        fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
        assert_eq!(folder.scan().len(), 1);
        fs::write(dir.path().join("a.yaml"), "kind: [broken").unwrap();
        fs::write(dir.path().join("b.yaml"), namespace("b")).unwrap();
        let updates = folder.scan();
        assert_eq!(names(&folder), ["a", "b"]);
        let Some(Update::Report(report)) = updates.last() else { panic!("{updates:?}") };
        assert!(report.errors[0].file.ends_with("a.yaml") && report.errors[0].line.is_some());
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        folder.scan();
        assert_eq!(names(&folder), ["b"]);
        assert!(folder.report.errors.is_empty());
    }

    #[test]
    fn the_same_object_twice_is_reported_and_the_first_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(dir.path().to_owned());
        fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
        fs::write(dir.path().join("b.yaml"), namespace("a")).unwrap();
        folder.scan();
        assert_eq!(folder.report.errors.len(), 1);
        assert!(folder.report.errors[0].file.ends_with("b.yaml"));
    }

    #[tokio::test]
    async fn a_change_arrives_within_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let mut updates = follow(dir.path()).unwrap();
        assert!(matches!(updates.recv().await.unwrap()[..], [Update::Synced]));
        fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
        let batch = tokio::time::timeout(Duration::from_secs(2), updates.recv()).await.unwrap().unwrap();
        assert!(matches!(&batch[..], [Update::Upsert(object)] if object.meta().name == "a"));
    }
}
