//! ServiceEntries and WorkloadEntries: what of them an agent cannot do.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::index::Entered;
use super::super::message::Origin;
use super::super::{Code, Index, Message};
use crate::control::Object;
use crate::control::objects::{EntryEndpoint, Resolution};
use crate::model::{can_be_reached, waypoint};

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for entry in index.service_entries.values() {
        out.extend(without_address(entry));
        out.extend(export(entry));
        out.extend(blocks(index, entry));
        out.extend(unmatched(entry));
        for (n, endpoint) in entry.object.spec.endpoints.iter().enumerate() {
            out.extend(out_of_reach(&entry.origin, &format!("spec.endpoints[{n}].address"), endpoint));
        }
    }
    for workload in &index.workloads {
        if let Some(Object::WorkloadEntry(entry)) = &workload.origin.document.object {
            out.extend(out_of_reach(&workload.origin, "spec.address", &entry.spec));
        }
    }
    taken(index, out);
}

fn without_address(entry: &Entered<'_>) -> Option<Message> {
    let object = entry.object;
    if !object.spec.addresses.is_empty() || !object.status.addresses.is_empty() {
        return None;
    }
    let text = "ServiceEntry addresses are required for this protocol: without spec.addresses, or status.addresses as istiod \
                writes them, connections go wherever DNS leads the app, past its endpoints, its waypoint and its name in \
                flows; set spec.addresses.";
    Some(entry.origin.message(Code::ServiceEntryAddressesRequired, "spec.hosts", text))
}

fn export(entry: &Entered<'_>) -> Option<Message> {
    let narrow = entry.object.spec.export_to.iter().any(|to| to != "*");
    let text = "exportTo does nothing in ambient mode: pods of every namespace may use the addresses. Use an \
                AuthorizationPolicy, at a waypoint if the endpoints are outside the mesh.";
    narrow.then(|| entry.origin.message(Code::ExportToIgnored, "spec.exportTo", text))
}

fn blocks(index: &Index<'_>, entry: &Entered<'_>) -> Vec<Message> {
    let object = entry.object;
    let namespace = object.metadata.namespace.as_str();
    let inherited = || {
        let home = index.namespaces.get(namespace)?;
        waypoint::chosen(&home.object.metadata.labels, namespace)
    };
    let choice = waypoint::chosen(&object.metadata.labels, namespace).or_else(inherited);
    let led = matches!(choice, Some(waypoint::Choice::Gateway { .. }));
    if object.spec.resolution == Resolution::None && !led {
        return Vec::new(); // to pass untouched is what it asks for
    }
    let wide = |text: &str| text.parse::<IpNet>().is_ok_and(|b| b.prefix_len() < b.max_prefix_len());
    let blocks = object.spec.addresses.iter().enumerate().filter(|(_, text)| wide(text));
    let message = |(n, block): (usize, &String)| {
        let field = format!("spec.addresses[{n}]");
        let text = format!(
            "{field}: connections to addresses in {block} pass untouched, past its endpoints and its waypoint; list addresses."
        );
        entry.origin.message(Code::AddressBlockNotLed, &field, text)
    };
    blocks.map(message).collect()
}

fn unmatched(entry: &Entered<'_>) -> Option<Message> {
    let selector = entry.object.spec.workload_selector.as_ref().filter(|_| entry.selected == Some(0))?;
    let labels: Vec<String> = selector.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let text = format!(
        "No matching workloads for this resource with the following labels: {}; it selects pods and WorkloadEntries of \
         its own namespace.",
        labels.join(",")
    );
    Some(entry.origin.message(Code::NoMatchingWorkloadsFound, "spec.workloadSelector.labels", text))
}

fn out_of_reach(origin: &Origin<'_>, field: &str, endpoint: &EntryEndpoint) -> Option<Message> {
    let address = endpoint.address.as_str();
    let unix = address.starts_with("unix://");
    let nowhere = address.parse::<IpAddr>().is_ok_and(|ip| !can_be_reached(&ip));
    let text = || {
        format!("{field}: {address} is nothing that another machine can reach; no connection is led there.")
    };
    (unix || nowhere).then(|| origin.message(Code::EndpointOutOfReach, field, text()))
}

