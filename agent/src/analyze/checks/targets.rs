//! `targetRefs`: whether a waypoint will ever enforce the policy.

use super::super::foreign::{TargetRef, target_refs};
use super::super::index::Policy;
use super::super::{Code, Index, Message};
use crate::model::waypoint::Choice;
use crate::policy::Attachment;
use crate::waypoint::CLASS;

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for policy in index.policies.iter().filter(|p| p.object.attachment == Attachment::Waypoint) {
        for (field, target) in target_refs(policy.origin.document) {
            out.extend(judge(index, policy, &field, &target));
        }
    }
}

fn judge(index: &Index<'_>, policy: &Policy<'_>, field: &str, target: &TargetRef) -> Option<Message> {
    let namespace = policy.origin.namespace;
    let name = (namespace, target.name.as_str());
    // The parser has refused other kinds.
    let found = match target.kind.as_str() {
        "Service" => index.services.contains_key(&name),
        "ServiceEntry" => index.service_entries.contains_key(&name),
        "Gateway" => index.gateways.contains_key(&name),
        _ if namespace == index.settings.root_namespace => {
            target.name == CLASS || index.gateway_classes.contains_key(target.name.as_str())
        }
        _ => {
            let text = format!(
                "Schema validation error: {field}: only a policy of the root namespace ({}) may have a GatewayClass as \
                 its target",
                index.settings.root_namespace
            );
            return Some(policy.origin.message(Code::SchemaValidationError, field, text));
        }
    };
    if !found {
        let home = if target.kind == "GatewayClass" { String::new() } else { format!("{namespace}/") };
        let text = format!("Referenced {} not found: \"{home}{}\"", target.kind, target.name);
        return Some(policy.origin.message(Code::ReferencedResourceNotFound, field, text));
    }
    without_waypoint(index, policy, field, target)
}

fn without_waypoint(
    index: &Index<'_>,
    policy: &Policy<'_>,
    field: &str,
    target: &TargetRef,
) -> Option<Message> {
    let name = (policy.origin.namespace, target.name.as_str());
    let own = match target.kind.as_str() {
        "Service" => &index.services.get(&name)?.object.metadata.labels,
        "ServiceEntry" => &index.service_entries.get(&name)?.object.metadata.labels,
        _ => return None,
    };
    match index.waypoint(own, name.0) {
        Some(Choice::Gateway { .. }) => None,
        Some(Choice::OptOut) | None => {
            let text = format!(
                "The policy has no impact: {} {}/{} is not bound to a waypoint; label it or its namespace \
                 istio.io/use-waypoint=<name of the waypoint's Gateway>.",
                target.kind, name.0, name.1
            );
            Some(policy.origin.message(Code::IneffectivePolicy, field, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{gateway, named_policy, namespace, policy, service, texts};

    /// The messages about a policy with this target, but for the one that waypoints enforce it.
    fn about(target: &str, others: &[String]) -> Vec<String> {
        let text = format!("{}{}", others.concat(), policy(&format!("{{targetRefs: [{target}]}}")));
        texts(&text).into_iter().filter(|text| !text.contains("CUL0111")).collect()
    }

    #[track_caller]
    fn one(target: &str, others: &[String], code: &str, part: &str) {
        let found = about(target, others);
        assert!(found.len() == 1 && found[0].contains(code) && found[0].contains(part), "{found:?}");
    }

    #[test]
    fn a_target_that_is_not_there_is_found() {
        let code = "Error [IST0101] (AuthorizationPolicy a/p f.yaml:";
        one("{kind: Service, name: s}", &[], code, "Referenced Service not found: \"a/s\"");
        one("{kind: Service, group: core, name: s}", &[service("b", "s", "{}", "[]")], code, "a/s");
        one("{kind: Gateway, group: gateway.networking.k8s.io, name: g}", &[], code, "Gateway not found");
        one("{kind: ServiceEntry, group: networking.istio.io, name: e}", &[], code, "ServiceEntry not found");
    }

    #[test]
    fn a_target_of_another_kind_or_namespace_is_invalid() {
        one(
            "{kind: Pod, name: x}",
            &[],
            "Error [IST0106]",
            "spec.targetRefs[0]: Pod of group \"\" cannot be",
        );
        one("{kind: Gateway, name: x}", &[], "IST0106", "Gateway of group \"\" cannot be a target");
        one("{kind: Service, name: x, namespace: b}", &[], "IST0106", "in the policy's own namespace, a");
        let class = "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}";
        one(class, &[], "IST0106", "only a policy of the root namespace (istio-system)");
    }

    #[test]
    fn a_class_of_gateways_is_known_or_istios() {
        let of = |class: &str| {
            let target = format!("{{kind: GatewayClass, group: gateway.networking.k8s.io, name: {class}}}");
            let policy = named_policy("istio-system", "p", &format!("{{targetRefs: [{target}]}}"));
            texts(&policy).into_iter().filter(|text| !text.contains("CUL0111")).collect::<Vec<_>>()
        };
        assert!(of("istio-waypoint").is_empty());
        let found = of("other");
        assert!(
            found.len() == 1 && found[0].contains("Referenced GatewayClass not found: \"other\""),
            "{found:?}"
        );
    }

    #[test]
    fn a_service_without_a_waypoint_enforces_nothing() {
        let target = "{kind: Service, name: s}";
        let service = |labels: &str| service("a", "s", labels, "[]");
        let part = "Service a/s is not bound to a waypoint";
        one(target, &[service("{}")], "Warning [IST0167]", part);
        let labelled =
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: w}}\n---\n";
        one(
            target,
            &[gateway("a", "w"), labelled.to_owned(), service("{istio.io/use-waypoint: none}")],
            "IST0167",
            part,
        );
        assert!(about(target, &[gateway("a", "w"), labelled.to_owned(), service("{}")]).is_empty());
        let own = [gateway("a", "w"), namespace("a"), service("{istio.io/use-waypoint: w}")];
        assert!(about(target, &own).is_empty());
    }
}
