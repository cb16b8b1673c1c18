//! Routes and what else only a waypoint reads.

use super::super::foreign::target_refs;
use super::super::index::{Enrolment, Name};
use super::super::l7::{Attached, Reference, Route, spec_of};
use super::super::message::Origin;
use super::super::{Code, Index, Message};
use crate::model::waypoint::{Choice, USE};
use crate::waypoint::CLASS;

const ROUTES: &[&str] = &["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"];
/// Group and kind of what is attached to workloads or to targets.
const ATTACHED: &[(&str, &str)] = &[
    ("security.istio.io", "RequestAuthentication"),
    ("telemetry.istio.io", "Telemetry"),
    ("networking.istio.io", "EnvoyFilter"),
    ("extensions.istio.io", "WasmPlugin"),
];

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for origin in &index.objects {
        if let Some(route) = spec_of::<Route>(origin.document, "gateway.networking.k8s.io", ROUTES) {
            parents(index, origin, &route, out);
            backends(index, origin, &route, out);
        }
        for (group, kind) in ATTACHED {
            if let Some(attached) = spec_of::<Attached>(origin.document, group, &[kind]) {
                out.extend(unread(index, origin, &attached));
            }
        }
    }
}

/// Why nothing with L7 sees what goes to a Service or a ServiceEntry; `None`: something does, or it is not there.
pub(super) fn without_waypoint(index: &Index<'_>, kind: &str, name: Name<'_>) -> Option<String> {
    let (namespace, called) = name;
    let choice = match kind {
        "Service" => index
            .services
            .get(&name)
            .map(|item| index.waypoint(&item.object.metadata.labels, item.origin.namespace))?,
        _ => index
            .service_entries
            .get(&name)
            .map(|e| index.waypoint(&e.object.metadata.labels, e.origin.namespace))?,
    };
    match choice {
        Some(Choice::Gateway { .. }) => None,
        Some(Choice::OptOut) | None => Some(format!(
            "{kind} {namespace}/{called} has no waypoint, and without one only L4 counts; label it or its namespace {USE}=<name of the \
             waypoint's Gateway>."
        )),
    }
}

fn service<'r>(index: &Index<'_>, reference: &'r Reference, namespace: &'r str) -> Option<Name<'r>> {
    let name = (reference.namespace.as_deref().unwrap_or(namespace), reference.name.as_str());
    index.services.contains_key(&name).then_some(name)
}

fn missing(origin: &Origin<'_>, field: &str, reference: &Reference) -> Message {
    let namespace = reference.namespace.as_deref().unwrap_or(origin.namespace);
    let text = format!("Referenced Service not found: \"{namespace}/{}\"", reference.name);
    origin.message(Code::ReferencedResourceNotFound, field, text)
}

fn parents(index: &Index<'_>, origin: &Origin<'_>, route: &Route, out: &mut Vec<Message>) {
    for (n, parent) in route.parent_refs.iter().enumerate().filter(|(_, parent)| parent.is_service("Gateway"))
    {
        let field = format!("spec.parentRefs[{n}]");
        let Some(name) = service(index, parent, origin.namespace) else {
            out.push(missing(origin, &field, parent));
            continue;
        };
        if let Some(why) = without_waypoint(index, "Service", name).filter(|_| !index.has_other_proxies()) {
            let text = format!("{} has no effect: {why}", origin.document.kind);
            out.push(origin.message(Code::NeedsWaypoint, &field, text));
        }
    }
}

fn backends(index: &Index<'_>, origin: &Origin<'_>, route: &Route, out: &mut Vec<Message>) {
    for (n, rule) in route.rules.iter().enumerate() {
        for (m, backend) in rule.backend_refs.iter().enumerate().filter(|(_, b)| b.is_service("Service")) {
            if service(index, backend, origin.namespace).is_none() {
                out.push(missing(origin, &format!("spec.rules[{n}].backendRefs[{m}]"), backend));
            }
        }
    }
}

/// Of what is attached, by `targetRefs` or a selector, nobody may read it.
fn unread(index: &Index<'_>, origin: &Origin<'_>, attached: &Attached) -> Option<Message> {
    let targets = target_refs(origin.document);
    if targets.is_empty() {
        return selecting(index, origin, attached);
    }
    let of_service = |(field, target): &(String, super::super::foreign::TargetRef)| {
        let kind = if target.kind == "ServiceEntry" { "ServiceEntry" } else { "Service" };
        let known = matches!(target.kind.as_str(), "Service" | "ServiceEntry");
        let why = known.then(|| without_waypoint(index, kind, (origin.namespace, &target.name)))??;
        Some((field.clone(), why))
    };
    let (field, why) = targets.iter().find_map(of_service)?;
    let text = format!("{} has no effect: {why}", origin.document.kind);
    Some(origin.message(Code::NeedsWaypoint, &field, text))
}

