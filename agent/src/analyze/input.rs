//! What is to be analyzed: files, folders, standard input.

use std::io;
use std::path::{Path, PathBuf};

use super::foreign;
use crate::control::manifests::{self, Document};
use crate::control::objects::{Metadata, Pod};
use crate::control::{Object, Problem};

/// Manifests, read.
#[derive(Debug, Default)]
pub struct Input {
    pub(super) files: Vec<File>,
    pub(super) problems: Vec<Problem>,
    /// Whether there may be objects that could not be read.
    pub(super) incomplete: bool,
}

#[derive(Debug)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) entries: Vec<Entry>,
}

/// An object of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) document: Document,
    pub(super) metadata: Metadata,
    /// What a Deployment or the like makes, or what stands for a WorkloadEntry.
    template: Option<Pod>,
}

impl Entry {
    /// `None` for what is not an object of Kubernetes, such as the configuration of a tool.
    fn new(document: Document) -> Option<Self> {
        let mut metadata = document.read_as::<foreign::Any>()?.metadata;
        let namespaced = match &document.object {
            Some(object) => object.key().kind.namespaced(),
            None => foreign::is_namespaced(&document),
        };
        if namespaced && metadata.namespace.is_empty() {
            metadata.namespace = "default".to_owned();
        }
        let template = match &document.object {
            Some(Object::WorkloadEntry(entry)) => Some(foreign::pod_of_entry(entry)),
            _ => {
                foreign::template_field(&document).and_then(|_| foreign::templated_pod(&document, &metadata))
            }
        };
        Some(Self { document, metadata, template })
    }

    /// The pod that this is, or that it makes.
    pub(super) fn pod(&self) -> Option<&Pod> {
        match &self.document.object {
            Some(Object::Pod(pod)) => Some(pod),
            _ => self.template.as_ref(),
        }
    }
}

/// A path that cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InputError {
    #[error("{}: cannot be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: holds no manifest (*.yaml, *.yml, *.json){hint}", path.display())]
    NoManifest { path: PathBuf, hint: &'static str },
}

impl Input {
    /// Adds a file, or the manifests of a folder (with those below it when `recursive`).
    ///
    /// # Errors
    ///
    /// The path does not exist, cannot be read, or is a folder without manifests. What is wrong inside a file is a
    /// message instead.
    pub fn add_path(&mut self, path: &Path, recursive: bool) -> Result<(), InputError> {
        let unreadable = |source| InputError::Unreadable { path: path.to_owned(), source };
        if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            self.add_file(path);
            return Ok(());
        }
        let mut files = Vec::new();
        let folders = list(path, recursive, &mut files).map_err(unreadable)?;
        if files.is_empty() {
            let hint = if folders { "; -R looks into the folders below it too" } else { "" };
            return Err(InputError::NoManifest { path: path.to_owned(), hint });
        }
        files.sort_unstable();
        files.iter().for_each(|file| self.add_file(file));
        Ok(())
    }

    fn add_file(&mut self, path: &Path) {
        self.take(path, manifests::read(path));
    }

    /// Adds a text; messages name `name` as its file.
    pub fn add_text(&mut self, name: &str, text: &[u8]) {
        let path = Path::new(name);
        self.take(path, manifests::read_bytes(path, text));
    }

    fn take(&mut self, path: &Path, read: Result<manifests::Documents, Vec<Problem>>) {
        match read {
            Ok(documents) => {
                // Policies are what refers to others; nothing refers to them.
                let missed = |p: &Problem| !is_policy(&p.object);
                self.incomplete |= documents.problems.iter().any(missed);
                self.problems.extend(documents.problems);
                let entries = documents.valid.into_iter().filter_map(Entry::new).collect();
                self.files.push(File { name: path.display().to_string(), entries });
            }
            Err(problems) => {
                self.incomplete = true;
                self.problems.extend(problems);
            }
        }
    }
}

fn is_policy(object: &str) -> bool {
    object.starts_with("AuthorizationPolicy ") || object.starts_with("PeerAuthentication ")
}

/// Collects the manifests of a folder; says whether there are folders that were not looked into.
fn list(dir: &Path, recursive: bool, files: &mut Vec<PathBuf>) -> io::Result<bool> {
    let mut left_out = false;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            left_out |= if recursive { list(&path, true, files)? } else { true };
        } else if manifests::is_manifest(&path) && path.is_file() {
            files.push(path);
        }
    }
    Ok(left_out)
}
