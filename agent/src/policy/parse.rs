//! From the written objects to valid ones; what Istio's admission webhook refuses is refused here.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::raw::{self, RawAction, RawCondition, RawOperation, RawRule, RawSource};
use super::*;

/// A field of a policy that cannot be accepted.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{field}: {message}")]
pub struct InvalidField {
    /// Its path, such as `spec.rules[0].to[0].operation.ports[0]`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

fn invalid<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, InvalidField> {
    Err(InvalidField { field: field.into(), message: message.into() })
}

impl TryFrom<RawAuthorizationPolicy> for AuthorizationPolicy {
    type Error = InvalidField;

    fn try_from(raw: RawAuthorizationPolicy) -> Result<Self, InvalidField> {
        let RawAuthorizationPolicy { metadata, spec } = raw;
        check_action(&spec)?;
        check_custom(&spec)?;
        let attachment = attachment(&spec, &metadata.namespace)?;
        let dry_run = dry_run(metadata.annotations.get("istio.io/dry-run"), spec.action)?;
        let rules = spec
            .rules
            .iter()
            .enumerate()
            .map(|(n, r)| rule(r, &format!("spec.rules[{n}]"), &metadata.namespace))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            namespace: metadata.namespace,
            name: metadata.name,
            action: match spec.action {
                RawAction::Allow => Action::Allow,
                RawAction::Audit => Action::Audit,
                RawAction::Custom => Action::Custom,
                RawAction::Deny => Action::Deny,
            },
            attachment,
            dry_run,
            rules,
        })
    }
}

fn check_action(spec: &raw::AuthorizationSpec) -> Result<(), InvalidField> {
    if spec.action != RawAction::Allow && spec.rules.is_empty() {
        return invalid(
            "spec.rules",
            "only an ALLOW policy may have no rules; `rules: [{}]` matches everything",
        );
    }
    match (&spec.provider, spec.action) {
        (None, RawAction::Custom) => invalid("spec.provider", "a CUSTOM policy must name its provider"),
        (Some(p), RawAction::Custom) if p.name.is_empty() => {
            invalid("spec.provider.name", "a CUSTOM policy must name its provider")
        }
        (None, _) | (Some(_), RawAction::Custom) => Ok(()),
        (Some(_), _) => invalid("spec.provider", "only a CUSTOM policy has a provider"),
    }
}

/// A provider is asked before the peer's identity counts, so such a policy cannot depend on it.
fn check_custom(spec: &raw::AuthorizationSpec) -> Result<(), InvalidField> {
    if spec.action != RawAction::Custom {
        return Ok(());
    }
    let wrong = "a CUSTOM policy cannot depend on the peer's identity or a token";
    for (n, rule) in spec.rules.iter().enumerate() {
        for (m, from) in rule.from.iter().flatten().enumerate() {
            let blocks = ["ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks"];
            let lists = from.source.lists();
            let used = lists.iter().find(|(name, list)| !list.is_empty() && !blocks.contains(name));
            if let Some((name, _)) = used {
                return invalid(format!("spec.rules[{n}].from[{m}].source.{}", camel(name)), wrong);
            }
        }
        let identity = |key: &str| {
            key.starts_with("request.auth.") || (key.starts_with("source.") && key != "source.ip")
        };
        if let Some(m) = rule.when.iter().position(|when| identity(&when.key)) {
            return invalid(format!("spec.rules[{n}].when[{m}].key"), wrong);
        }
    }
    Ok(())
}

