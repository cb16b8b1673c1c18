//! VirtualServices and DestinationRules: whether their hosts are there, and whether anything reads them.

use std::collections::HashMap;

use super::super::index::Name;
use super::super::l7::{DestinationRule, VirtualService, Way, spec_of};
use super::super::message::Origin;
use super::super::{Code, Index, Message};
use super::rules::without_waypoint;
use crate::control::objects::ServiceType;

const GROUP: &str = "networking.istio.io";

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    let mut hosts: HashMap<String, Vec<Owner<'_>>> = HashMap::new();
    for origin in &index.objects {
        if let Some(rule) = spec_of::<VirtualService>(origin.document, GROUP, &["VirtualService"]) {
            destinations(index, origin, &rule, out);
            // Without `gateways` it is for the mesh.
            if rule.gateways.is_empty() || rule.gateways.iter().any(|gateway| gateway == "mesh") {
                out.extend(unread(index, origin, "spec.hosts", &rule.hosts));
                collect(index, origin, &rule, &mut hosts);
            }
        }
        if let Some(rule) = spec_of::<DestinationRule>(origin.document, GROUP, &["DestinationRule"]) {
            destination_rule(index, origin, &rule, out);
        }
    }
    conflicts(&hosts, out);
}

/// What a host name leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Host {
    /// Namespace and name.
    Service(String, String),
    Entry(String, String),
    /// Nothing of the input.
    Nobody,
    /// A pattern, which may mean several.
    Pattern,
}

/// The name in full, as Istio reads it: without a dot a Service of the object's own namespace.
fn full(index: &Index<'_>, host: &str, namespace: &str) -> String {
    match host.contains('.') || host.starts_with('*') {
        true => host.to_owned(),
        false => format!("{host}.{namespace}.svc.{}", index.settings.cluster_domain),
    }
}

fn find(index: &Index<'_>, host: &str, namespace: &str) -> Host {
    let host = full(index, host, namespace);
    if host.starts_with('*') {
        return Host::Pattern;
    }
    let name = host.strip_suffix(&format!(".svc.{}", index.settings.cluster_domain));
    let name = name.and_then(|name| name.split_once('.')).map(|(name, namespace)| (namespace, name));
    if let Some((namespace, name)) = name.filter(|name| index.services.contains_key(name)) {
        return Host::Service(namespace.to_owned(), name.to_owned());
    }
    let has = |hosts: &[String]| {
        hosts
            .iter()
            .any(|own| *own == host || own.strip_prefix('*').is_some_and(|suffix| host.ends_with(suffix)))
    };
    let mut entries = index.service_entries.iter().filter(|(_, entry)| has(&entry.object.spec.hosts));
    entries.next().map_or(Host::Nobody, |((namespace, name), _)| {
        Host::Entry((*namespace).to_owned(), (*name).to_owned())
    })
}

fn destinations(index: &Index<'_>, origin: &Origin<'_>, rule: &VirtualService, out: &mut Vec<Message>) {
    let mut ways = |list: &str, ways: &[Way]| {
        for (n, way) in ways.iter().enumerate() {
            for (m, weighted) in way.route.iter().enumerate() {
                let host = weighted.destination.host.as_str();
                if host.is_empty() || find(index, host, origin.namespace) != Host::Nobody {
                    continue;
                }
                let hint = match host.matches('.').count() {
                    1..=2 => "; write the name in full: <service>.<namespace>.svc.<domain of the cluster>",
                    _ => "",
                };
                let text = format!("Referenced host not found: \"{host}\"{hint}");
                let field = format!("spec.{list}[{n}].route[{m}].destination.host");
                out.push(origin.message(Code::ReferencedResourceNotFound, &field, text));
            }
        }
    };
    ways("http", &rule.http);
    ways("tcp", &rule.tcp);
    ways("tls", &rule.tls);
}

