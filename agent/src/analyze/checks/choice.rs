//! How Services choose among their endpoints.

use super::super::{Code, Index, Message};
use crate::model::choice::{notes_of_namespace, notes_of_service};

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    let services = index.services.values().map(|item| (item.origin, notes_of_service(item.object)));
    let namespaces = index.namespaces.values().map(|item| (item.origin, notes_of_namespace(item.object)));
    for (origin, notes) in services.chain(namespaces) {
        out.extend(notes.into_iter().map(|note| {
            let text = format!("{}: {}.", note.field, note.message);
            match note.field.strip_suffix(']').and_then(|field| field.split_once('[')) {
                Some((map, key)) => origin.entry(Code::UnknownValue, map, key, text),
                None => origin.message(Code::UnknownValue, &note.field, text),
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, namespace, texts};

    fn service(metadata: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a, {metadata}}}\nspec: {{{spec}}}\n"
        )
    }

    #[test]
    fn a_word_that_nobody_knows_is_told_with_its_field() {
        let found = texts(&[namespace("a"), service("", "trafficDistribution: Nearby")].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("[CUL0306]") && found[0].contains("Service a/s"), "{found:?}");
        assert!(
            found[0].contains("spec.trafficDistribution: \"Nearby\" is not known and has no effect; write"),
            "{found:?}"
        );
        let annotated = service("annotations: {networking.istio.io/traffic-distribution: Nearby}", "");
        assert_eq!(codes(&[namespace("a"), annotated].concat()), ["CUL0306"]);
        let annotated = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b, annotations: \
            {networking.istio.io/traffic-distribution: Nearby}}\n";
        assert_eq!(codes(annotated), ["CUL0306"]);
    }

    #[test]
    fn what_is_known_is_fine() {
        let spec =
            "trafficDistribution: PreferClose, internalTrafficPolicy: Cluster, sessionAffinity: ClientIP";
        assert!(codes(&[namespace("a"), service("", spec)].concat()).is_empty());
    }
}
