//! From the text of a manifest file to objects, or to an error that names file, line, object and field.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ManifestError;
use super::objects::{Action, Object};

/// Files above this are refused, in bytes.
pub(super) const MAX_FILE: u64 = 64 << 20;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) objects: Vec<Object>,
    pub(super) ignored: BTreeMap<String, usize>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    kind: String,
    api_version: String,
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HeadMeta {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<serde_json::Value>,
}

impl Head {
    fn describe(&self) -> String {
        let kind = if self.kind.is_empty() { "object without kind" } else { &self.kind };
        match (self.metadata.namespace.as_str(), self.metadata.name.as_str()) {
            ("", "") => kind.to_owned(),
            ("", name) => format!("{kind} {name}"),
            (namespace, name) => format!("{kind} {namespace}/{name}"),
        }
    }
}

/// Parses every document of a file. The first error is the file's error.
pub(super) fn parse(file: &Path, text: &str) -> Result<Parsed, ManifestError> {
    let mut parsed = Parsed::default();
    if let Some(at) = text.find('\0') {
        let line = text[..at].matches('\n').count() as u64 + 1;
        return Err(error(file, Some(line), "file", "contains a NUL byte: it is not a YAML text"));
    }
    for (offset, document) in documents(text) {
        if document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            continue;
        }
        one(file, offset, document, &mut parsed)?;
    }
    Ok(parsed)
}

/// The documents of a YAML stream with the number of lines before each.
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut position) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare == "..." {
            documents.push((start_line, &text[start..position]));
            start = position + line.len();
            start_line = number as u64 + 1;
        }
        position += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents
}

fn one(file: &Path, offset: u64, text: &str, parsed: &mut Parsed) -> Result<(), ManifestError> {
    let head: Head = yaml(file, offset, "document", text)?;
    let object = head.describe();
    if head.kind.is_empty() {
        return Err(error(file, Some(offset + 1), &object, "field kind is missing"));
    }
    if head.kind == "List" || (head.kind.ends_with("List") && head.metadata.name.is_empty()) {
        let list: List = yaml(file, offset, &object, text)?;
        for (index, item) in list.items.into_iter().enumerate() {
            let mut text = item.to_string();
            // `PodList` items may leave their kind to the list.
            if item.get("kind").is_none() && head.kind != "List" {
                let mut item = item;
                item["kind"] = head.kind.trim_end_matches("List").into();
                item["apiVersion"] = head.api_version.clone().into();
                text = item.to_string();
            }
            one(file, 0, &text, parsed).map_err(|mut e| {
                e.line = None;
                e.object = format!("{object} item {index}: {}", e.object);
                e
            })?;
        }
        return Ok(());
    }
    match typed(file, offset, &head, &object, text)? {
        Some(object) => parsed.objects.push(object),
        None => *parsed.ignored.entry(head.kind).or_default() += 1,
    }
    Ok(())
}

fn typed(
    file: &Path,
    offset: u64,
    head: &Head,
    name: &str,
    text: &str,
) -> Result<Option<Object>, ManifestError> {
    let group = head.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let mut object = match (group, head.kind.as_str()) {
        ("security.istio.io", "AuthorizationPolicy") => {
            Object::AuthorizationPolicy(yaml(file, offset, name, text)?)
        }
        ("security.istio.io", "PeerAuthentication") => {
            Object::PeerAuthentication(yaml(file, offset, name, text)?)
        }
        ("discovery.k8s.io", "EndpointSlice") => Object::EndpointSlice(yaml(file, offset, name, text)?),
        ("", "Namespace") => Object::Namespace(yaml(file, offset, name, text)?),
        ("", "Node") => Object::Node(yaml(file, offset, name, text)?),
        ("", "Pod") => Object::Pod(yaml(file, offset, name, text)?),
        ("", "Service") => Object::Service(yaml(file, offset, name, text)?),
        ("", "ServiceAccount") => Object::ServiceAccount(yaml(file, offset, name, text)?),
        _ => return Ok(None),
    };
    let cluster_scoped = matches!(object, Object::Namespace(_) | Object::Node(_));
    let meta = object.meta_mut();
    if meta.name.is_empty() {
        return Err(error(file, Some(offset + 1), name, "field metadata.name is missing"));
    }
    if cluster_scoped {
        meta.namespace.clear();
    } else if meta.namespace.is_empty() {
        meta.namespace = "default".to_owned();
    }
    validate(&object).map_err(|message| error(file, Some(offset + 1), name, &message))?;
    Ok(Some(object))
}