/// The owner of each host, as the model chooses it: the Service that is called so, else the oldest.
fn taken(index: &Index<'_>, out: &mut Vec<Message>) {
    let mut entries: Vec<&Entered<'_>> = index.service_entries.values().collect();
    let age = |entry: &&Entered<'_>| {
        let meta = &entry.object.metadata;
        (meta.creation_timestamp.clone().unwrap_or_default(), meta.name.clone())
    };
    entries.sort_by_cached_key(age);
    let mut owners: HashMap<(&str, &str), String> = HashMap::new();
    for entry in entries {
        let meta = &entry.object.metadata;
        let (namespace, own) =
            (entry.origin.namespace, format!("ServiceEntry {}/{}", meta.namespace, meta.name));
        for (n, host) in entry.object.spec.hosts.iter().enumerate() {
            let service = service_called(index, namespace, host).unwrap_or_else(|| own.clone());
            let owner = owners.entry((namespace, host)).or_insert(service);
            if *owner != own {
                let field = format!("spec.hosts[{n}]");
                let text = format!(
                    "{field}: {host} is {owner} already, which counts instead; take the host out of one."
                );
                out.push(entry.origin.message(Code::HostTaken, &field, text));
            }
        }
    }
}

/// The Service whose own name in the cluster `host` is.
fn service_called(index: &Index<'_>, namespace: &str, host: &str) -> Option<String> {
    let name = host.strip_suffix(&format!(".{namespace}.svc.{}", index.settings.cluster_domain))?;
    index.services.contains_key(&(namespace, name)).then(|| format!("Service {namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, pod, service, texts};

    fn entry(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: a}}\nspec: {spec}\n---\n"
        )
    }

    fn machine(labels: &str, address: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: m, namespace: a}}\n\
             spec: {{address: {address}, labels: {labels}}}\n---\n"
        )
    }

    #[test]
    fn what_an_agent_cannot_do_is_told() {
        let host = "hosts: [db.example], ports: [{number: 80, name: http}]";
        assert!(
            codes(&entry("e", &format!("{{{host}, addresses: [10.1.0.1], exportTo: [\"*\"]}}"))).is_empty()
        );
        for (rest, code) in [
            ("resolution: DNS", "IST0134"),
            ("addresses: [10.1.0.1], exportTo: [.]", "CUL0501"),
            ("addresses: [10.1.0.0/24], resolution: STATIC, endpoints: [{address: 10.2.0.1}]", "CUL0502"),
            ("addresses: [10.1.0.1], resolution: STATIC, workloadSelector: {labels: {app: x}}", "IST0127"),
            ("addresses: [10.1.0.1], resolution: STATIC, endpoints: [{address: 127.0.0.1}]", "CUL0504"),
            ("addresses: [10.1.0.1], resolution: STATIC, endpoints: [{address: \"unix:///x\"}]", "CUL0504"),
        ] {
            assert_eq!(codes(&entry("e", &format!("{{{host}, {rest}}}"))), [code], "{rest}");
        }
        let open = "addresses: [10.1.0.0/24]";
        assert!(codes(&entry("e", &format!("{{{host}, {open}}}"))).is_empty(), "resolution NONE");
    }

    #[test]
    fn a_host_that_somebody_else_has_is_told() {
        let one =
            |name: &str, host: &str| entry(name, &format!("{{hosts: [{host}], addresses: [10.1.0.1]}}"));
        let found = texts(&[one("b", "x.example"), one("a", "x.example")].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("Warning [CUL0503] (ServiceEntry a/b f.yaml:"), "{found:?}");
        assert!(found[0].contains("is ServiceEntry a/a already"), "{found:?}");
        let found = texts(&[one("b", "s.a.svc.cluster.local"), service("a", "s", "{}", "[]")].concat());
        assert!(found[0].contains("CUL0503") && found[0].contains("Service a/s"), "{found:?}");
    }

    #[test]
    fn selectors_may_mean_workload_entries() {
        let selecting = "{hosts: [x.example], addresses: [10.1.0.1], workloadSelector: {labels: {app: x}}}";
        for other in [machine("{app: x}", "10.2.0.1"), pod("a", "p", "{app: x}")] {
            assert!(codes(&[entry("e", selecting), other].concat()).is_empty());
        }
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n\
                      spec: {selector: {matchLabels: {app: x}}, rules: [{}]}\n---\n";
        assert_eq!(codes(&[policy.to_owned(), machine("{app: x}", "10.2.0.1")].concat()), ["IST0167"]);
        let hbone = machine("{app: x, networking.istio.io/tunnel: http}", "10.2.0.1");
        assert!(codes(&[policy.to_owned(), hbone].concat()).is_empty());
        assert_eq!(codes(&machine("{}", "127.0.0.1")), ["CUL0504"]);
    }
}
