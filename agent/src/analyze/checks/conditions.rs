//! What a controller has written into the status of objects.

use serde::Deserialize;

use super::super::message::Origin;
use super::super::{Code, Index, Message};
use crate::control::objects::or_default;

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for origin in &index.objects {
        let types: &[&str] = match origin.document.kind.as_str() {
            "Service" | "ServiceEntry" | "WorkloadEntry" => &["istio.io/WaypointBound"],
            "AuthorizationPolicy" => &["ZtunnelAccepted", "WaypointAccepted"],
            "Gateway" | "HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute" => {
                &["Accepted", "Programmed", "ResolvedRefs"]
            }
            _ => continue,
        };
        let Some(Reported { status }) = origin.document.read_as() else { continue };
        negative(origin, "status.conditions", &status.conditions, types, out);
        for (n, parent) in status.parents.iter().enumerate() {
            negative(origin, &format!("status.parents[{n}].conditions"), &parent.conditions, types, out);
        }
    }
}

fn negative(
    origin: &Origin<'_>,
    field: &str,
    conditions: &[Condition],
    types: &[&str],
    out: &mut Vec<Message>,
) {
    for (n, condition) in conditions.iter().enumerate() {
        let Condition { r#type, status, reason, message } = condition;
        if types.contains(&r#type.as_str()) && (status == "False" || reason == "PartiallyInvalid") {
            let text = format!(
                "A condition with a negative status is present: type={type}, reason={reason}, message={message}."
            );
            out.push(origin.message(Code::NegativeConditionStatus, &format!("{field}[{n}]"), text));
        }
    }
}

#[derive(Deserialize)]
struct Reported {
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(default, deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(default, deserialize_with = "or_default")]
    parents: Vec<Parent>,
}

#[derive(Deserialize)]
struct Parent {
    #[serde(default, deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, gateway, service, texts};

    fn with(object: &str, status: &str) -> String {
        object.replace("---\n", &format!("status: {status}\n---\n"))
    }

    #[test]
    fn what_a_controller_denies_is_told() {
        let bound = |status: &str, reason: &str| {
            let condition = format!(
                "{{type: istio.io/WaypointBound, status: \"{status}\", reason: {reason}, message: no such waypoint}}"
            );
            with(&service("a", "s", "{}", "[]"), &format!("{{conditions: [{condition}]}}"))
        };
        let found = texts(&bound("False", "WaypointIsNotReady"));
        assert_eq!(
            found,
            [
                "Warning [IST0171] (Service a/s f.yaml:5) A condition with a negative status is present: type=istio.io/WaypointBound, \
                 reason=WaypointIsNotReady, message=no such waypoint."
            ]
        );
        assert!(codes(&bound("True", "WaypointAccepted")).is_empty());
    }

    #[test]
    fn each_kind_has_its_own_conditions() {
        let says = |kind: &str| format!("{{conditions: [{{type: {kind}, status: \"False\"}}]}}");
        assert_eq!(codes(&with(&gateway("a", "w"), &says("Programmed"))), ["IST0171"]);
        assert!(codes(&with(&gateway("a", "w"), &says("Conflicted"))).is_empty());
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\n---\n";
        let parents = format!("{{parents: [{}]}}", says("ResolvedRefs"));
        assert_eq!(codes(&with(route, &parents)), ["IST0171"]);
        let partly = "{conditions: [{type: WaypointAccepted, status: \"True\", reason: PartiallyInvalid}]}";
        let policy = crate::analyze::tests::policy("{}");
        assert_eq!(codes(&with(&policy, partly)), ["IST0171"]);
    }
}
