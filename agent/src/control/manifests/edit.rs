//! Changes of manifest files that leave everything else as it is: comments, order, other objects, byte for byte.
//!
//! A change is made in the text, where the parser says that a value begins. What comes of it is read again, and must mean what was
//! there before with nothing but the change: where that is not so (an alias elsewhere means the same map, say), nothing is changed.

use std::path::Path;

use serde_json::Value as Plain;

use super::file;
use spans::{Node, Value};
pub use write::block;

mod spans;
mod write;

/// A manifest file, to be changed.
#[derive(Debug)]
pub struct Text {
    text: String,
    documents: Vec<Node>,
}

/// Where an object is in its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    document: usize,
    /// In a `List`: which of its items.
    item: Option<usize>,
}

/// What is left of a file that lost an object.
#[derive(PartialEq, Eq, Debug)]
pub enum Rest {
    /// Nothing: the file can go.
    Nothing,
    /// This text.
    Text(String),
}

impl Text {
    /// Reads a file's text; `None` when it is no valid YAML.
    pub fn read(text: &str) -> Option<Self> {
        let documents = serde_saphyr::from_multiple_with_options::<Node>(text, file::options()).ok()?;
        Some(Self {
            text: text.to_owned(),
            documents: documents.into_iter().filter(|d| !d.is_null()).collect(),
        })
    }

    /// Where an object is. An object without a namespace is in `default`, where its kind has namespaces.
    pub fn find(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Option<Place> {
        let is_it = |node: &Node| {
            let meta = node.get("metadata");
            let text = |key| meta.and_then(|meta| meta.text(key)).unwrap_or_default();
            let home = match text("namespace") {
                "" if !namespace.is_empty() => "default",
                _ if namespace.is_empty() => "",
                home => home,
            };
            let version = node.text("apiVersion").unwrap_or_default();
            version.rsplit_once('/').map_or("", |(group, _)| group) == group
                && node.text("kind") == Some(kind)
                && (home, text("name")) == (namespace, name)
        };
        self.documents.iter().enumerate().find_map(|(document, node)| match items(node) {
            None => is_it(node).then_some(Place { document, item: None }),
            Some(items) => {
                let item = items.iter().position(is_it)?;
                Some(Place { document, item: Some(item) })
            }
        })
    }

    /// What an object means.
    pub fn object(&self, place: Place) -> Option<Plain> {
        self.node(place).map(Node::plain)
    }

    /// The text with `value` at `path` (keys, at least one) of an object; maps that are missing on the way are made. `None`: it
    /// cannot be written there without touching something else.
    pub fn set(&self, place: Place, path: &[&str], value: &Plain) -> Option<String> {
        let mut expected: Vec<Plain> = self.documents.iter().map(Node::plain).collect();
        put(plain_at(&mut expected, place)?, path, value)?;
        let at_end = self.append(place, path, value).and_then(|edit| self.checked(edit, &expected));
        at_end.or_else(|| self.checked(self.edit(self.node(place)?, None, path, value)?, &expected))
    }

    /// The text without an object. `None`: it cannot be taken out without touching something else, as in a list of several.
    pub fn without(&self, place: Place) -> Option<Rest> {
        let document = self.documents.get(place.document)?;
        if items(document).is_some_and(|items| items.len() > 1) {
            return None;
        }
        if self.documents.len() == 1 {
            return Some(Rest::Nothing);
        }
        let part = parts(&self.text).into_iter().find(|part| part.contains(&document.at))?;
        let mut expected: Vec<Plain> = self.documents.iter().map(Node::plain).collect();
        expected.remove(place.document);
        self.checked((part.start, part.end, String::new()), &expected).map(Rest::Text)
    }

    fn node(&self, place: Place) -> Option<&Node> {
        let document = self.documents.get(place.document)?;
        place.item.map_or(Some(document), |item| items(document)?.get(item))
    }

    /// A new field of a document in block style, such as `status`, comes last.
    fn append(&self, place: Place, path: &[&str], value: &Plain) -> Option<(usize, usize, String)> {
        let (first, rest) = path.split_first()?;
        let root = self.node(place).filter(|root| place.item.is_none() && root.entry(first).is_none())?;
        let part = parts(&self.text).into_iter().find(|part| part.contains(&root.at))?;
        let entry = nest(&[first], &nest(rest, value));
        let newline = if self.text.get(part.clone())?.ends_with('\n') { "" } else { "\n" };
        Some((part.end, part.end, format!("{newline}{}", block(&entry, 0))))
    }

    /// From which byte to which byte to write what.
    fn edit(
        &self,
        node: &Node,
        above: Option<usize>,
        path: &[&str],
        value: &Plain,
    ) -> Option<(usize, usize, String)> {
        let (first, rest) = path.split_first()?;
        match node.entry(first) {
            Some((key, inner)) if !rest.is_empty() && matches!(inner.value, Value::Map(_)) => {
                self.edit(inner, Some(key.at), rest, value)
            }
            Some((_, inner)) if inner.is_null() || rest.is_empty() => self.replace(inner, &nest(rest, value)),
            Some(_) => None,
            None => self.insert(node, above, first, &nest(rest, value)),
        }
    }

    /// In place of a scalar.
    fn replace(&self, node: &Node, value: &Plain) -> Option<(usize, usize, String)> {
        matches!(node.value, Value::Scalar(_)).then_some(())?;
        let quoted = self.text.get(node.at..)?.starts_with('"');
        let written = write::line(value, quoted || self.is_json());
        if node.len > 0 {
            return Some((node.at, node.at.checked_add(node.len)?, written));
        }
        // Nothing is there: it goes behind the colon.
        let at = node.at + usize::from(self.text.get(node.at..)?.starts_with(':'));
        Some((at, at, format!(" {written}")))
    }

    /// A new entry, before the others: after the line of the key `above` that the map belongs to, so that comments stay with
    /// what they are about.
    fn insert(
        &self,
        map: &Node,
        above: Option<usize>,
        key: &str,
        value: &Plain,
    ) -> Option<(usize, usize, String)> {
        let Value::Map(entries) = &map.value else { return None };
        let after = self.text.get(map.at..)?;
        if let Some(after) = after.strip_prefix('{') {
            return Some((map.at + 1, map.at + 1, self.in_flow(after, entries.is_empty(), key, value)));
        }
        let first = entries.first()?.0.at;
        let start = self.text.get(..first)?.rfind('\n').map_or(0, |newline| newline + 1);
        let indent = self.text.get(start..first)?.chars().count();
        let entry: Plain = [(key.to_owned(), value.clone())].into_iter().collect();
        let lines = block(&entry, indent);
        let above_ends = |above: usize| Some(above + self.text.get(above..)?.find('\n')? + 1);
        match above.and_then(above_ends).filter(|end| *end <= start) {
            Some(end) => Some((end, end, lines)),
            // The first line of a document, or of a list's item, behind its dash.
            None => Some((first, first, format!("{}{}", lines.get(indent..)?, " ".repeat(indent)))),
        }
    }

    /// What to write behind the opening brace that `after` follows.
    fn in_flow(&self, after: &str, empty: bool, key: &str, value: &Plain) -> String {
        let entry: Plain = [(key.to_owned(), value.clone())].into_iter().collect();
        let line = write::line(&entry, self.is_json() || after.trim_start().starts_with('"'));
        let line = line.strip_prefix('{').and_then(|line| line.strip_suffix('}')).unwrap_or_default();
        if empty {
            return line.to_owned();
        }
        let space = &after[..after.len() - after.trim_start().len()];
        if space.contains('\n') {
            format!("{space}{line},")
        } else {
            format!("{space}{line},{}", " ".repeat(1 - space.len().min(1)))
        }
    }

    fn is_json(&self) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(&self.text).is_ok()
    }

