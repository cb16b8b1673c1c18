//! The reference: the semantics written down a second time, straight from the objects and as plainly as possible. It shares
//! nothing with the compiler and judges it in tests.

use crate::control::Object;
use crate::control::objects::{Action, MtlsMode, Source};
use crate::identity::SpiffeId;
use crate::model::{Workload, World};

pub(super) fn allowed(world: &World, root: &str, to: &Workload, peer: Option<&SpiffeId>, port: u16) -> bool {
    if peer.is_none() && strict(world, root, to, port) {
        return false;
    }
    let mut any_allow_policy = false;
    let mut allow_matched = false;
    for object in world.objects() {
        let Object::AuthorizationPolicy(policy) = object else { continue };
        let spec = &policy.spec;
        let in_scope = policy.metadata.namespace == root || policy.metadata.namespace == to.namespace;
        let selected = match &spec.selector {
            None => true,
            Some(s) => s.match_labels.iter().all(|(k, v)| to.labels.get(k).is_some_and(|x| x == v)),
        };
        if !in_scope || !selected || !spec.target_refs.is_empty() || spec.target_ref.is_some() {
            continue;
        }
        let matched = spec.rules.iter().any(|rule| {
            let l7 = rule.from.iter().any(|f| beyond_l4(&f.source))
                || rule.to.iter().any(|t| {
                    let o = &t.operation;
                    [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths]
                        .iter()
                        .any(|l| !l.is_empty())
                })
                || !rule.when.is_empty();
            if l7 && spec.action == Action::Allow {
                return false;
            }
            let from = rule.from.is_empty()
                || rule.from.iter().any(|f| source_matches(&f.source, peer, &policy.metadata.namespace));
            let to = rule.to.is_empty()
                || rule.to.iter().any(|t| {
                    let is = |p: &String| p == &port.to_string();
                    (t.operation.ports.is_empty() || t.operation.ports.iter().any(is))
                        && !t.operation.not_ports.iter().any(is)
                });
            from && to
        });
        match spec.action {
            Action::Deny if matched => return false,
            Action::Allow => {
                any_allow_policy = true;
                allow_matched |= matched;
            }
            _ => {}
        }
    }
    !any_allow_policy || allow_matched
}

fn beyond_l4(s: &Source) -> bool {
    !(s.request_principals.is_empty()
        && s.not_request_principals.is_empty()
        && s.ip_blocks.is_empty()
        && s.not_ip_blocks.is_empty()
        && s.remote_ip_blocks.is_empty()
        && s.not_remote_ip_blocks.is_empty())
}

fn source_matches(s: &Source, peer: Option<&SpiffeId>, policy_namespace: &str) -> bool {
    let principal = peer.map(|p| p.to_string().replacen("spiffe://", "", 1));
    let namespace = peer.map(|p| p.namespace().to_owned());
    let account = peer.map(|p| format!("{}/{}", p.namespace(), p.service_account()));
    let one =
        |pattern: &String, value: &Option<String>| value.as_deref().is_some_and(|v| wildcard(pattern, v));
    let sa = |pattern: &String| {
        let full =
            if pattern.contains('/') { pattern.clone() } else { format!("{policy_namespace}/{pattern}") };
        account.as_ref() == Some(&full)
    };
    (s.principals.is_empty() || s.principals.iter().any(|p| one(p, &principal)))
        && !s.not_principals.iter().any(|p| one(p, &principal))
        && (s.namespaces.is_empty() || s.namespaces.iter().any(|p| one(p, &namespace)))
        && !s.not_namespaces.iter().any(|p| one(p, &namespace))
        && (s.service_accounts.is_empty() || s.service_accounts.iter().any(sa))
        && !s.not_service_accounts.iter().any(sa)
}

fn wildcard(pattern: &str, value: &str) -> bool {
    if pattern == "*" {
        return !value.is_empty();
    }
    if let Some(suffix) = pattern.strip_prefix('*') {
        return value.ends_with(suffix);
    }
    if let Some(prefix) = pattern.strip_suffix('*') {
        return value.starts_with(prefix);
    }
    pattern == value
}

fn strict(world: &World, root: &str, to: &Workload, port: u16) -> bool {
    let mut scopes = [None, None, None];
    for object in world.objects() {
        let Object::PeerAuthentication(p) = object else { continue };
        let selector = p.spec.selector.as_ref().filter(|s| !s.match_labels.is_empty());
        let scope = match selector {
            None if p.metadata.namespace == root => 0,
            None if p.metadata.namespace == to.namespace => 1,
            Some(s) if p.metadata.namespace == to.namespace && p.metadata.namespace != root => {
                if !s.match_labels.iter().all(|(k, v)| to.labels.get(k) == Some(v)) {
                    continue;
                }
                2
            }
            _ => continue,
        };
        let older = |old: &&crate::control::objects::Resource<_>| {
            let key = |m: &crate::control::objects::Meta| {
                (m.creation_timestamp.clone().unwrap_or_else(|| "~".to_owned()), m.name.clone())
            };
            key(&old.metadata) <= key(&p.metadata)
        };
        if !scopes[scope].as_ref().is_some_and(older) {
            scopes[scope] = Some(p);
        }
    }
    if let Some(mode) = scopes[2].and_then(|p| p.spec.port_level_mtls.get(&port)).map(|m| m.mode)
        && mode != MtlsMode::Unset
    {
        return mode == MtlsMode::Strict;
    }
    for p in [scopes[2], scopes[1], scopes[0]].into_iter().flatten() {
        if p.spec.mtls.mode != MtlsMode::Unset {
            return p.spec.mtls.mode == MtlsMode::Strict;
        }
    }
    false
}
