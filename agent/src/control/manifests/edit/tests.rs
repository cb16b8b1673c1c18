use serde_json::json;

use super::*;

const LABEL: &[&str] = &["metadata", "labels", "istio.io/use-waypoint"];

/// The text with the label set at Namespace `shop`.
fn labelled(text: &str) -> Option<String> {
    let read = Text::read(text).expect("valid YAML");
    let place = read.find("", "Namespace", "", "shop").expect("the Namespace");
    read.set(place, LABEL, &json!("w"))
}

#[track_caller]
fn becomes(text: &str, expected: &str) {
    assert_eq!(labelled(text).as_deref(), Some(expected), "{text}");
}

const HEAD: &str = "# the shop\napiVersion: v1\nkind: Namespace\n";

#[test]
fn a_label_is_added_in_the_style_of_the_file() {
    for (before, after) in [
        ("metadata:\n  name: shop\n", "metadata:\n  labels:\n    istio.io/use-waypoint: w\n  name: shop\n"),
        (
            "metadata: # who\n  name: shop # it\n  labels:\n    # why\n    a: b\n",
            "metadata: # who\n  name: shop # it\n  labels:\n    istio.io/use-waypoint: w\n    # why\n    a: b\n",
        ),
        ("metadata: {name: shop}\n", "metadata: {labels: {istio.io/use-waypoint: w}, name: shop}\n"),
        ("metadata: { name: shop }\n", "metadata: { labels: {istio.io/use-waypoint: w}, name: shop }\n"),
        (
            "metadata: {name: shop, labels: {a: b}} # x\n",
            "metadata: {name: shop, labels: {istio.io/use-waypoint: w, a: b}} # x\n",
        ),
        ("metadata: {name: shop, labels: {}}", "metadata: {name: shop, labels: {istio.io/use-waypoint: w}}"),
        (
            "metadata:\n  name: shop\n  labels:\n",
            "metadata:\n  name: shop\n  labels: {istio.io/use-waypoint: w}\n",
        ),
        (
            "metadata:\n  name: shop\n  labels:\n    istio.io/use-waypoint: old # for now\n",
            "metadata:\n  name: shop\n  labels:\n    istio.io/use-waypoint: w # for now\n",
        ),
    ] {
        becomes(&format!("{HEAD}{before}"), &format!("{HEAD}{after}"));
    }
}

#[test]
fn json_stays_json() {
    let before = "{\n  \"apiVersion\": \"v1\",\n  \"kind\": \"Namespace\",\n  \"metadata\": {\n    \"labels\": {\n      \"a\": \"b\"\n    \
                  },\n    \"name\": \"shop\"\n  }\n}";
    let after = before.replace("\"a\":", "\"istio.io/use-waypoint\": \"w\",\n      \"a\":");
    becomes(before, &after);
    let bare = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}"#;
    becomes(bare, &bare.replace(r#""name""#, r#""labels": {"istio.io/use-waypoint": "w"}, "name""#));
}

#[test]
fn other_documents_and_the_items_of_a_list_stay_as_they_are() {
    let around = "%TOP%---\n# first\n{kind: x, apiVersion: y,   z: [1,\n 2]}\n---   # second\nITEM\n...\n---\n- \"tail\"   \n";
    let shop = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {a: 'b'}";
    let made = shop.replace("{a", "{istio.io/use-waypoint: w, a");
    for top in ["", "# licence\n"] {
        let text = |item: &str| around.replace("%TOP%", top).replace("ITEM", item);
        becomes(&text(shop), &text(&made));
    }
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: other\n\
                - metadata:\n    name: shop\n  kind: Namespace\n  apiVersion: v1\n";
    becomes(
        list,
        &list.replace("- metadata:\n", "- metadata:\n    labels:\n      istio.io/use-waypoint: w\n"),
    );
    // A list of Namespaces without anything but the kind on its dash.
    let first =
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
    becomes(first, &first.replace("{name", "{labels: {istio.io/use-waypoint: w}, name"));
}

#[test]
fn what_would_change_something_else_is_not_done() {
    // Both objects have the same labels, by an alias.
    let shared = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: &l {a: b}}\n---\n\
                  apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n";
    let alias = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: other, labels: &l {a: b}}}\n\
                 - {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: *l}}\n";
    assert!(labelled(shared).is_some(), "an anchor that nobody uses is no harm");
    assert_eq!(labelled(alias), None);
    let meant_twice = alias
        .replace("name: other", "name: x")
        .replace("name: shop", "name: other")
        .replace("name: x", "name: shop");
    assert_eq!(labelled(&meant_twice), None);
    assert_eq!(labelled("{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: [a]}}"), None);
}

#[test]
fn an_object_is_taken_out_with_its_part_of_the_file_only() {
    let parts = [
        "# top\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n",
        "--- # b\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\ndata: |\n  ---\n  no end\n",
        "---\n# only a comment\n",
        "---\napiVersion: v1\nkind:   Namespace\nmetadata: {name: c}   # tail",
    ];
    let text = parts.concat();
    let without = |text: &str, name: &str| {
        let read = Text::read(text).expect("valid YAML");
        read.without(read.find("", "Namespace", "", name).expect("it is there"))
    };
    assert_eq!(without(&text, "shop"), Some(Rest::Text([parts[0], parts[2], parts[3]].concat())));
    assert_eq!(without(&text, "a"), Some(Rest::Text([parts[1], parts[2], parts[3]].concat())));
    assert_eq!(without(&text, "c"), Some(Rest::Text([parts[0], parts[1], parts[2]].concat())));
    assert_eq!(without(&[parts[1], parts[2]].concat(), "shop"), Some(Rest::Nothing));
    let list = "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace, metadata: {name: shop}}, {kind: x}]\n";
    assert_eq!(without(list, "shop"), None);
}

#[test]
fn objects_are_found_by_their_namespace_or_default() {
    let text = "apiVersion: g.example/v1\nkind: Gateway\nmetadata: {name: w}\n---\n\
                apiVersion: other.example/v1\nkind: Gateway\nmetadata: {name: v}\n";
    let read = Text::read(text).expect("valid YAML");
    assert!(read.find("g.example", "Gateway", "default", "w").is_some());
    assert!(read.find("g.example", "Gateway", "shop", "w").is_none());
    assert!(read.find("g.example", "Gateway", "default", "v").is_none());
}

#[test]
fn a_text_that_would_pass_for_something_else_is_quoted() {
    let value =
        json!({"a": ["x", "1", "yes", "10.0.0.1", "a b"], "b": {"c": {}, "d": [{"e": "f", "g": "h"}]}});
    assert_eq!(
        block(&value, 0),
        "a:\n- x\n- \"1\"\n- \"yes\"\n- \"10.0.0.1\"\n- \"a b\"\nb:\n  c: {}\n  d:\n  - e: f\n    g: h\n"
    );
}

#[test]
fn a_file_that_changed_meanwhile_is_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.yaml");
    replace(&path, None, "a: 1\n").expect("written");
    assert!(replace(&path, None, "a: 2\n").is_err(), "it is there already");
    assert!(replace(&path, Some("a: 0\n"), "a: 2\n").is_err());
    let link = dir.path().join("link.yaml");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    replace(&link, Some("a: 1\n"), "a: 2\n").expect("written");
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), "a: 2\n");
    assert!(std::fs::symlink_metadata(&link).expect("the link").is_symlink());
    assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 2, "nothing else stays");
}
