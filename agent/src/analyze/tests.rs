//! What the tests of the checks build their input from, and tests of the whole.

use super::*;

fn run(text: &str, settings: &Settings) -> Vec<Message> {
    let mut input = Input::default();
    input.add_text("f.yaml", text.as_bytes());
    analyze(&input, settings)
}

pub(super) fn texts(text: &str) -> Vec<String> {
    run(text, &Settings::default()).iter().map(ToString::to_string).collect()
}

pub(super) fn codes(text: &str) -> Vec<&'static str> {
    codes_with(text, &Settings::default())
}

pub(super) fn codes_with(text: &str, settings: &Settings) -> Vec<&'static str> {
    run(text, settings).iter().map(|message| message.code.as_str()).collect()
}

pub(super) fn object(api: &str, kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// A namespace that is in the mesh.
pub(super) fn namespace(name: &str) -> String {
    namespace_with(name, "{istio.io/dataplane-mode: ambient}")
}

pub(super) fn namespace_with(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n---\n")
}

pub(super) fn pod(namespace: &str, name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}\nspec: {{}}\n---\n"
    )
}

/// A Service of the pods with `app: x`.
pub(super) fn service(namespace: &str, name: &str, labels: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}\n\
         spec: {{selector: {{app: x}}, ports: {ports}}}\n---\n"
    )
}

pub(super) fn gateway(namespace: &str, name: &str) -> String {
    let api = "gateway.networking.k8s.io/v1";
    let listener = "{name: mesh, port: 15008, protocol: HBONE}";
    object(
        api,
        "Gateway",
        namespace,
        name,
        &format!("{{gatewayClassName: istio-waypoint, listeners: [{listener}]}}"),
    )
}

pub(super) fn authn(namespace: &str, name: &str, spec: &str) -> String {
    object("security.istio.io/v1", "PeerAuthentication", namespace, name, spec)
}

/// Policy `p` of namespace `a`.
pub(super) fn policy(spec: &str) -> String {
    named_policy("a", "p", spec)
}

pub(super) fn named_policy(namespace: &str, name: &str, spec: &str) -> String {
    object("security.istio.io/v1", "AuthorizationPolicy", namespace, name, spec)
}

/// Policy `p`, which allows one principal.
pub(super) fn principals(text: &str) -> String {
    policy(&format!("{{rules: [{{from: [{{source: {{principals: [{text}]}}}}]}}]}}"))
}

#[test]
fn schema_errors_name_file_line_and_field() {
    let found = texts(&policy("{action: BLOCK}"));
    assert_eq!(found.len(), 1, "{found:?}");
    let start = "Error [IST0106] (AuthorizationPolicy a/p f.yaml:4) Schema validation error: spec.action: unknown variant";
    assert!(found[0].starts_with(start), "{found:?}");
    assert!(texts("a: [1\n")[0].starts_with("Error [IST0106] (f.yaml:"), "{:?}", texts("a: [1\n"));
    assert!(texts("a: 1\n")[0].contains("apiVersion: is missing"));
}

#[test]
fn nothing_is_missing_while_a_file_cannot_be_read() {
    let mut input = Input::default();
    input.add_text("broken.yaml", b"a: [1\n");
    input.add_text("f.yaml", policy("{selector: {matchLabels: {app: x}}}").as_bytes());
    let found = analyze(&input, &Settings::default());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].file, "broken.yaml");
}

#[test]
fn a_broken_policy_hides_nothing_else() {
    let broken = policy("{action: BLOCK}");
    let other = named_policy("a", "q", "{selector: {matchLabels: {app: x}}}");
    assert_eq!(codes(&[broken, other].concat()), ["IST0106", "IST0127"]);
}

#[test]
fn an_object_that_is_there_twice_is_told() {
    let found = texts(&[namespace("a"), namespace("a")].concat());
    assert!(found[0].starts_with("Warning [CUL0401] (Namespace a f.yaml:5)"), "{found:?}");
    assert!(found[0].contains("the first is at f.yaml:1"), "{found:?}");
}

#[test]
fn policies_for_waypoints_are_told() {
    let target = policy("{targetRefs: [{kind: Service, name: s}]}");
    let service = service("a", "s", "{istio.io/use-waypoint: w}", "[]");
    let found = texts(&[gateway("a", "w"), service, target].concat());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("Info [CUL0111]"), "{found:?}");
}

#[test]
fn the_worst_comes_first() {
    let text = [
        authn("a", "p", "{mtls: {mode: DISABLE}}"),
        policy("{selector: {matchLabels: {app: x}}}"),
        namespace_with("a", "{istio.io/use-waypoint: w}"),
    ];
    assert_eq!(codes(&text.concat()), ["IST0101", "IST0127", "CUL0201"]);
}