/// Waypoints read only what is attached by `targetRefs`, apart from telemetry and filters of whole namespaces.
fn selecting(index: &Index<'_>, origin: &Origin<'_>, attached: &Attached) -> Option<Message> {
    let kind = origin.document.kind.as_str();
    let labels = attached.selector.as_ref().map(|selector| &selector.match_labels);
    let labels = labels.or_else(|| attached.workload_selector.as_ref().map(|selector| &selector.labels));
    let waypoints = index.gateways.values().any(|item| item.object.spec.gateway_class_name == CLASS);
    if index.has_other_proxies() || (waypoints && kind != "RequestAuthentication") {
        return None;
    }
    // A gateway or a sidecar of the input that it may mean.
    let root = index.settings.root_namespace == origin.namespace;
    let meant = index.workloads.iter().filter(|w| root || w.origin.namespace == origin.namespace);
    let selects = |own: &std::collections::BTreeMap<String, String>| {
        labels.is_none_or(|labels| labels.iter().all(|(key, value)| own.get(key) == Some(value)))
    };
    if meant.filter(|w| w.enrolment == Enrolment::Itself).any(|w| selects(&w.pod.metadata.labels))
        && labels.is_some()
    {
        return None;
    }
    let text = format!(
        "{kind} has no effect: at L4 nobody reads it, and a waypoint only with targetRefs that name its Gateway or a Service that uses it."
    );
    Some(origin.message(Code::NeedsWaypoint, "spec", text))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, gateway, namespace, namespace_with, object, pod, service, texts};

    fn mesh(waypoint: bool) -> String {
        let home = match waypoint {
            true => {
                namespace_with("a", "{istio.io/dataplane-mode: ambient, istio.io/use-waypoint: w}")
                    + &gateway("a", "w")
            }
            false => namespace("a"),
        };
        [home, service("a", "s", "{}", "[]")].concat()
    }

    fn route(kind: &str, spec: &str) -> String {
        object("gateway.networking.k8s.io/v1", kind, "a", "r", spec)
    }

    const TO_SERVICE: &str = "{parentRefs: [{group: \"\", kind: Service, name: s}], rules: [{backendRefs: [{name: s, port: 80}]}]}";

    #[test]
    fn routes_of_a_service_need_its_waypoint() {
        for kind in ["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"] {
            assert!(codes(&[mesh(true), route(kind, TO_SERVICE)].concat()).is_empty());
            let found = texts(&[mesh(false), route(kind, TO_SERVICE)].concat());
            assert_eq!(found.len(), 1, "{found:?}");
            let start = format!("Warning [CUL0313] ({kind} a/r f.yaml:");
            assert!(
                found[0].starts_with(&start) && found[0].contains("Service a/s has no waypoint"),
                "{found:?}"
            );
        }
        let edge = TO_SERVICE.replace("{group: \"\", kind: Service, name: s}", "{name: edge}");
        assert!(codes(&[mesh(false), route("HTTPRoute", &edge)].concat()).is_empty(), "of a Gateway");
    }

    #[test]
    fn services_of_routes_that_are_not_there_are_found() {
        for (from, to, part) in [
            ("kind: Service, name: s", "kind: Service, name: t", "parentRefs"),
            ("{name: s, port", "{name: t, port", "backendRefs"),
            ("{name: s, port", "{name: s, namespace: b, port", "backendRefs"),
        ] {
            let found = texts(&[mesh(true), route("HTTPRoute", &TO_SERVICE.replace(from, to))].concat());
            assert_eq!(found.len(), 1, "{part}: {found:?}");
            assert!(
                found[0].contains("Error [IST0101]") && found[0].contains("Service not found"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn what_is_attached_needs_a_waypoint() {
        for (api, kind) in [
            ("security.istio.io/v1", "RequestAuthentication"),
            ("telemetry.istio.io/v1", "Telemetry"),
            ("networking.istio.io/v1alpha3", "EnvoyFilter"),
            ("extensions.istio.io/v1alpha1", "WasmPlugin"),
        ] {
            let to = |spec: &str| object(api, kind, "a", "r", spec);
            let targets = to("{targetRefs: [{kind: Service, group: \"\", name: s}]}");
            assert!(codes(&[mesh(true), targets.clone()].concat()).is_empty(), "{kind}");
            assert_eq!(codes(&[mesh(false), targets].concat()), ["CUL0313"], "{kind}");
            assert_eq!(
                codes(&[mesh(false), to("{selector: {matchLabels: {app: x}}}")].concat()),
                ["CUL0313"],
                "{kind}"
            );
            let sidecar = pod("a", "q", "{sidecar.istio.io/inject: \"true\"}");
            assert!(codes(&[mesh(false), to("{}"), sidecar].concat()).is_empty(), "{kind}");
        }
        let tokens = object("security.istio.io/v1", "RequestAuthentication", "a", "r", "{}");
        assert_eq!(codes(&[mesh(true), tokens].concat()), ["CUL0313"]);
        let telemetry = object("telemetry.istio.io/v1", "Telemetry", "a", "r", "{}");
        assert!(codes(&[mesh(true), telemetry].concat()).is_empty());
    }
}