    /// The changed text, if it means what it should.
    fn checked(&self, (from, to, with): (usize, usize, String), expected: &[Plain]) -> Option<String> {
        let text = format!("{}{with}{}", self.text.get(..from)?, self.text.get(to..)?);
        let read = Self::read(&text)?;
        read.documents.iter().map(Node::plain).eq(expected.iter().cloned()).then_some(text)
    }
}

/// The objects of a `List`.
fn items(document: &Node) -> Option<&[Node]> {
    match &document.get("items").filter(|_| document.text("kind").is_some_and(|k| k.ends_with("List")))?.value
    {
        Value::List(items) => Some(items),
        Value::Map(_) | Value::Scalar(_) => None,
    }
}

fn plain_at(documents: &mut [Plain], place: Place) -> Option<&mut Plain> {
    let document = documents.get_mut(place.document)?;
    match place.item {
        None => Some(document),
        Some(item) => document.get_mut("items")?.get_mut(item),
    }
}

fn put(object: &mut Plain, path: &[&str], value: &Plain) -> Option<()> {
    let (first, rest) = path.split_first()?;
    if object.is_null() {
        *object = Plain::Object(serde_json::Map::new());
    }
    let map = object.as_object_mut()?;
    if rest.is_empty() {
        map.insert((*first).to_owned(), value.clone());
        return Some(());
    }
    put(map.entry(*first).or_insert(Plain::Null), rest, value)
}

fn nest(path: &[&str], value: &Plain) -> Plain {
    path.iter().rev().fold(value.clone(), |inner, key| [((*key).to_owned(), inner)].into_iter().collect())
}

/// The bytes of each document with the line of dashes before it. Such a line is never part of a value (YAML 1.2.2, 9.1.2).
fn parts(text: &str) -> Vec<std::ops::Range<usize>> {
    let dashes = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let (mut starts, mut at) = (vec![0], 0);
    for line in text.split_inclusive('\n') {
        if at > 0 && dashes(line) {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]).collect::<Vec<_>>();
    starts.into_iter().zip(ends).map(|(start, end)| start..end).collect()
}

/// Writes a file whole: whoever looks sees it as it was or as it is now. `before` is what was read from it (`None`: there was none);
/// the file may not have changed meanwhile.
///
/// # Errors
///
/// The file has changed, or the folder cannot be written to.
pub fn replace(path: &Path, before: Option<&str>, text: &str) -> std::io::Result<()> {
    use std::io::{Error, Write};
    // What a link leads to is changed, not the link.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Hidden, so that no agent reads it.
    let half = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = std::fs::File::create(&half)?;
        file.write_all(text.as_bytes())?;
        if let Ok(meta) = std::fs::metadata(path) {
            file.set_permissions(meta.permissions())?;
        }
        file.sync_all()?;
        match before {
            // Fails when there is one by now.
            None => std::fs::hard_link(&half, path),
            Some(before) if std::fs::read(path)? == before.as_bytes() => std::fs::rename(&half, path),
            Some(_) => Err(Error::other("was changed by somebody else meanwhile; try again")),
        }
    })();
    if before.is_none() || written.is_err() {
        // It is there under its own name, or not wanted any more.
        let _ = std::fs::remove_file(&half);
    }
    written
}

#[cfg(test)]
mod tests;
