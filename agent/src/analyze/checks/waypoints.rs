//! Labels that name a waypoint.

use super::super::index::Labelled;
use super::super::{Code, Index, Message};
use crate::model::waypoint::{ALIAS, ALIAS_NAME, Choice, USE, chosen};

const CLASS: &str = "istio-waypoint";

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for object in &index.labelled {
        out.extend(alias(object));
        out.extend(gateway(index, object));
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

fn gateway(index: &Index<'_>, object: &Labelled<'_>) -> Option<Message> {
    let Some(Choice::Gateway { namespace, name, label }) = chosen(object.labels, object.namespace) else {
        return None;
    };
    let say = |code, text: String| Some(object.origin.entry(code, object.field, label, text));
    match index.gateways.get(&(namespace, name)).map(String::as_str) {
        None => say(
            Code::ReferencedResourceNotFound,
            format!(
                "Referenced Gateway not found: \"{namespace}/{name}\" (label {label}); without it there is no waypoint."
            ),
        ),
        Some(CLASS) => None,
        Some(class) => say(
            Code::NotAWaypoint,
            format!(
                "The label {label} names Gateway {namespace}/{name}, whose class is {class:?}, not {CLASS:?}."
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, gateway, namespace_with, pod, service, texts};

    #[test]
    fn a_waypoint_that_is_not_there_is_found_wherever_the_label_is() {
        let label = "{istio.io/use-waypoint: w}";
        for object in [namespace_with("a", label), service("a", "s", label, "[]"), pod("a", "p", label)] {
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
        assert!(codes(&[namespace_with("a", label), gateway("infra", "w")].concat()).is_empty());
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
    fn a_gateway_of_another_class_is_no_waypoint() {
        let other = gateway("a", "w").replace("istio-waypoint", "istio");
        let found = texts(&[namespace_with("a", "{istio.io/use-waypoint: w}"), other].concat());
        assert!(found[0].contains("CUL0305") && found[0].contains("class is \"istio\""), "{found:?}");
    }
}
