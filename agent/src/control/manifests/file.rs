//! One manifest file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::control::yaml::{FieldError, Node, Value};
use crate::control::{Kind, Object, Problem};
use crate::policy::{AuthorizationPolicy, PeerAuthentication, RawAuthorizationPolicy, RawPeerAuthentication};

/// The largest file that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) objects: Vec<Object>,
    /// `apiVersion/kind` of what is left alone, and how many.
    pub(super) ignored: BTreeMap<String, usize>,
}

/// Reads and judges a file; the problems' `remedy` is left to the caller.
pub(super) fn read(path: &Path) -> Result<Content, Vec<Problem>> {
    parse(path, &bytes(path)?)
}

/// The bytes of a file that is not too long.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, Vec<Problem>> {
    let whole = |message: String| vec![problem(path, 0, String::new(), String::new(), message)];
    let size = std::fs::metadata(path).map_err(|e| whole(format!("cannot be read: {e}")))?.len();
    if size > MAX_BYTES {
        return Err(whole(format!("is {size} bytes long; at most {MAX_BYTES} are read")));
    }
    std::fs::read(path).map_err(|e| whole(format!("cannot be read: {e}")))
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Content, Vec<Problem>> {
    let documents = documents(path, bytes)?;
    let mut found = Vec::new();
    documents.iter().for_each(|document| flatten(path, document, &mut found));
    let (mut content, mut problems) = (Content::default(), Vec::new());
    for written in found {
        let judged = written.and_then(|written| Ok((written.judge(path)?, written)));
        match judged {
            Ok((Some(object), _)) => content.objects.push(object),
            Ok((None, Written { api_version, kind, .. })) => {
                *content.ignored.entry(format!("{api_version}/{kind}")).or_default() += 1;
            }
            Err(problem) => problems.push(*problem),
        }
    }
    if problems.is_empty() { Ok(content) } else { Err(problems) }
}

/// The documents of a file, whatever they mean.
pub(super) fn documents(path: &Path, bytes: &[u8]) -> Result<Vec<Node>, Vec<Problem>> {
    let line_at = |end: usize| bytes[..end].iter().filter(|b| **b == b'\n').count() as u64 + 1;
    let broken =
        |line, message: &str| vec![problem(path, line, String::new(), String::new(), message.to_owned())];
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(broken(line_at(at), "holds a NUL byte, so it is no text"));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| broken(line_at(e.valid_up_to()), "is not UTF-8"))?;
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|e| vec![syntax(path, &e)])
}

/// The limits on size hold for the file; those on aliases stay, because they multiply.
fn options() -> serde_saphyr::Options {
    let most = MAX_BYTES as usize;
    serde_saphyr::options! {
        // A namespace may be called `n`.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: most,
            max_nodes: most,
            max_documents: most,
            max_total_scalar_bytes: most,
            max_total_comment_bytes: most,
            max_buffered_comment_events: most,
        },
    }
}

fn syntax(path: &Path, error: &serde_saphyr::Error) -> Problem {
    let line = error.location().map_or(0, |l| l.line());
    let message = error.without_snippet().to_string();
    let message = message.lines().next().unwrap_or_default().to_owned();
    problem(path, line, String::new(), String::new(), format!("no valid YAML: {message}"))
}

fn problem(path: &Path, line: u64, object: String, field: String, message: String) -> Problem {
    Problem { file: path.display().to_string(), line, object, field, message, remedy: String::new() }
}

/// An object as written.
pub(super) struct Written<'n> {
    pub(super) api_version: &'n str,
    pub(super) kind: &'n str,
    pub(super) node: &'n Node,
}

impl Written<'_> {
    /// The object, if it is of a kind that Culvert uses.
    pub(super) fn judge(&self, path: &Path) -> Result<Option<Object>, Box<Problem>> {
        let Some(kind) = Kind::of(self.api_version, self.kind) else { return Ok(None) };
        let broken = |e: FieldError| Box::new(problem(path, e.line, name_of(self.node), e.field, e.message));
        object(kind, self.node).map(Some).map_err(broken)
    }
}