/// Nobody reads the rules of Services without a waypoint.
fn unread(index: &Index<'_>, origin: &Origin<'_>, field: &str, hosts: &[String]) -> Option<Message> {
    let found: Vec<Host> = hosts.iter().map(|host| find(index, host, origin.namespace)).collect();
    let lacks = |host: &Host| match host {
        Host::Service(namespace, name) => without_waypoint(index, "Service", (namespace, name)),
        Host::Entry(namespace, name) => without_waypoint(index, "ServiceEntry", (namespace, name)),
        Host::Nobody | Host::Pattern => None,
    };
    let all: Option<Vec<String>> = found.iter().map(lacks).collect();
    let which = all?.into_iter().next().filter(|_| !index.has_other_proxies())?;
    let text = format!("{} has no effect: {which}", origin.document.kind);
    Some(origin.message(Code::NeedsWaypoint, field, text))
}

fn destination_rule(index: &Index<'_>, origin: &Origin<'_>, rule: &DestinationRule, out: &mut Vec<Message>) {
    let host = find(index, &rule.host, origin.namespace);
    if host == Host::Nobody && !rule.host.is_empty() {
        let text = format!(
            "The host {} defined in the DestinationRule does not match any services in the mesh.",
            rule.host
        );
        out.push(origin.message(Code::UnknownDestinationRuleHost, "spec.host", text));
        return;
    }
    if let Host::Service(namespace, name) = &host {
        subsets(index, origin, rule, (namespace, name), out);
    }
    out.extend(unread(index, origin, "spec.host", std::slice::from_ref(&rule.host)));
}

fn subsets(
    index: &Index<'_>,
    origin: &Origin<'_>,
    rule: &DestinationRule,
    name: Name<'_>,
    out: &mut Vec<Message>,
) {
    let Some(service) = index.services.get(&name).map(|item| &item.object.spec) else { return };
    // What EndpointSlices lead to has no labels that the input shows.
    if service.selector.is_empty() || service.r#type == ServiceType::ExternalName {
        return;
    }
    for (n, subset) in rule.subsets.iter().enumerate() {
        let selects = |labels: &std::collections::BTreeMap<String, String>| {
            service.selector.iter().chain(&subset.labels).all(|(key, value)| labels.get(key) == Some(value))
        };
        let mut pods = index.workloads.iter().filter(|workload| workload.origin.namespace == name.0);
        if !pods.any(|workload| selects(&workload.pod.metadata.labels)) {
            let text = format!(
                "The Subset {} defined in the DestinationRule does not select any pods. Which may lead to 503 UH (NoHealthyUpstream).",
                subset.name
            );
            let field = format!("spec.subsets[{n}]");
            out.push(origin.message(Code::DestinationRuleSubsetNotSelectPods, &field, text));
        }
    }
}

/// A VirtualService that defines a host.
#[derive(Clone, Copy)]
struct Owner<'a> {
    origin: Origin<'a>,
    /// Only for its own namespace.
    private: bool,
}

fn collect<'a>(
    index: &Index<'_>,
    origin: &Origin<'a>,
    rule: &VirtualService,
    hosts: &mut HashMap<String, Vec<Owner<'a>>>,
) {
    let private = !rule.export_to.is_empty() && !rule.export_to.iter().any(|to| to == "*");
    for host in &rule.hosts {
        let owners = hosts.entry(full(index, host, origin.namespace)).or_default();
        owners.push(Owner { origin: *origin, private });
    }
}

