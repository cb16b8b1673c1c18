//! Labels that name a waypoint, and the Gateways that they name.

use super::super::index::{Item, Labelled};
use super::super::{Code, Index, Message};
use crate::control::objects::{Gateway, Listener};
use crate::model::waypoint::{
    ALIAS, ALIAS_NAME, CANARY, Choice, FOR, USE, USE_NAMESPACE, chosen, may_attach,
};
use crate::waypoint::{CLASS, TrafficType};

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for object in &index.labelled {
        out.extend(alias(object));
        out.extend(namespace_alone(object));
        if let Some(Choice::Gateway { namespace, name, label }) = chosen(object.labels, object.namespace) {
            out.extend(gateway(index, object, (namespace, name), label));
        }
    }
    for item in index.gateways.values().filter(|item| item.object.spec.gateway_class_name == CLASS) {
        out.extend(listener(item));
        out.extend(unknown_traffic(item));
    }
}

fn alias(object: &Labelled<'_>) -> Option<Message> {
    let value = object.labels.get(ALIAS)?;
    let say = |code, text: String| Some(object.origin.entry(code, object.field, ALIAS, text));
    if value != "enabled" {
        let text = format!(
            "The label {ALIAS}={value} does nothing; write {USE}=<name of the waypoint's Gateway> instead."
        );
        return say(Code::IneffectiveLabel, text);
    }
    let meaning = if object.labels.contains_key(USE) {
        format!("Culvert ignores it here, because {USE} is there too; remove it")
    } else {
        format!("Culvert reads it as {USE}={ALIAS_NAME}; write that instead")
    };
    say(Code::WaypointAlias, format!("Istio does not know the label {ALIAS}. {meaning}."))
}

fn namespace_alone(object: &Labelled<'_>) -> Option<Message> {
    let alone = object.labels.contains_key(USE_NAMESPACE) && !object.labels.contains_key(USE);
    let text =
        || format!("The label {USE_NAMESPACE} does nothing without {USE} on the same object; add that.");
    alone.then(|| object.origin.entry(Code::IneffectiveLabel, object.field, USE_NAMESPACE, text()))
}

/// What is wrong with a Gateway as the waypoint of `object`, whose `label` names it.
pub(super) fn gateway(
    index: &Index<'_>,
    object: &Labelled<'_>,
    (namespace, name): (&str, &str),
    label: &str,
) -> Option<Message> {
    let say = |code, text: String| Some(object.origin.entry(code, object.field, label, text));
    let Some(item) = index.gateways.get(&(namespace, name)) else {
        let text = format!(
            "Referenced Gateway not found: \"{namespace}/{name}\" (label {label}); without it there is no waypoint."
        );
        return say(Code::ReferencedResourceNotFound, text);
    };
    let class = item.object.spec.gateway_class_name.as_str();
    if class != CLASS {
        let text = format!(
            "The label {label} names Gateway {namespace}/{name}, whose class is {class:?}, not {CLASS:?}."
        );
        return say(Code::NotAWaypoint, text);
    }
    let home = index.namespaces.get(object.namespace).map(|home| home.object);
    if hbone(item.object).is_some_and(|listener| !may_attach(listener, namespace, object.namespace, home)) {
        let text = format!(
            "Gateway {namespace}/{name} does not let objects of namespace {} use it, so there is no waypoint; allow them in \
             allowedRoutes.namespaces of its HBONE listener (unset: only its own namespace).",
            object.namespace
        );
        return say(Code::AttachmentDenied, text);
    }
    let (takes, wants) = (traffic(index, item.object), wanted(object, label));
    if takes == "all" || wants.contains(&takes) || takes.parse::<TrafficType>().is_err() {
        return None;
    }
    let text = format!(
        "Waypoint {namespace}/{name} is for {takes:?}, so it takes nothing that goes to this {}; set the Gateway's label {FOR} to {} or \
         \"all\".",
        object.origin.document.kind,
        wants.iter().rev().map(|kind| format!("{kind:?}")).collect::<Vec<_>>().join(", "),
    );
    say(Code::TrafficTypeMismatch, text)
}

