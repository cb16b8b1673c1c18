use super::file::parse;
use super::folder::Folder;
use crate::control::{Object, Problem, Report, Update};
use std::path::Path;

mod hostile;

fn problems(text: &str) -> Vec<Problem> {
    parse(Path::new("m.yaml"), text.as_bytes()).unwrap_err()
}

#[test]
fn documents_and_lists_are_read_and_unknown_kinds_are_counted() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n\
                - apiVersion: v1\n  kind: Pod\n  metadata: {name: p, namespace: a}\n  status: {podIP: 10.0.0.1}\n\
                - {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n";
    let content = parse(Path::new("m.yaml"), text.as_bytes()).unwrap();
    let names: Vec<_> = content.objects.iter().map(|o| o.key().to_string()).collect();
    assert_eq!(names, ["Namespace a", "Pod a/p"]);
    assert_eq!(content.ignored["apps/v1/Deployment"], 1);
}

#[test]
fn json_is_read_too() {
    let text = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},
        "spec":{"clusterIP":"None","ports":[{"port":80,"targetPort":"http"},{"port":81,"targetPort":8081}]}}"#;
    let content = parse(Path::new("m.json"), text.as_bytes()).unwrap();
    assert_eq!(content.objects[0].key().to_string(), "Service default/s");
}

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: n\nspec:\n";

#[test]
fn errors_name_line_object_and_field() {
    for (spec, line, field, message) in [
        ("  action: BLOCK\n", 7, "spec.action", "BLOCK"),
        (
            "  rules:\n  - to:\n    - operation:\n        ports: [\"http\"]\n",
            10,
            "spec.rules[0].to[0].operation.ports[0]",
            "http",
        ),
        (
            "  rules:\n  - from:\n    - source:\n        principal: [a]\n",
            10,
            "spec.rules[0].from[0].source",
            "principal",
        ),
        ("  rules: 7\n", 7, "spec.rules", "sequence"),
        ("  action: DENY\n", 7, "spec.rules", "ALLOW"),
        ("  rules:\n  - from: []\n", 8, "spec.rules[0].from", "source"),
    ] {
        let found = problems(&format!("{POLICY}{spec}"));
        assert_eq!(found.len(), 1, "{spec}");
        assert_eq!(found[0].object, "AuthorizationPolicy n/x");
        assert_eq!(found[0].field, field, "{found:?}");
        assert_eq!(found[0].line, line, "{found:?}");
        assert!(found[0].message.contains(message), "{found:?}");
    }
    assert_eq!(problems("apiVersion: v1\nkind: Pod\nmetadata: {}\n")[0].field, "metadata");
    assert_eq!(problems("a: 1\n\0")[0].line, 2);
    assert_eq!(problems("a: [1\nb: 2\n")[0].field, "");
    assert!(problems("a: [1\nb: 2\n")[0].line > 0);
}

fn report(updates: &[Update]) -> &Report {
    updates.iter().find_map(|u| if let Update::Report(r) = u { Some(r) } else { None }).unwrap()
}

#[test]
fn a_broken_file_keeps_its_last_good_content_and_a_vanished_one_takes_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    let namespace = |name| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    std::fs::write(&a, namespace("a")).unwrap();
    std::fs::write(&b, namespace("b")).unwrap();
    let mut folder = Folder::new(dir.path());
    assert_eq!(folder.scan().len(), 2);
    assert_eq!(folder.scan(), []);
    std::fs::write(&a, "kind: [").unwrap();
    let updates = folder.scan();
    assert_eq!(updates.len(), 1);
    assert!(report(&updates).problems[0].remedy.contains("last good"));
    std::fs::remove_file(&a).unwrap();
    let updates = folder.scan();
    assert!(matches!(&updates[0], Update::Remove(o) if o.name == "a"));
    assert!(report(&updates).problems.is_empty());
    std::fs::write(&a, namespace("b")).unwrap();
    let updates = folder.scan();
    assert!(report(&updates).problems[0].message.contains("is also in"));
}

#[tokio::test]
async fn changes_arrive_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let mut updates = super::spawn(dir.path().to_owned(), stop.clone());
    assert_eq!(updates.recv().await.unwrap(), [Update::Synced]);
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    std::fs::write(dir.path().join("new"), text).unwrap();
    std::fs::rename(dir.path().join("new"), dir.path().join("a.yaml")).unwrap();
    let batch =
        tokio::time::timeout(std::time::Duration::from_secs(2), updates.recv()).await.unwrap().unwrap();
    assert!(matches!(&batch[0], Update::Upsert(Object::Namespace(n)) if n.metadata.name == "a"));
    stop.cancel();
    assert!(updates.recv().await.is_none());
}