/// The objects of `node`, which may be a list of them, in their order.
pub(super) fn flatten<'n>(path: &Path, node: &'n Node, found: &mut Vec<Result<Written<'n>, Box<Problem>>>) {
    if matches!(node.value, Value::Null) {
        return;
    }
    let (Some(api_version), Some(kind)) = (node.text("apiVersion"), node.text("kind")) else {
        let field = if node.text("apiVersion").is_none() { "apiVersion" } else { "kind" };
        let message = "is missing: every object names its apiVersion and kind".to_owned();
        let problem = problem(path, node.line, name_of(node), field.to_owned(), message);
        return found.push(Err(Box::new(problem)));
    };
    match node.get("items").filter(|_| kind.ends_with("List")) {
        Some(Node { value: Value::List(items), .. }) => {
            items.iter().for_each(|item| flatten(path, item, found));
        }
        Some(items) => found.push(Err(Box::new(problem(
            path,
            items.line,
            "List".to_owned(),
            "items".to_owned(),
            "must be a list of objects".to_owned(),
        )))),
        None => found.push(Ok(Written { api_version, kind, node })),
    }
}

/// `Kind namespace/name`, as far as they can be read.
fn name_of(node: &Node) -> String {
    let meta = |key| node.get("metadata").and_then(|m| m.text(key));
    let name = meta("name").unwrap_or("(no name)");
    let kind = node.text("kind").unwrap_or("object");
    meta("namespace").map_or_else(|| format!("{kind} {name}"), |ns| format!("{kind} {ns}/{name}"))
}

macro_rules! plain {
    ($variant:ident, $kind:expr, $node:expr) => {{
        let mut object: crate::control::objects::$variant = $node.read()?;
        fill_namespace($kind, &mut object.metadata);
        check_name(&object.metadata, $node)?;
        Object::$variant(Arc::new(object))
    }};
}

fn object(kind: Kind, node: &Node) -> Result<Object, FieldError> {
    let invalid = |e: crate::policy::InvalidField| FieldError {
        line: node.line_of(&e.field),
        field: e.field,
        message: e.message,
    };
    Ok(match kind {
        Kind::AuthorizationPolicy => {
            let mut raw: RawAuthorizationPolicy = node.read()?;
            fill_namespace(kind, &mut raw.metadata);
            check_name(&raw.metadata, node)?;
            Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy::try_from(raw).map_err(invalid)?))
        }
        Kind::PeerAuthentication => {
            let mut raw: RawPeerAuthentication = node.read()?;
            fill_namespace(kind, &mut raw.metadata);
            check_name(&raw.metadata, node)?;
            Object::PeerAuthentication(Arc::new(PeerAuthentication::try_from(raw).map_err(invalid)?))
        }
        Kind::EndpointSlice => plain!(EndpointSlice, kind, node),
        Kind::Namespace => plain!(Namespace, kind, node),
        Kind::Node => plain!(Node, kind, node),
        Kind::Pod => plain!(Pod, kind, node),
        Kind::Service => plain!(Service, kind, node),
        Kind::ServiceAccount => plain!(ServiceAccount, kind, node),
    })
}

fn fill_namespace(kind: Kind, metadata: &mut crate::control::objects::Metadata) {
    if !kind.namespaced() {
        metadata.namespace.clear();
    } else if metadata.namespace.is_empty() {
        metadata.namespace = "default".to_owned();
    }
}

fn check_name(metadata: &crate::control::objects::Metadata, node: &Node) -> Result<(), FieldError> {
    if metadata.name.is_empty() {
        let field = "metadata.name".to_owned();
        let line = node.line_of(&field);
        return Err(FieldError { line, field, message: "must not be empty".to_owned() });
    }
    Ok(())
}
