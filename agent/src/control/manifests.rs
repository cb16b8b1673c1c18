//! A watched folder of Kubernetes YAML and JSON: `*.yaml`, `*.yml`, `*.json`; several documents a file, and lists.
//!
//! A file is taken as a whole. When it is broken (or empty, or no longer a file), its last good content stays in force and
//! the error is reported; the other files are not affected. Replace a file by renaming a finished one onto it. When two files hold the same object, the younger file's counts, of equals the one whose
//! path is first. Changes are seen by inotify, and by a look at the folder every few seconds where that fails.

use std::path::{Path, PathBuf};
use std::sync::mpsc as sync;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Object, Problem, Update};
use folder::Folder;

mod claims;
mod document;
pub mod edit;
mod entries;
mod file;
mod folder;
mod names;
mod stamp;

pub use document::{Document, Documents, read, read_bytes};

/// A burst of changes is read as one.
const QUIET: Duration = Duration::from_millis(5);
/// A burst that does not end is read after this.
const LONGEST_BURST: Duration = Duration::from_millis(200);
/// How often the folder is looked at without being told to.
const RESCAN: Duration = Duration::from_secs(3);
/// How soon `shutdown` is noticed.
const TICK: Duration = Duration::from_millis(250);

/// The objects in the text of one manifest file; kinds that Culvert does not use are left out.
///
/// # Errors
///
/// What is wrong with it, in the order of the file; each names `path`, and has a remedy only where that is not to correct
/// the file. A file is taken as a whole, so one problem is enough to refuse it.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Object>, Vec<Problem>> {
    file::parse(path, bytes).map(|content| content.objects)
}

/// Whether a file of this name is read: by its ending, unless it is hidden.
pub fn is_manifest(path: &Path) -> bool {
    let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    known && !hidden
}

/// Watches `dir` on a thread of its own until `shutdown`, or until the receiver is dropped.
///
/// The first batch is everything that is there, and ends with [`Update::Synced`]. A folder that does not exist is
/// reported, and read when it appears.
pub fn spawn(dir: PathBuf, shutdown: CancellationToken) -> mpsc::Receiver<Vec<Update>> {
    let (sender, receiver) = mpsc::channel(16);
    // A blocking task of the runtime would hold up its end; this thread ends by itself.
    let thread = std::thread::Builder::new().name("manifests".to_owned());
    if let Err(error) = thread.spawn(move || watch(&dir, &sender, &shutdown)) {
        tracing::error!(%error, "cannot start the thread that reads manifests; none will be read");
    }
    receiver
}

fn watch(dir: &Path, sender: &mpsc::Sender<Vec<Update>>, shutdown: &CancellationToken) {
    let (notice, notices) = sync::channel();
    let mut watcher = start_watcher(dir, notice.clone());
    let mut folder = Folder::new(dir);
    let mut first = folder.scan();
    first.push(Update::Synced);
    if sender.blocking_send(first).is_err() {
        return;
    }
    while wait(&notices, shutdown) {
        if watcher.is_none() {
            watcher = start_watcher(dir, notice.clone());
        }
        let updates = folder.scan();
        if !updates.is_empty() && sender.blocking_send(updates).is_err() {
            return;
        }
    }
}

/// `None` when the folder cannot be watched (yet): then only the regular look finds changes.
fn start_watcher(dir: &Path, notice: sync::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        let read_only = event.is_ok_and(|event| event.kind.is_access());
        if !read_only {
            // The receiver is gone only when the watch is over.
            let _ = notice.send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler)
        .inspect_err(|error| tracing::warn!(%error, "cannot watch for changed manifests; looking every 3 s"))
        .ok()?;
    watcher.watch(dir, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

/// Waits until it is time to read the folder; false: to stop.
fn wait(notices: &sync::Receiver<()>, shutdown: &CancellationToken) -> bool {
    let start = Instant::now();
    while !shutdown.is_cancelled() {
        if notices.recv_timeout(TICK).is_ok() {
            let burst = Instant::now();
            while burst.elapsed() < LONGEST_BURST && notices.recv_timeout(QUIET).is_ok() {}
            return true;
        }
        if start.elapsed() >= RESCAN {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