fn conflicts(hosts: &HashMap<String, Vec<Owner<'_>>>, out: &mut Vec<Message>) {
    for (host, owners) in hosts {
        for owner in owners {
            let meets = |other: &&Owner<'_>| {
                let shared = !owner.private && !other.private;
                shared || owner.origin.namespace == other.origin.namespace
            };
            let mut names: Vec<String> = owners
                .iter()
                .filter(meets)
                .map(|owner| format!("{}/{}", owner.origin.namespace, owner.origin.name))
                .collect();
            names.sort_unstable();
            if names.len() > 1 {
                let text = format!(
                    "The VirtualServices {} associated with mesh gateway define the same host {host} which can lead to undefined \
                     behavior. This can be fixed by merging the conflicting VirtualServices into a single resource.",
                    names.join(",")
                );
                let code = Code::ConflictingMeshGatewayVirtualServiceHosts;
                out.push(owner.origin.message(code, "spec.hosts", text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, gateway, namespace, namespace_with, object, pod, service, texts};

    fn virtual_service(name: &str, spec: &str) -> String {
        object("networking.istio.io/v1", "VirtualService", "a", name, spec)
    }

    fn destination_rule(spec: &str) -> String {
        object("networking.istio.io/v1", "DestinationRule", "a", "d", spec)
    }

    /// Service `s` with its pod, and its waypoint or none.
    fn mesh(waypoint: bool) -> String {
        let home = match waypoint {
            true => {
                namespace_with("a", "{istio.io/dataplane-mode: ambient, istio.io/use-waypoint: w}")
                    + &gateway("a", "w")
            }
            false => namespace("a"),
        };
        [home, pod("a", "p", "{app: x, version: v1}"), service("a", "s", "{}", "[]")].concat()
    }

    const ROUTE: &str = "{hosts: [s], http: [{route: [{destination: {host: s}}]}]}";

    #[test]
    fn rules_need_a_waypoint() {
        for rule in [virtual_service("v", ROUTE), destination_rule("{host: s.a.svc.cluster.local}")] {
            assert!(codes(&[mesh(true), rule.clone()].concat()).is_empty());
            let found = texts(&[mesh(false), rule.clone()].concat());
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("Warning [CUL0313]"), "{found:?}");
            assert!(found[0].contains("Service a/s has no waypoint"), "{found:?}");
            // Another proxy may read them.
            let sidecar = pod("a", "q", "{sidecar.istio.io/inject: \"true\"}");
            assert!(codes(&[mesh(false), rule, sidecar].concat()).is_empty());
        }
        let edge = ROUTE.replace("{hosts", "{gateways: [edge], hosts");
        assert!(codes(&[mesh(false), virtual_service("v", &edge)].concat()).is_empty());
    }

    #[test]
    fn a_destination_that_is_not_there_is_found() {
        let to = |host: &str| virtual_service("v", &ROUTE.replace("host: s", &format!("host: {host}")));
        let found = texts(&[mesh(true), to("t")].concat());
        assert!(
            found[0].contains("Error [IST0101]") && found[0].contains("host not found: \"t\""),
            "{found:?}"
        );
        assert!(texts(&[mesh(true), to("s.a")].concat())[0].contains("write the name in full"));
        assert!(codes(&[mesh(true), to("s.a.svc.cluster.local")].concat()).is_empty());
    }

    #[test]
    fn a_rule_for_nobody_and_a_subset_of_nobody_are_found() {
        assert_eq!(codes(&[mesh(true), destination_rule("{host: t}")].concat()), ["IST0174"]);
        let subset = |label: &str| {
            destination_rule(&format!("{{host: s, subsets: [{{name: v, labels: {{version: {label}}}}}]}}"))
        };
        assert_eq!(codes(&[mesh(true), subset("v2")].concat()), ["IST0173"]);
        assert!(codes(&[mesh(true), subset("v1")].concat()).is_empty());
    }

    #[test]
    fn two_virtual_services_of_one_host_are_found() {
        let one = virtual_service("one", ROUTE);
        let two = virtual_service("two", &ROUTE.replace("hosts: [s]", "hosts: [s.a.svc.cluster.local]"));
        let found = texts(&[mesh(true), one.clone(), two].concat());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("Error [IST0109] (VirtualService a/one "), "{found:?}");
        assert!(
            found[0].contains(
                "VirtualServices a/one,a/two associated with mesh gateway define the same host s.a.svc"
            ),
            "{found:?}"
        );
        assert!(codes(&[mesh(true), one].concat()).is_empty());
    }
}