/// What the types cannot say.
fn validate(object: &Object) -> Result<(), String> {
    let Object::AuthorizationPolicy(policy) = object else { return Ok(()) };
    let spec = &policy.spec;
    if spec.selector.is_some() && (spec.target_ref.is_some() || !spec.target_refs.is_empty()) {
        return Err("spec.selector and spec.targetRefs exclude each other: keep one".to_owned());
    }
    if spec.action != Action::Allow && spec.rules.is_empty() {
        return Err(
            "spec.rules is empty: only an ALLOW policy may have no rules (it then denies everything)"
                .to_owned(),
        );
    }
    for (r, rule) in spec.rules.iter().enumerate() {
        for (t, to) in rule.to.iter().enumerate() {
            for port in to.operation.ports.iter().chain(&to.operation.not_ports) {
                if !port.parse::<u16>().is_ok_and(|p| p > 0) {
                    return Err(format!(
                        "spec.rules[{r}].to[{t}].operation.ports: {port:?} is not a port: write a number from 1 to 65535"
                    ));
                }
            }
        }
        for (f, from) in rule.from.iter().enumerate() {
            check_source(&from.source).map_err(|m| format!("spec.rules[{r}].from[{f}].source.{m}"))?;
        }
    }
    Ok(())
}

fn check_source(source: &super::objects::Source) -> Result<(), String> {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
    ];
    for (field, values) in lists {
        if values.iter().any(String::is_empty) {
            return Err(format!("{field}: an empty string matches nothing: remove it"));
        }
    }
    for (field, values) in [("ipBlocks", &source.ip_blocks), ("notIpBlocks", &source.not_ip_blocks)] {
        for value in values {
            if value.parse::<ipnet::IpNet>().is_err() && value.parse::<std::net::IpAddr>().is_err() {
                return Err(format!("{field}: {value:?} is neither an address nor a CIDR block"));
            }
        }
    }
    Ok(())
}

fn yaml<T: DeserializeOwned>(file: &Path, offset: u64, object: &str, text: &str) -> Result<T, ManifestError> {
    serde_saphyr::from_str(text).map_err(|e| {
        let line = e.location().map(|l| offset + l.line());
        let message = e.without_snippet().to_string();
        error(file, line, object, message.lines().next().unwrap_or("cannot be parsed"))
    })
}

fn error(file: &Path, line: Option<u64>, object: &str, message: &str) -> ManifestError {
    ManifestError { file: file.to_owned(), line, object: object.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) -> Parsed {
        parse(Path::new("m.yaml"), text).unwrap()
    }

    fn err(text: &str) -> ManifestError {
        parse(Path::new("m.yaml"), text).unwrap_err()
    }

    #[test]
    fn documents_lists_and_unknown_kinds_are_read() {
        let parsed = ok("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# nothing\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n\
             - {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n---\n\
             apiVersion: v1\nkind: ServiceAccountList\nitems:\n- metadata: {name: x, namespace: a}\n");
        assert_eq!(
            parsed.objects.iter().map(Object::kind).collect::<Vec<_>>(),
            ["Namespace", "Node", "ServiceAccount"]
        );
        assert_eq!(parsed.ignored.get("Deployment"), Some(&1));
    }

    #[test]
    fn an_empty_spec_is_an_allow_policy_without_rules() {
        let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n";
        for spec in ["spec: {}\n", "spec:\n", "", "spec:\n  {}   # nothing\n"] {
            let parsed = ok(&format!("{head}{spec}"));
            let Object::AuthorizationPolicy(policy) = &parsed.objects[0] else { panic!() };
            assert_eq!((policy.spec.action, policy.spec.rules.len()), (Action::Allow, 0), "{spec:?}");
        }
    }

    #[test]
    fn errors_name_line_object_and_field() {
        let e = err(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: security.istio.io/v1\n\
             kind: PeerAuthentication\nmetadata: {name: p, namespace: a}\nspec:\n  mtls:\n    mode: STRIKT\n",
        );
        assert_eq!(e.object, "PeerAuthentication a/p");
        assert_eq!(e.line, Some(10));
        assert!(e.message.contains("STRIKT"), "{e}");
        let e = err("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
             spec: {rules: [{to: [{operation: {ports: [http]}}]}]}\n");
        assert!(e.to_string().contains("spec.rules[0].to[0].operation.ports"), "{e}");
        let e = err("kind: Pod\nmetadata: {name: [1\n");
        assert!(e.line.is_some(), "{e}");
        assert!(err("a\0b").message.contains("NUL"));
        assert!(err("apiVersion: v1\nmetadata: {name: a}\n").message.contains("kind"));
        assert!(err("apiVersion: v1\nkind: Pod\nmetadata: {labels: {}}\n").message.contains("metadata.name"));
    }

    #[test]
    fn a_policy_cannot_have_both_selector_and_target() {
        let e = err("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
             spec: {selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: x}]}\n");
        assert!(e.message.contains("targetRefs"), "{e}");
    }
}
