//! One manifest file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;

use super::stamp::Stamp;
use super::{entries, names};
use crate::control::objects::Metadata;
use crate::control::yaml::{FieldError, Node, Value};
use crate::control::{Kind, Object, Problem};
use crate::policy::{AuthorizationPolicy, PeerAuthentication, RawAuthorizationPolicy, RawPeerAuthentication};

/// The largest file that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// The most values and keys in a file; each takes memory beyond its text.
const MAX_NODES: usize = 4 << 20;
/// The largest object, in bytes of its texts. etcd, and so Kubernetes, takes no larger one; what a policy may cost to
/// compile follows from it.
const MAX_OBJECT_BYTES: usize = 3 << 19;
/// The most problems of a file, and the most kinds that are left alone, that are told one by one.
pub(super) const MAX_TOLD: usize = 100;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) objects: Vec<Object>,
    /// `apiVersion/kind` of what is left alone, and how many.
    pub(super) ignored: BTreeMap<String, usize>,
}

impl Content {
    fn ignore(&mut self, api_version: &str, kind: &str) {
        let mut kind = format!("{api_version}/{kind}");
        if self.ignored.len() >= MAX_TOLD && !self.ignored.contains_key(&kind) {
            kind = "other kinds".to_owned();
        }
        *self.ignored.entry(kind).or_default() += 1;
    }
}

/// Reads and judges a file; a problem's `remedy` says what to do when correcting the file is not it.
pub(super) fn read(path: &Path) -> Result<Content, Vec<Problem>> {
    parse(path, &bytes(path)?)
}

/// The bytes of a file that is whole and not too long.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, Vec<Problem>> {
    read_bytes(path).map_err(|(message, remedy)| {
        let whole = problem(path, 0, String::new(), String::new(), message);
        vec![Problem { remedy: remedy.to_owned(), ..whole }]
    })
}

/// The error: what is wrong, and what to do.
fn read_bytes(path: &Path) -> Result<Vec<u8>, (String, &'static str)> {
    let cannot = |e: std::io::Error| (format!("cannot be read: {e}"), "make it readable");
    // It may have become a FIFO since it was listed; opening one waits for its writer, unless told not to.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(cannot)?;
    let before = file.metadata().map_err(cannot)?;
    if !before.is_file() {
        return Err(("is no regular file".to_owned(), "remove it"));
    }
    if before.len() > MAX_BYTES {
        let message = format!("is {} bytes long; at most {MAX_BYTES} are read", before.len());
        return Err((message, "split the file"));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    let after = file.metadata().map_err(cannot)?;
    let untouched = Stamp::of(&before).is_as_long_and_old_as(&Stamp::of(&after));
    if !untouched || bytes.len() as u64 != after.len() {
        // Half a file can be valid, and lack a policy.
        let message = "was written to while it was read; it will be read again".to_owned();
        return Err((message, "replace files by renaming finished ones"));
    }
    if bytes.is_empty() {
        // What a shell's `> file` does first. Taking its policies back meanwhile would open what they close.
        return Err(("is empty".to_owned(), "remove the file to take its objects back"));
    }
    Ok(bytes)
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
                content.ignore(api_version, kind);
            }
            Err(problem) => problems.push(*problem),
        }
    }
    if problems.is_empty() { Ok(content) } else { Err(shorten(path, problems)) }
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

/// At most [`MAX_TOLD`] problems, and how many more there are.
pub(super) fn shorten(path: &Path, mut problems: Vec<Problem>) -> Vec<Problem> {
    if let Some(more) = problems.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
        problems.truncate(MAX_TOLD);
        problems.push(problem(path, 0, String::new(), String::new(), format!("has {more} more problems")));
    }
    problems
}

