//! What the API server checks of every object's metadata. The rest of the agent relies on it: with a `/` in its name, a
//! service account could pass for another one.

use crate::control::Kind;
use crate::control::objects::Metadata;

/// The longest name, as in Kubernetes.
const MAX_NAME: usize = 253;
/// The longest namespace and the longest label value, as in Kubernetes.
const MAX_LABEL: usize = 63;

/// The error: the field inside `metadata`, and what is wrong with it.
pub(super) fn check(kind: Kind, metadata: &Metadata) -> Result<(), (String, String)> {
    let wrong = |field: &str, message: String| Err((field.to_owned(), message));
    if metadata.name.is_empty() {
        return wrong("name", "must not be empty".to_owned());
    }
    if !is_subdomain(&metadata.name) || (kind == Kind::Namespace && !is_label(&metadata.name)) {
        return wrong("name", not_a_name(&metadata.name));
    }
    if kind.namespaced() && !is_label(&metadata.namespace) {
        return wrong("namespace", not_a_name(&metadata.namespace));
    }
    if metadata.uid.len() > MAX_NAME
        || metadata.uid.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-')
    {
        return wrong("uid", "has letters, digits and '-' only, and at most 253".to_owned());
    }
    if let Some((key, _)) = metadata.labels.iter().find(|(_, value)| !is_label_value(value)) {
        let message = "a label's value has at most 63 letters, digits, '-', '_' and '.'".to_owned();
        return wrong(&format!("labels.{key}"), message);
    }
    match &metadata.creation_timestamp {
        Some(time) if time.parse::<jiff::Timestamp>().is_err() => {
            wrong("creationTimestamp", format!("{time:?} is no time as in RFC 3339"))
        }
        _ => Ok(()),
    }
}

/// A pod's service account; empty: `default`.
pub(super) fn check_account(name: &str) -> Result<(), String> {
    if name.is_empty() || is_subdomain(name) { Ok(()) } else { Err(not_a_name(name)) }
}

fn not_a_name(text: &str) -> String {
    let shown: String = text.chars().take(MAX_LABEL).collect();
    format!(
        "{shown:?} is no name: lower-case letters, digits and '-', at most 63 for a namespace; elsewhere '.' too, and 253"
    )
}

/// RFC 1123, as Kubernetes reads it.
fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_part(text)
}

fn is_subdomain(text: &str) -> bool {
    // Kubernetes does not limit a part by itself.
    text.len() <= MAX_NAME && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_label_value(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let end = |c: Option<u8>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL
        && text.bytes().all(inner)
        && end(text.bytes().next())
        && end(text.bytes().next_back())
}