/// Istio reads what Go's `strconv.ParseBool` does.
fn dry_run(annotation: Option<&String>, action: RawAction) -> Result<bool, InvalidField> {
    let field = "metadata.annotations";
    match annotation.map(String::as_str) {
        None | Some("" | "0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
        Some("1" | "t" | "T" | "true" | "True" | "TRUE") if action == RawAction::Custom => {
            invalid(field, "istio.io/dry-run: a CUSTOM policy has no dry run")
        }
        Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
        Some(other) => invalid(field, format!("istio.io/dry-run: {other:?} is neither true nor false")),
    }
}

/// Kinds that a policy may be attached to, with their groups.
const TARGETS: [(&str, &[&str]); 4] = [
    ("Service", &["", "core"]),
    ("ServiceEntry", &["networking.istio.io"]),
    ("Gateway", &["gateway.networking.k8s.io"]),
    ("GatewayClass", &["gateway.networking.k8s.io"]),
];

fn attachment(spec: &raw::AuthorizationSpec, namespace: &str) -> Result<Attachment, InvalidField> {
    let targets = spec.target_refs.iter().chain(&spec.target_ref);
    if targets.clone().count() > 16 {
        return invalid("spec.targetRefs", "at most 16 targets");
    }
    if targets.clone().any(|t| t.kind.is_empty() || t.name.is_empty()) {
        return invalid("spec.targetRefs", "each target needs a kind and a name");
    }
    for (n, target) in targets.clone().enumerate() {
        let field = format!("spec.targetRefs[{n}]");
        let known = TARGETS
            .iter()
            .any(|(kind, groups)| *kind == target.kind && groups.contains(&target.group.as_str()));
        if !known {
            return invalid(
                field,
                format!(
                    "{} of group {:?} cannot be a target; use a Service (group \"\"), a ServiceEntry (networking.istio.io), a \
                     Gateway or a GatewayClass (gateway.networking.k8s.io)",
                    target.kind, target.group
                ),
            );
        }
        if !target.namespace.is_empty() && target.namespace != namespace {
            let message = format!("a target must be in the policy's own namespace, {namespace}");
            return invalid(field, message);
        }
    }
    match (&spec.selector, targets.count()) {
        (Some(_), 1..) => invalid("spec.selector", "a policy has a selector or targetRefs, not both"),
        (_, 1..) => Ok(Attachment::Waypoint),
        (selector, 0) => selected(selector.as_ref()),
    }
}

/// An empty selector is none at all, as in Istio.
fn selected(selector: Option<&raw::Selector>) -> Result<Attachment, InvalidField> {
    match selector {
        Some(selector) if !selector.match_labels.is_empty() => {
            if selector.match_labels.keys().any(String::is_empty) {
                return invalid("spec.selector.matchLabels", "a label needs a name");
            }
            Ok(Attachment::Selector(selector.match_labels.clone()))
        }
        _ => Ok(Attachment::All),
    }
}

fn rule(raw: &RawRule, field: &str, namespace: &str) -> Result<Rule, InvalidField> {
    let mut rule = Rule::default();
    if raw.from.as_ref().is_some_and(Vec::is_empty) {
        return invalid(format!("{field}.from"), "must have a source; leave `from` out to match any peer");
    }
    if raw.to.as_ref().is_some_and(Vec::is_empty) {
        return invalid(format!("{field}.to"), "must have an operation; leave `to` out to match any");
    }
    for (n, from) in raw.from.iter().flatten().enumerate() {
        rule.from.push(source(&from.source, &format!("{field}.from[{n}].source"), namespace)?);
    }
    for (n, to) in raw.to.iter().flatten().enumerate() {
        rule.to.push(operation(&to.operation, &format!("{field}.to[{n}].operation"))?);
    }
    for (n, when) in raw.when.iter().enumerate() {
        rule.when.push(condition(when, &format!("{field}.when[{n}]"))?);
    }
    Ok(rule)
}

fn check_lists(lists: &[(&'static str, &[String])], field: &str) -> Result<(), InvalidField> {
    if lists.iter().all(|(_, list)| list.is_empty()) {
        return invalid(field, "must not be empty");
    }
    for (name, list) in lists {
        if let Some(n) = list.iter().position(String::is_empty) {
            return invalid(format!("{field}.{}[{n}]", camel(name)), "must not be an empty text");
        }
    }
    Ok(())
}

fn camel(snake: &str) -> String {
    let mut parts = snake.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + &part[..1].to_uppercase() + &part[1..])
}

fn source(raw: &RawSource, field: &str, namespace: &str) -> Result<Source, InvalidField> {
    check_lists(&raw.lists(), field)?;
    let accounts = !raw.service_accounts.is_empty() || !raw.not_service_accounts.is_empty();
    let others = [&raw.principals, &raw.not_principals, &raw.namespaces, &raw.not_namespaces];
    if accounts && others.iter().any(|list| !list.is_empty()) {
        return invalid(
            format!("{field}.serviceAccounts"),
            "cannot be combined with principals or namespaces in one source; use two sources",
        );
    }
    let names = |list: &[String], name: &str| service_accounts(list, &format!("{field}.{name}"), namespace);
    let blocks = |list: &[String], name: &str| blocks(list, &format!("{field}.{name}"));
    Ok(Source {
        principals: strings(&raw.principals),
        not_principals: strings(&raw.not_principals),
        namespaces: strings(&raw.namespaces),
        not_namespaces: strings(&raw.not_namespaces),
        service_accounts: names(&raw.service_accounts, "serviceAccounts")?,
        not_service_accounts: names(&raw.not_service_accounts, "notServiceAccounts")?,
        ip_blocks: blocks(&raw.ip_blocks, "ipBlocks")?,
        not_ip_blocks: blocks(&raw.not_ip_blocks, "notIpBlocks")?,
        remote_ip_blocks: blocks(&raw.remote_ip_blocks, "remoteIpBlocks")?,
        not_remote_ip_blocks: blocks(&raw.not_remote_ip_blocks, "notRemoteIpBlocks")?,
        request_principals: strings(&raw.request_principals),
        not_request_principals: strings(&raw.not_request_principals),
        trust_domains: strings(&raw.trust_domains),
        not_trust_domains: strings(&raw.not_trust_domains),
    })
}

fn operation(raw: &RawOperation, field: &str) -> Result<Operation, InvalidField> {
    check_lists(&raw.lists(), field)?;
    for (name, list) in [("paths", &raw.paths), ("notPaths", &raw.not_paths)] {
        if let Some(n) = list.iter().position(|path| !path_is_valid(path)) {
            return invalid(
                format!("{field}.{name}[{n}]"),
                "a path template has whole segments {*} or {**}, {**} as the last of them, and no other `*` or braces",
            );
        }
    }
    Ok(Operation {
        ports: ports(&raw.ports, &format!("{field}.ports"))?,
        not_ports: ports(&raw.not_ports, &format!("{field}.notPorts"))?,
        hosts: strings(&raw.hosts),
        not_hosts: strings(&raw.not_hosts),
        methods: strings(&raw.methods),
        not_methods: strings(&raw.not_methods),
        paths: strings(&raw.paths),
        not_paths: strings(&raw.not_paths),
    })
}

/// Of `{*}` (one segment) and `{**}` (any number, at the end) each is a whole segment, and nothing else is a wildcard.
fn path_is_valid(path: &str) -> bool {
    if !path.contains("{*}") && !path.contains("{**}") {
        return true;
    }
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let operators = segments.iter().filter(|s| matches!(**s, "{*}" | "{**}")).count();
    let plain = segments.iter().all(|s| matches!(*s, "{*}" | "{**}") || !s.contains(['*', '{', '}']));
    let last = segments.iter().filter(|s| matches!(**s, "{*}" | "{**}")).position(|s| *s == "{**}");
    plain && last.is_none_or(|at| at + 1 == operators)
}

fn condition(raw: &RawCondition, field: &str) -> Result<Condition, InvalidField> {
    let RawCondition { key, values, not_values } = raw;
    if key.is_empty() {
        return invalid(format!("{field}.key"), "must not be empty");
    }
    if values.is_empty() && not_values.is_empty() {
        return invalid(field, "needs `values` or `notValues`");
    }
    let (v, n) = (format!("{field}.values"), format!("{field}.notValues"));
    for (list, field) in [(values, &v), (not_values, &n)] {
        if let Some(at) = list.iter().position(String::is_empty) {
            return invalid(format!("{field}[{at}]"), "must not be an empty text");
        }
    }
    let (texts, not_texts) = (strings(values), strings(not_values));
    let test = match key.as_str() {
        "destination.ip" => {
            ConditionKey::DestinationIp { values: blocks(values, &v)?, not_values: blocks(not_values, &n)? }
        }
        "destination.port" => {
            ConditionKey::DestinationPort { values: ports(values, &v)?, not_values: ports(not_values, &n)? }
        }
        "source.ip" => {
            ConditionKey::SourceIp { values: blocks(values, &v)?, not_values: blocks(not_values, &n)? }
        }
        "source.namespace" => ConditionKey::SourceNamespace { values: texts, not_values: not_texts },
        "source.principal" => ConditionKey::SourcePrincipal { values: texts, not_values: not_texts },
        "remote.ip" => {
            blocks(values, &v)?;
            blocks(not_values, &n)?;
            ConditionKey::Other { values: texts, not_values: not_texts }
        }
        other if l7_key(other) => ConditionKey::Other { values: texts, not_values: not_texts },
        _ => return invalid(format!("{field}.key"), format!("unknown attribute {key:?}")),
    };
    Ok(Condition { key: key.clone(), test })
}

fn l7_key(key: &str) -> bool {
    let bracketed = |k: &str| k.starts_with('[') && k.ends_with(']') && !k.contains("[]");
    let indexed = |name: &str| key.strip_prefix(name).is_some_and(bracketed);
    let filter = key.strip_prefix("experimental.envoy.filters.").and_then(|k| k.find('[').map(|at| &k[at..]));
    indexed("request.headers")
        || indexed("request.auth.claims")
        || filter.is_some_and(bracketed)
        || matches!(
            key,
            "source.serviceAccount"
                | "source.trustDomain"
                | "request.auth.principal"
                | "request.auth.audiences"
                | "request.auth.presenter"
                | "connection.sni"
        )
}

fn strings(list: &[String]) -> Vec<StringMatch> {
    list.iter().map(|text| StringMatch::from(text.as_str())).collect()
}

fn ports(list: &[String], field: &str) -> Result<Vec<u16>, InvalidField> {
    parse_all(list, field, "is not a port from 1 to 65535", |text| text.parse().ok().filter(|port| *port > 0))
}

fn blocks(list: &[String], field: &str) -> Result<Vec<IpNet>, InvalidField> {
    parse_all(list, field, "is neither an IP address nor a CIDR block", |text| {
        let block = text.parse().ok().or_else(|| text.parse().ok().map(|ip: IpAddr| IpNet::from(ip)));
        block.map(unmapped)
    })
}

/// Peers of a dual-stack socket show as IPv4, so a block of IPv4-mapped addresses means the IPv4 block.
fn unmapped(block: IpNet) -> IpNet {
    let mapped = match block {
        IpNet::V6(block) => block.addr().to_ipv4_mapped().zip(block.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(ip, bits)| Ipv4Net::new(ip, bits).ok()).map_or(block, IpNet::V4)
}

fn service_accounts(
    list: &[String],
    field: &str,
    namespace: &str,
) -> Result<Vec<ServiceAccountName>, InvalidField> {
    if list.len() > 16 {
        return invalid(field, "at most 16 service accounts");
    }
    parse_all(list, field, "is not `namespace/name` or `name` without wildcards", |text| {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        let plain = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
        (plain(namespace) && plain(name))
            .then(|| ServiceAccountName { namespace: namespace.to_owned(), name: name.to_owned() })
    })
}

fn parse_all<T>(
    list: &[String],
    field: &str,
    wrong: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, InvalidField> {
    list.iter()
        .enumerate()
        .map(|(n, text)| match parse(text) {
            Some(value) => Ok(value),
            None => invalid(format!("{field}[{n}]"), format!("{text:?} {wrong}")),
        })
        .collect()
}

impl TryFrom<RawPeerAuthentication> for PeerAuthentication {
    type Error = InvalidField;

    fn try_from(raw: RawPeerAuthentication) -> Result<Self, InvalidField> {
        let RawPeerAuthentication { metadata, spec } = raw;
        let mut port_modes = std::collections::BTreeMap::new();
        for (text, mtls) in &spec.port_level_mtls {
            match text.parse() {
                Ok(port) if port > 0 => port_modes.insert(port, mtls.mode),
                _ => {
                    return invalid(
                        format!("spec.portLevelMtls.{text}"),
                        format!("{text:?} is not a port from 1 to 65535"),
                    );
                }
            };
        }
        let selector = match selected(spec.selector.as_ref())? {
            Attachment::Selector(labels) => Some(labels),
            Attachment::All | Attachment::Behind(_) | Attachment::Waypoint => None,
        };
        Ok(Self {
            namespace: metadata.namespace,
            name: metadata.name,
            created: metadata.creation_timestamp,
            selector,
            mode: spec.mtls.mode,
            port_modes,
        })
    }
}
