//! Canary waypoints: labels and the annotation that give a second waypoint a share of the connections.

use super::super::index::Labelled;
use super::super::{Code, Index, Message};
use crate::model::waypoint::{CANARY, CANARY_NAMESPACE, CANARY_WEIGHT, Choice, USE, canary_weight};

const KINDS: &[&str] = &["Namespace", "Service", "ServiceEntry"];

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for object in &index.labelled {
        out.extend(judge(index, object));
        out.extend(weight(index, object));
    }
}

fn named<'a>(object: &Labelled<'a>) -> Option<(&'a str, &'a str)> {
    let name = object.labels.get(CANARY).filter(|name| !matches!(name.as_str(), "" | "none"))?;
    Some((object.labels.get(CANARY_NAMESPACE).map_or(object.namespace, String::as_str), name))
}

fn judge(index: &Index<'_>, object: &Labelled<'_>) -> Option<Message> {
    let (namespace, name) = named(object)?;
    let say = |code, text: String| Some(object.origin.entry(code, object.field, CANARY, text));
    let kind = object.origin.document.kind.as_str();
    if !KINDS.contains(&kind) {
        let text =
            format!("The label {CANARY} does nothing on a {kind}; put it on the Service or Namespace.");
        return say(Code::IneffectiveLabel, text);
    }
    if let Some(message) = super::waypoints::gateway(index, object, (namespace, name), CANARY) {
        return Some(message);
    }
    let primary = index.waypoint(object.labels, object.namespace);
    let text = match primary {
        Some(Choice::Gateway { namespace: of, name: called, .. }) if (of, called) == (namespace, name) => {
            format!("The canary is {namespace}/{name}, which is the waypoint itself; name another one.")
        }
        Some(Choice::Gateway { .. }) if says_weight(index, object) => return None,
        Some(Choice::Gateway { .. }) => format!(
            "The canary {namespace}/{name} gets no connections: the annotation {CANARY_WEIGHT} is missing; write how many of a hundred \
             it gets."
        ),
        Some(Choice::OptOut) | None => format!(
            "The canary {namespace}/{name} gets no connections: there is no waypoint that it could take some from; add the label \
             {USE}=<name of the waypoint's Gateway>."
        ),
    };
    say(Code::CanaryNoEffect, text)
}

/// A Service may leave the weight to its namespace, and a namespace to its Services.
fn says_weight(index: &Index<'_>, object: &Labelled<'_>) -> bool {
    let own = object.annotations.contains_key(CANARY_WEIGHT);
    let home = index.namespaces.get(object.namespace);
    let inherited = || home.is_some_and(|home| home.object.metadata.annotations.contains_key(CANARY_WEIGHT));
    let below = || {
        let mut services = index.services.iter().filter(|(name, _)| name.0 == object.namespace);
        services.any(|(_, service)| service.object.metadata.annotations.contains_key(CANARY_WEIGHT))
    };
    own || inherited() || (object.origin.document.kind == "Namespace" && below())
}

fn weight(index: &Index<'_>, object: &Labelled<'_>) -> Option<Message> {
    let weight = object
        .annotations
        .get(CANARY_WEIGHT)
        .filter(|_| KINDS.contains(&object.origin.document.kind.as_str()))?;
    let field = "metadata.annotations";
    let say = |code, text: String| Some(object.origin.entry(code, field, CANARY_WEIGHT, text));
    if canary_weight(weight).is_none() {
        let text = format!(
            "The annotation {CANARY_WEIGHT} is {weight:?}, no whole number from 0 to 100: without it there is no canary."
        );
        return say(Code::CanaryInvalidWeight, text);
    }
    let home = index.namespaces.get(object.namespace);
    let canary = named(object).is_some()
        || home.is_some_and(|home| home.object.metadata.labels.contains_key(CANARY))
        || object.origin.document.kind == "Namespace";
    let text = || format!("The annotation {CANARY_WEIGHT} does nothing without the label {CANARY}.");
    if canary { None } else { say(Code::CanaryNoEffect, text()) }
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, gateway, namespace, namespace_with, service, texts};

    /// A Service with these labels and a canary's weight, and the waypoints `w` and `v2`.
    fn mesh(labels: &str, weight: Option<&str>) -> String {
        let weight =
            weight.map(|w| format!("annotations: {{istio.io/use-waypoint-canary-weight: \"{w}\"}}, "));
        let service = service("a", "s", labels, "[]")
            .replace("metadata: {", &format!("metadata: {{{}", weight.unwrap_or_default()));
        [namespace("a"), gateway("a", "w"), gateway("a", "v2"), service].concat()
    }

    #[test]
    fn a_canary_with_a_waypoint_and_a_weight_is_fine() {
        let labels = "{istio.io/use-waypoint: w, istio.io/use-waypoint-canary: v2}";
        for weight in ["0", "10", "100"] {
            assert!(codes(&mesh(labels, Some(weight))).is_empty(), "{weight}");
        }
        let of_namespace = namespace_with("a", labels)
            .replace("labels", "annotations: {istio.io/use-waypoint-canary-weight: \"5\"}, labels");
        let text =
            [of_namespace, gateway("a", "w"), gateway("a", "v2"), service("a", "s", "{}", "[]")].concat();
        assert!(codes(&text).is_empty(), "{:?}", texts(&text));
    }

    #[test]
    fn a_weight_that_is_none_is_found() {
        let labels = "{istio.io/use-waypoint: w, istio.io/use-waypoint-canary: v2}";
        for weight in ["ten", "101", "-1", "5%", ""] {
            let found = texts(&mesh(labels, Some(weight)));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("Warning [CUL0307] (Service a/s "), "{found:?}");
        }
    }

    #[test]
    fn a_canary_that_gets_nothing_is_found() {
        for (labels, weight, part) in [
            ("{istio.io/use-waypoint: w, istio.io/use-waypoint-canary: v2}", None, "weight is missing"),
            ("{istio.io/use-waypoint-canary: v2}", Some("10"), "there is no waypoint"),
            (
                "{istio.io/use-waypoint: none, istio.io/use-waypoint-canary: v2}",
                Some("10"),
                "there is no waypoint",
            ),
            (
                "{istio.io/use-waypoint: w, istio.io/use-waypoint-canary: w}",
                Some("10"),
                "the waypoint itself",
            ),
            ("{istio.io/use-waypoint: w}", Some("10"), "does nothing without the label"),
        ] {
            let found = texts(&mesh(labels, weight));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains("CUL0308") && found[0].contains(part), "{found:?}");
        }
    }

    #[test]
    fn a_canary_that_is_not_there_or_on_a_pod_is_found() {
        let labels = "{istio.io/use-waypoint: w, istio.io/use-waypoint-canary: v3}";
        let found = texts(&mesh(labels, Some("10")));
        assert!(
            found[0].contains("IST0101")
                && found[0].contains("\"a/v3\" (label istio.io/use-waypoint-canary)"),
            "{found:?}"
        );
        let pod = crate::analyze::tests::pod("a", "p", "{istio.io/use-waypoint-canary: v2}");
        assert_eq!(codes(&pod), ["CUL0302"]);
    }
}
