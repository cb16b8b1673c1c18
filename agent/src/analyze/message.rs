//! A message, and how it reads.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::Code;
use crate::control::Problem;
use crate::control::manifests::Document;

/// One thing that is notable about the input.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Message {
    /// The file; `-` is standard input.
    pub file: String,
    /// Line in the file from 1; 0: the file as a whole.
    pub line: u64,
    /// What it is about.
    pub code: Code,
    /// `Kind namespace/name`; empty when the object is not known.
    pub object: String,
    /// The object's namespace (a Namespace's own name); empty when there is none.
    pub namespace: String,
    /// Path of the field, such as `spec.rules[0]`; may be empty.
    pub field: String,
    /// What is the matter, and what to do.
    pub text: String,
}

/// Where an object is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    pub(super) file: &'a str,
    pub(super) document: &'a Document,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl Origin<'_> {
    /// `Kind namespace/name`.
    pub(super) fn object(&self) -> String {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        format!("{} {}{slash}{}", self.document.kind, self.namespace, self.name)
    }

    /// `file:line`.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.file, self.document.line)
    }

    /// A message about a field; empty: about the object.
    pub(super) fn message(&self, code: Code, field: &str, text: impl Into<String>) -> Message {
        let line = if field.is_empty() { self.document.line } else { self.document.line_of(field) };
        self.message_at(line, code, field, text)
    }

    /// A message about an entry of a map such as `metadata.labels`.
    pub(super) fn entry(&self, code: Code, map: &str, key: &str, text: impl Into<String>) -> Message {
        self.message_at(self.document.line_of_entry(map, key), code, map, text)
    }

    fn message_at(&self, line: u64, code: Code, field: &str, text: impl Into<String>) -> Message {
        let own = if self.document.kind == "Namespace" { self.name } else { self.namespace };
        Message {
            file: self.file.to_owned(),
            line,
            code,
            object: self.object(),
            namespace: own.to_owned(),
            field: field.to_owned(),
            text: text.into(),
        }
    }
}

impl From<&Problem> for Message {
    fn from(problem: &Problem) -> Self {
        let namespace = problem.object.split_once(' ').and_then(|(_, name)| name.split_once('/'));
        let colon = if problem.field.is_empty() { "" } else { ": " };
        Self {
            file: problem.file.clone(),
            line: problem.line,
            code: Code::SchemaValidationError,
            object: problem.object.clone(),
            namespace: namespace.map(|(namespace, _)| namespace.to_owned()).unwrap_or_default(),
            field: problem.field.clone(),
            text: format!("Schema validation error: {}{colon}{}", problem.field, problem.message),
        }
    }
}

impl Message {
    fn reference(&self) -> String {
        if self.line == 0 { self.file.clone() } else { format!("{}:{}", self.file, self.line) }
    }
}

/// As `istioctl analyze` prints it.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.object.is_empty() { "" } else { " " };
        let Self { code, object, text, .. } = self;
        write!(f, "{} [{code}] ({object}{space}{}) {text}", code.level(), self.reference())
    }
}

/// With the names that `istioctl analyze -o json` has, and `field`.
impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Message", 6)?;
        out.serialize_field("code", &self.code)?;
        out.serialize_field("field", &self.field)?;
        out.serialize_field("level", &self.code.level())?;
        out.serialize_field("message", &self.text)?;
        out.serialize_field("origin", &self.object)?;
        out.serialize_field("reference", &self.reference())?;
        out.end()
    }
}
