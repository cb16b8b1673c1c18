//! What Istio's admission checks of ServiceEntries and WorkloadEntries (`pkg/config/validation`), as far as Culvert reads them.
//! What is valid there and means nothing here is told elsewhere, with the service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::names::check_account;
use crate::control::names::{UNIX, is_dns_name};
use crate::control::objects::{EntryEndpoint, Resolution, ServiceEntry, WorkloadEntry};

/// The error: the field, and what is wrong with it.
type Wrong = (String, String);

const PROTOCOLS: &[&str] = &[
    "",
    "GRPC",
    "GRPC-WEB",
    "HBONE",
    "HTTP",
    "HTTP2",
    "HTTP_PROXY",
    "HTTPS",
    "MONGO",
    "MYSQL",
    "REDIS",
    "TCP",
    "TLS",
    "UDP",
];

pub(super) fn check_workload(entry: &WorkloadEntry) -> Result<(), Wrong> {
    check_endpoint("spec", &entry.spec)
}

pub(super) fn check_service(entry: &ServiceEntry) -> Result<(), Wrong> {
    let spec = &entry.spec;
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        let message = "stands beside workloadSelector, and only one of the two can say who serves it";
        return Err(("spec.endpoints".to_owned(), message.to_owned()));
    }
    check_hosts(entry)?;
    check_addresses(entry)?;
    check_ports(entry)?;
    check_endpoints(entry)
}

fn check_hosts(entry: &ServiceEntry) -> Result<(), Wrong> {
    let hosts = &entry.spec.hosts;
    if hosts.is_empty() {
        return Err(("spec.hosts".to_owned(), "must name at least one host".to_owned()));
    }
    for (n, host) in hosts.iter().enumerate() {
        let wrong = |message: String| Err((format!("spec.hosts[{n}]"), message));
        let rest = host.strip_prefix('*').map_or(host.as_str(), |rest| rest.trim_start_matches(['.', '-']));
        if !is_dns_name(rest) {
            return wrong(format!("{:?} is no host name, nor one that begins with \"*\"", short(host)));
        }
        let asked = matches!(entry.spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        if rest.len() != host.len() && asked && entry.serves_hosts() {
            return wrong(format!(
                "DNS cannot be asked for {host:?}; list endpoints, or use resolution NONE"
            ));
        }
    }
    Ok(())
}

fn check_addresses(entry: &ServiceEntry) -> Result<(), Wrong> {
    let blocks = matches!(entry.spec.resolution, Resolution::None | Resolution::Static);
    for (n, address) in entry.spec.addresses.iter().enumerate() {
        let wrong = |message: String| Err((format!("spec.addresses[{n}]"), message));
        if address.parse::<IpAddr>().is_ok() {
            continue;
        }
        if address.parse::<IpNet>().is_err() {
            return wrong(format!("{:?} is neither an IP address nor a block of them", short(address)));
        }
        if !blocks {
            return wrong(format!("{address:?} is a block, which only resolution NONE and STATIC may have"));
        }
    }
    Ok(())
}

fn check_ports(entry: &ServiceEntry) -> Result<(), Wrong> {
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (n, port) in entry.spec.ports.iter().enumerate() {
        let wrong = |field: &str, message: String| Err((format!("spec.ports[{n}].{field}"), message));
        if port.number == 0 {
            return wrong("number", "must be between 1 and 65535".to_owned());
        }
        if !numbers.insert(port.number) {
            return wrong("number", format!("{} is there already", port.number));
        }
        if !port.name.is_empty() && !names.insert(port.name.as_str()) {
            return wrong("name", format!("{:?} is there already", short(&port.name)));
        }
        if !PROTOCOLS.contains(&port.protocol.to_ascii_uppercase().as_str()) {
            return wrong(
                "protocol",
                format!("{:?} is none of {}", short(&port.protocol), PROTOCOLS[1..].join(", ")),
            );
        }
    }
    Ok(())
}

fn check_endpoints(entry: &ServiceEntry) -> Result<(), Wrong> {
    let spec = &entry.spec;
    let most = match spec.resolution {
        Resolution::None => 0,
        Resolution::DnsRoundRobin => 1,
        Resolution::Static | Resolution::Dns | Resolution::DynamicDns => usize::MAX,
    };
    if spec.endpoints.len() > most {
        let message =
            format!("are {}, and resolution {} may have {most}", spec.endpoints.len(), word(spec.resolution));
        return Err(("spec.endpoints".to_owned(), message));
    }
    for (n, endpoint) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{n}]");
        check_endpoint(&field, endpoint)?;
        let by_name = is_dns_name(&endpoint.address) && endpoint.address.parse::<IpAddr>().is_err();
        if spec.resolution == Resolution::Static && by_name {
            let message =
                format!("{:?} is a name; use an IP address, or resolution DNS", short(&endpoint.address));
            return Err((format!("{field}.address"), message));
        }
        let known = |name: &str| spec.ports.iter().any(|port| port.name == name);
        if let Some(name) = endpoint.ports.keys().find(|name| !known(name)) {
            let message = format!("no port of spec.ports is called {:?}", short(name));
            return Err((format!("{field}.ports"), message));
        }
    }
    Ok(())
}

