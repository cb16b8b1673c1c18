use serde_json::json;

use super::*;

fn dump() -> Value {
    json!({
        "workloads": [
            {"namespace": "shop", "name": "web", "addresses": ["10.244.1.2", "fd00::2"], "node": "n1", "waypoint": "None",
             "protocol": "HBONE", "identity": "spiffe://cluster.local/ns/shop/sa/web", "kind": "Pod", "service_account": "web"},
            {"namespace": "test", "name": "curl", "addresses": [], "node": "n2", "waypoint": "None", "protocol": "TCP"},
        ],
        "certificates": [{"identity": "spiffe://cluster.local/ns/shop/sa/web", "status": "Available", "valid": true}],
        "pods": [{"name": "shop/web", "older_connections": [{}, {}]}],
        "connections": [
            {"namespace": "shop", "workload": "shop/web", "direction": "Inbound", "local": "10.244.1.2:80",
             "remote": "10.244.2.9:4000", "remote_name": "", "remote_target": null, "remote_target_name": "",
             "protocol": "TCP", "bytes_sent": null, "age_seconds": 75},
        ],
    })
}

fn names(list: List, namespace: Option<&str>) -> usize {
    list.rows(&dump(), namespace).unwrap().len()
}

#[test]
fn each_list_knows_the_namespace_of_its_rows() {
    for list in [List::Workloads, List::Certificates, List::Pods, List::Connections] {
        assert_eq!(names(list, Some("SHOP")), 1, "{list:?}");
        assert_eq!(names(list, Some("sho")), 0, "{list:?}");
    }
    assert_eq!(names(List::Workloads, None), 2);
    let error = List::Policies.rows(&dump(), None).unwrap_err();
    assert!(error.to_string().contains("the dump has no policies"), "{error}");
}

#[test]
fn addresses_are_found_in_blocks_with_and_without_ports() {
    let row = &dump()["workloads"][0];
    let connection = &dump()["connections"][0];
    let block = |text: &str| Some(text.parse().unwrap());
    assert!(
        within(block("10.244.1.0/24"), &[&row["addresses"]])
            && within(block("fd00::2/128"), &[&row["addresses"]])
    );
    assert!(!within(block("10.244.2.0/24"), &[&row["addresses"]]));
    assert!(within(block("10.244.2.9/32"), &[&connection["local"], &connection["remote"]]));
    assert!(!within(block("10.244.2.8/32"), &[&connection["local"], &connection["remote_target"]]));
    assert!(within(None, &[]));
}

#[test]
fn tables_have_istioctls_columns_first_and_more_when_wide() {
    let table = |list: List, output| tabled(list, &list.rows(&dump(), None).unwrap(), output);
    let text = table(List::Workloads, ListOutput::Table);
    assert!(
        text.starts_with(
            "NAMESPACE   POD NAME   ADDRESS              NODE   WAYPOINT   PROTOCOL   IDENTITY\n"
        ),
        "{text}"
    );
    assert!(
        text.contains("test        curl       -                    n2     None       TCP        -\n"),
        "{text}"
    );
    let text = table(List::Workloads, ListOutput::Wide);
    assert!(text.contains("KIND   SERVICE ACCOUNT   REDIRECTION\n"), "{text}");
    let text = table(List::Connections, ListOutput::Table);
    assert!(
        text.starts_with("WORKLOAD   DIRECTION   LOCAL           REMOTE            REMOTE TARGET   PROTOCOL"),
        "{text}"
    );
    assert!(
        text.contains("shop/web   Inbound     10.244.1.2:80   10.244.2.9:4000   -               TCP"),
        "{text}"
    );
    assert!(text.ends_with("-      -          1m15s\n"), "{text}");
    assert!(
        table(List::Pods, ListOutput::Table).contains("shop/web   -       -             -              2")
    );
}

#[test]
fn machines_get_every_field() {
    let rows = Value::Array(List::Workloads.rows(&dump(), Some("shop")).unwrap());
    let json = written(&rows, ListOutput::Json).unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), rows);
    let yaml = written(&rows, ListOutput::Yaml).unwrap().unwrap();
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), rows);
    assert_eq!(written(&rows, ListOutput::Wide).unwrap(), None);
}