/// The limits on size hold for the file; those on aliases stay, because they multiply.
pub(super) fn options() -> serde_saphyr::Options {
    let most = MAX_BYTES as usize;
    serde_saphyr::options! {
        // A namespace may be called `n`.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: MAX_NODES,
            max_nodes: MAX_NODES,
            max_documents: MAX_NODES,
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
    let too_much = matches!(error.without_snippet(), serde_saphyr::Error::Budget { .. });
    let remedy = if too_much { "split the file, and write its aliases out" } else { "" }.to_owned();
    let message = format!("no valid YAML: {message}");
    Problem { remedy, ..problem(path, line, String::new(), String::new(), message) }
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
        check_size(self.node).and_then(|()| object(kind, self.node)).map(Some).map_err(broken)
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
        Some(Node { value: Value::Null, .. }) => {}
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

fn check_size(node: &Node) -> Result<(), FieldError> {
    let size = node.bytes();
    if size <= MAX_OBJECT_BYTES {
        return Ok(());
    }
    let (field, line) = node.heaviest();
    let message = format!(
        "makes the object {size} bytes long, and Kubernetes takes {MAX_OBJECT_BYTES}; use several objects"
    );
    Err(FieldError { line, field, message })
}

macro_rules! plain {
    ($variant:ident, $kind:expr, $node:expr) => {{
        let mut object: crate::control::objects::$variant = $node.read()?;
        complete($kind, &mut object.metadata, $node)?;
        object
    }};
}

fn object(kind: Kind, node: &Node) -> Result<Object, FieldError> {
    let invalid = |e: crate::policy::InvalidField| at(node, e.field, e.message);
    Ok(match kind {
        Kind::AuthorizationPolicy => {
            let mut raw: RawAuthorizationPolicy = node.read()?;
            complete(kind, &mut raw.metadata, node)?;
            Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy::try_from(raw).map_err(invalid)?))
        }
        Kind::PeerAuthentication => {
            let mut raw: RawPeerAuthentication = node.read()?;
            complete(kind, &mut raw.metadata, node)?;
            Object::PeerAuthentication(Arc::new(PeerAuthentication::try_from(raw).map_err(invalid)?))
        }
        Kind::EndpointSlice => Object::EndpointSlice(Arc::new(plain!(EndpointSlice, kind, node))),
        Kind::Namespace => Object::Namespace(Arc::new(plain!(Namespace, kind, node))),
        Kind::Node => Object::Node(Arc::new(plain!(Node, kind, node))),
        Kind::Pod => {
            let pod = plain!(Pod, kind, node);
            names::check_account(&pod.spec.service_account_name)
                .map_err(|message| at(node, "spec.serviceAccountName".to_owned(), message))?;
            Object::Pod(Arc::new(pod))
        }
        Kind::Service => Object::Service(Arc::new(plain!(Service, kind, node))),
        Kind::Gateway => Object::Gateway(Arc::new(plain!(Gateway, kind, node))),
        Kind::GatewayClass => Object::GatewayClass(Arc::new(plain!(GatewayClass, kind, node))),
        Kind::ServiceAccount => Object::ServiceAccount(Arc::new(plain!(ServiceAccount, kind, node))),
        Kind::ServiceEntry => {
            let entry = plain!(ServiceEntry, kind, node);
            entries::check_service(&entry).map_err(|(field, message)| at(node, field, message))?;
            Object::ServiceEntry(Arc::new(entry))
        }
        Kind::WorkloadEntry => {
            let entry = plain!(WorkloadEntry, kind, node);
            entries::check_workload(&entry).map_err(|(field, message)| at(node, field, message))?;
            Object::WorkloadEntry(Arc::new(entry))
        }
    })
}

fn at(node: &Node, field: String, message: String) -> FieldError {
    FieldError { line: node.line_of(&field), field, message }
}

/// Fills in the namespace, as the API server does, and checks what it checks.
fn complete(kind: Kind, metadata: &mut Metadata, node: &Node) -> Result<(), FieldError> {
    if !kind.namespaced() {
        metadata.namespace.clear();
    } else if metadata.namespace.is_empty() {
        metadata.namespace = "default".to_owned();
    }
    names::check(kind, metadata).map_err(|(field, message)| at(node, format!("metadata.{field}"), message))
}
