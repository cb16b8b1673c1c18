//! Where the agent learns of the world. Every source speaks [`Update`]; today there is one, a folder of manifests.

pub mod manifests;
pub mod objects;
mod parse;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use objects::{Object, ObjectKey};
use serde::Serialize;

/// What a source says.
#[derive(Clone, Debug)]
pub enum Update {
    /// This object is there, as given.
    Upsert(Box<Object>),
    /// This object is gone.
    Remove(ObjectKey),
    /// Everything that existed at the start has been sent.
    Synced,
    /// The state of the source itself changed.
    Report(SourceReport),
}

/// What a source could not use, for `culvert dump` and the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    /// Files or objects with errors; their last good state stays in force.
    pub errors: Vec<ManifestError>,
    /// Kinds that Culvert does not use, and how many objects of each.
    pub ignored_kinds: BTreeMap<String, usize>,
}

/// One thing wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[error("{}{}: {object}: {message}", file.display(), line.map(|l| format!(":{l}")).unwrap_or_default())]
pub struct ManifestError {
    /// The file.
    pub file: PathBuf,
    /// The line in it, where the parser knows it.
    pub line: Option<u64>,
    /// `Kind namespace/name`, as far as known.
    pub object: String,
    /// What is wrong, with the field, and what to do.
    pub message: String,
}
