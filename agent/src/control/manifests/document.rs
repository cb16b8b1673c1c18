//! Manifests for tools that judge them: object by object, each with its place in the file.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::file;
use crate::control::yaml::Node;
use crate::control::{Object, Problem};

/// One object of a file, as written and as the agent reads it.
#[derive(Clone, Debug)]
pub struct Document {
    /// The line where it begins, from 1.
    pub line: u64,
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its `kind`.
    pub kind: String,
    /// What the agent makes of it; `None`: it has no use for the kind.
    pub object: Option<Object>,
    tree: Node,
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// The objects that are valid, in their order.
    pub valid: Vec<Document>,
    /// Those that are not. The agent would not use any of the file then.
    pub problems: Vec<Problem>,
}

impl Document {
    /// The line of a field such as `spec.rules[0].to`, or of the deepest part of it that is there.
    pub fn line_of(&self, field: &str) -> u64 {
        self.tree.line_of(field)
    }

    /// The line of an entry of a map such as `metadata.labels`, whose keys may hold dots; else that of the map.
    pub fn line_of_entry(&self, map: &str, key: &str) -> u64 {
        let map = self.tree.at(map);
        map.get(key).unwrap_or(map).line
    }

    /// The object as a `T`; `None` when it does not have that form.
    pub fn read_as<T: DeserializeOwned>(&self) -> Option<T> {
        self.tree.read().ok()
    }
}

/// Reads a file.
///
/// # Errors
///
/// It cannot be read, or is no valid YAML: then nothing is known about its objects.
pub fn read(path: &Path) -> Result<Documents, Vec<Problem>> {
    read_bytes(path, &file::bytes(path)?)
}

/// As [`read`], from memory; problems name `path` as their file.
///
/// # Errors
///
/// The text is no valid YAML.
pub fn read_bytes(path: &Path, bytes: &[u8]) -> Result<Documents, Vec<Problem>> {
    let documents = file::documents(path, bytes)?;
    let mut found = Vec::new();
    documents.iter().for_each(|document| file::flatten(path, document, &mut found));
    let mut read = Documents::default();
    for written in found {
        match written.and_then(|written| Ok((written.judge(path)?, written))) {
            Ok((object, written)) => read.valid.push(Document {
                line: written.node.line,
                api_version: written.api_version.to_owned(),
                kind: written.kind.to_owned(),
                object,
                tree: written.node.clone(),
            }),
            Err(problem) => read.problems.push(*problem),
        }
    }
    Ok(read)
}