fn check_endpoint(field: &str, endpoint: &EntryEndpoint) -> Result<(), Wrong> {
    let address = endpoint.address.as_str();
    let wrong = |message: String| Err((format!("{field}.address"), message));
    if address.is_empty() && endpoint.network.is_empty() {
        return wrong("must be an IP address or a host name".to_owned());
    }
    let known = address.is_empty() || address.starts_with(UNIX) || address.parse::<IpAddr>().is_ok();
    if !known && !is_dns_name(address) {
        return wrong(format!("{:?} is neither an IP address nor a host name", short(address)));
    }
    if let Some((name, _)) = endpoint.ports.iter().find(|(_, number)| **number == 0) {
        return Err((format!("{field}.ports"), format!("{:?} must be between 1 and 65535", short(name))));
    }
    // With a `/` in it, the account could pass for another one.
    check_account(&endpoint.service_account).map_err(|message| (format!("{field}.serviceAccount"), message))
}

fn word(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::None => "NONE",
        Resolution::Static => "STATIC",
        Resolution::Dns => "DNS",
        Resolution::DnsRoundRobin => "DNS_ROUND_ROBIN",
        Resolution::DynamicDns => "DYNAMIC_DNS",
    }
}

fn short(text: &str) -> String {
    text.chars().take(63).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::control::manifests::parse;

    fn check(kind: &str, version: &str, spec: &str) -> Result<(), String> {
        let text = format!(
            "apiVersion: networking.istio.io/{version}\nkind: {kind}\nmetadata: {{name: e, namespace: a}}\nspec: {{{spec}}}\n"
        );
        parse(Path::new("m.yaml"), text.as_bytes()).map(drop).map_err(|problems| {
            assert_eq!((problems.len(), problems[0].line), (1, 4), "{problems:?}");
            assert_eq!(problems[0].object, format!("{kind} a/e"));
            format!("{}: {}", problems[0].field, problems[0].message)
        })
    }

    #[test]
    fn what_istio_takes_is_taken() {
        for spec in [
            "hosts: [x]",
            "hosts: [\"*.x.example\", 10.0.0.1]",
            "hosts: [x], addresses: [10.0.0.0/8, \"fd00::1\"], ports: [{number: 80, protocol: http, name: a}]",
            "hosts: [x], location: MESH_INTERNAL, resolution: DYNAMIC_DNS, exportTo: [\"*\", ., \"~\", other]",
            "hosts: [x], resolution: DNS, endpoints: [{address: y.example., weight: 5}, {address: 10.0.0.1}]",
            "hosts: [x], resolution: STATIC, endpoints: [{address: \"unix:///x\"}, {network: n}], workloadSelector: null",
            "hosts: [x], resolution: STATIC, workloadSelector: {labels: {app: x}}, subjectAltNames: [a], unknown: 1",
        ] {
            for version in ["v1", "v1beta1", "v1alpha3"] {
                assert_eq!(check("ServiceEntry", version, spec), Ok(()), "{spec}");
            }
        }
        for spec in
            ["address: 10.0.0.1", "address: vm.example, ports: {http: 80}", "network: n, serviceAccount: a.b"]
        {
            assert_eq!(check("WorkloadEntry", "v1", spec), Ok(()), "{spec}");
        }
    }

    #[test]
    fn what_istio_refuses_is_refused() {
        for (spec, problem) in [
            ("", "spec.hosts: must name at least one host"),
            ("hosts: [\"*\"]", "spec.hosts[0]: \"*\" is no host name"),
            ("hosts: [a, b/c]", "spec.hosts[1]: \"b/c\" is no host name"),
            ("hosts: [\"*.x\"], resolution: DNS", "spec.hosts[0]: DNS cannot be asked for \"*.x\""),
            ("hosts: [x], addresses: [a]", "spec.addresses[0]: \"a\" is neither an IP address"),
            (
                "hosts: [x], addresses: [10.0.0.0/8], resolution: DNS",
                "spec.addresses[0]: \"10.0.0.0/8\" is a block",
            ),
            ("hosts: [x], ports: [{number: 0}]", "spec.ports[0].number: must be"),
            ("hosts: [x], ports: [{number: 70000}]", "spec.ports[0].number: "),
            ("hosts: [x], ports: [{number: 1}, {number: 1}]", "spec.ports[1].number: 1 is there already"),
            (
                "hosts: [x], ports: [{number: 1, name: a}, {number: 2, name: a}]",
                "spec.ports[1].name: \"a\" is there already",
            ),
            (
                "hosts: [x], ports: [{number: 1, protocol: X}]",
                "spec.ports[0].protocol: \"X\" is none of GRPC",
            ),
            ("hosts: [x], resolution: STATICAL", "spec.resolution: unknown variant"),
            (
                "hosts: [x], endpoints: [{address: 10.0.0.1}]",
                "spec.endpoints: are 1, and resolution NONE may have 0",
            ),
            (
                "hosts: [x], resolution: DNS_ROUND_ROBIN, endpoints: [{address: a}, {address: b}]",
                "spec.endpoints: are 2",
            ),
            (
                "hosts: [x], resolution: STATIC, endpoints: [{address: a.b}]",
                "spec.endpoints[0].address: \"a.b\" is a name",
            ),
            (
                "hosts: [x], resolution: DNS, endpoints: [{address: a/b}]",
                "spec.endpoints[0].address: \"a/b\" is neither",
            ),
            ("hosts: [x], resolution: STATIC, endpoints: [{}]", "spec.endpoints[0].address: must be"),
            (
                "hosts: [x], resolution: STATIC, endpoints: [{address: 10.0.0.1, ports: {a: 1}}]",
                "spec.endpoints[0].ports: no port of spec.ports is called \"a\"",
            ),
            (
                "hosts: [x], resolution: STATIC, endpoints: [{address: 10.0.0.1, serviceAccount: a/b}]",
                "spec.endpoints[0].serviceAccount: \"a/b\" is no name",
            ),
            (
                "hosts: [x], resolution: STATIC, workloadSelector: {labels: {}}, endpoints: [{address: 10.0.0.1}]",
                "spec.endpoints: stands beside workloadSelector",
            ),
        ] {
            let found = check("ServiceEntry", "v1", spec);
            assert!(found.as_ref().is_err_and(|found| found.starts_with(problem)), "{spec}: {found:?}");
        }
        for (spec, problem) in [
            ("", "spec.address: must be an IP address or a host name"),
            ("address: \"a b\"", "spec.address: \"a b\" is neither"),
            ("address: 10.0.0.1, ports: {a: 0}", "spec.ports: \"a\" must be between 1 and 65535"),
            ("address: 10.0.0.1, serviceAccount: \"x/sa/y\"", "spec.serviceAccount: \"x/sa/y\" is no name"),
        ] {
            let found = check("WorkloadEntry", "v1", spec);
            assert!(found.as_ref().is_err_and(|found| found.starts_with(problem)), "{spec}: {found:?}");
        }
    }
}