/// Which of a waypoint's kinds of traffic an object can have.
fn wanted(object: &Labelled<'_>, label: &str) -> &'static [&'static str] {
    match object.origin.document.kind.as_str() {
        _ if label == CANARY => &["service"],
        "Namespace" => &["service", "workload"],
        "Service" | "ServiceEntry" => &["service"],
        _ => &["workload"],
    }
}

/// As the model reads it.
fn traffic<'a>(index: &Index<'a>, gateway: &'a Gateway) -> &'a str {
    let of_class = || {
        let class = index.gateway_classes.get(gateway.spec.gateway_class_name.as_str())?;
        class.metadata.labels.get(FOR)
    };
    gateway.metadata.labels.get(FOR).or_else(of_class).map_or("service", String::as_str)
}

fn hbone(gateway: &Gateway) -> Option<&Listener> {
    gateway.spec.listeners.iter().find(|listener| listener.protocol.eq_ignore_ascii_case("HBONE"))
}

fn listener(item: &Item<'_, Gateway>) -> Option<Message> {
    let effect = match hbone(item.object) {
        Some(listener) if listener.port == 15008 => return None,
        Some(listener) => format!("it has one on port {}, which Istio refuses", listener.port),
        None => "it is no waypoint then, and whatever names it has none".to_owned(),
    };
    let text = format!(
        "A waypoint's Gateway needs a listener on port 15008 with protocol HBONE: {effect}; write spec.listeners: [{{name: mesh, port: 15008, \
         protocol: HBONE}}]."
    );
    Some(item.origin.message(Code::WaypointListener, "spec.listeners", text))
}

fn unknown_traffic(item: &Item<'_, Gateway>) -> Option<Message> {
    let value = item.object.metadata.labels.get(FOR).filter(|value| value.parse::<TrafficType>().is_err())?;
    let text = format!(
        "The label {FOR} is {value:?}, so the waypoint takes nothing; write service, workload, all or none."
    );
    Some(item.origin.entry(Code::UnknownTrafficType, "metadata.labels", FOR, text))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, gateway, namespace_with, pod, service, texts};

    /// The Gateway with a label that says for what traffic it is.
    fn with(gateway: String, traffic: &str) -> String {
        gateway.replace("metadata: {", &format!("metadata: {{labels: {{istio.io/waypoint-for: {traffic}}}, "))
    }

    #[test]
    fn a_waypoint_that_is_not_there_is_found_wherever_the_label_is() {
        let label = "{istio.io/use-waypoint: w}";
        for object in [namespace_with("a", label), service("a", "s", label, "[]"), pod("a", "p", label)] {
            let gateway = |namespace, name| with(gateway(namespace, name), "all");
            let found = texts(&object);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("Error [IST0101]"), "{found:?}");
            assert!(found[0].contains("Referenced Gateway not found: \"a/w\""), "{found:?}");
            assert!(codes(&[object, gateway("a", "w")].concat()).is_empty());
        }
    }

    #[test]
    fn a_waypoint_may_be_in_another_namespace_and_none_is_no_name() {
        let label = "{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra}";
        let shared = gateway("infra", "w")
            .replace("protocol: HBONE", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}");
        assert!(codes(&[namespace_with("a", label), shared].concat()).is_empty());
        let found = texts(&[namespace_with("a", label), gateway("infra", "w")].concat());
        assert!(found[0].starts_with("Warning [CUL0312] (Namespace a "), "{found:?}");
        assert!(codes(&namespace_with("a", "{istio.io/use-waypoint: none}")).is_empty());
    }

    #[test]
    fn the_alias_is_told() {
        let alias = namespace_with("a", "{istio.io/waypoint: enabled}");
        assert_eq!(codes(&[alias.clone(), gateway("a", "waypoint")].concat()), ["CUL0301"]);
        assert_eq!(codes(&alias), ["IST0101", "CUL0301"]);
        assert_eq!(codes(&namespace_with("a", "{istio.io/waypoint: \"yes\"}")), ["CUL0302"]);
    }

    #[test]
    fn a_waypoint_without_its_listener_is_none() {
        for listener in ["port: 15009, protocol: HBONE", "port: 15008, protocol: HTTP"] {
            let other = gateway("a", "w").replace("port: 15008, protocol: HBONE", listener);
            let found = texts(&other);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("Error [CUL0309] (Gateway a/w "), "{found:?}");
        }
        assert!(codes(&gateway("a", "w")).is_empty());
    }

    #[test]
    fn a_waypoint_takes_the_traffic_that_it_is_for() {
        let label = "{istio.io/use-waypoint: w}";
        let objects = [service("a", "s", label, "[]"), pod("a", "p", label), namespace_with("a", label)];
        for (traffic, fits) in [
            ("service", [true, false, true]),
            ("workload", [false, true, true]),
            ("all", [true; 3]),
            ("none", [false; 3]),
        ] {
            for (object, fits) in objects.iter().zip(fits) {
                let found = codes(&[object.clone(), with(gateway("a", "w"), traffic)].concat());
                assert_eq!(found, if fits { vec![] } else { vec!["CUL0311"] }, "{traffic}: {object}");
            }
        }
        let found = texts(&[objects[0].clone(), with(gateway("a", "w"), "services")].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("Warning [CUL0310] (Gateway a/w "), "{found:?}");
    }

    #[test]
    fn a_waypoints_namespace_without_its_name_does_nothing() {
        let alone = "{istio.io/use-waypoint-namespace: infra}";
        assert_eq!(codes(&service("a", "s", alone, "[]")), ["CUL0302"]);
    }

    #[test]
    fn a_gateway_of_another_class_is_no_waypoint() {
        let other = gateway("a", "w").replace("istio-waypoint", "istio");
        let found = texts(&[namespace_with("a", "{istio.io/use-waypoint: w}"), other].concat());
        assert!(found[0].contains("CUL0305") && found[0].contains("class is \"istio\""), "{found:?}");
    }
}
