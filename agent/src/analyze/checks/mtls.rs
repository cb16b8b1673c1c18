//! PeerAuthentications that others override, and ports that nobody has.

use std::collections::HashMap;

use super::super::index::Authn;
use super::super::{Code, Index, Message};

const OLDEST: &str =
    "of several in one scope the oldest counts (without creationTimestamp: the first by name)";

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    let mut general: HashMap<&str, &Authn<'_>> = HashMap::new();
    for authn in index.peer_authentications.iter().filter(|a| a.object.selector.is_none()) {
        let oldest = general.entry(&authn.object.namespace).or_insert(authn);
        if authn.object.age() < oldest.object.age() {
            *oldest = authn;
        }
    }
    for authn in &index.peer_authentications {
        match authn.object.selector {
            None => {
                out.extend(general.get(authn.object.namespace.as_str()).and_then(|by| shadowed(authn, by)))
            }
            Some(_) if authn.object.namespace != index.settings.root_namespace => {
                out.extend(partly_shadowed(index, authn));
                authn.object.port_modes.keys().for_each(|port| out.extend(undeclared(authn, *port)));
            }
            Some(_) => {}
        }
    }
}

fn name(authn: &Authn<'_>) -> String {
    format!("{}/{}", authn.object.namespace, authn.object.name)
}

fn shadowed(authn: &Authn<'_>, by: &Authn<'_>) -> Option<Message> {
    if std::ptr::eq(authn, by) {
        return None;
    }
    let text = format!("It has no effect: {} counts instead; {OLDEST}. Remove one of them.", name(by));
    Some(authn.origin.message(Code::PeerAuthenticationShadowed, "", text))
}

fn partly_shadowed(index: &Index<'_>, authn: &Authn<'_>) -> Option<Message> {
    let workloads = authn.target.workloads.iter().filter_map(|n| index.workloads.get(*n));
    let mut others = workloads.filter_map(|workload| {
        let by = index.peer_authentications.get(workload.authn?)?;
        (!std::ptr::eq(authn, by)).then_some((workload, by))
    });
    let (workload, by) = others.next()?;
    let effect = if 1 + others.count() == authn.target.workloads.len() {
        "It has no effect".to_owned()
    } else {
        format!("It has no effect for {}", workload.origin.object())
    };
    let text = format!("{effect}: {} selects the same and counts instead; {OLDEST}.", name(by));
    Some(authn.origin.message(Code::PeerAuthenticationShadowed, "spec.selector", text))
}

/// Containers may leave their ports undeclared: then nothing is known.
fn undeclared(authn: &Authn<'_>, port: u16) -> Option<Message> {
    let target = &authn.target;
    if target.ports.is_empty() || target.ports.contains(&port) {
        return None;
    }
    let hint = match target.service_ports.get(&port) {
        Some((service, _)) => {
            format!("; it is a port of Service {service}, and the workload's own is what counts")
        }
        None => String::new(),
    };
    let text = format!("spec.portLevelMtls: no workload that it selects declares port {port}{hint}.");
    let field = "spec.portLevelMtls";
    Some(authn.origin.entry(Code::PortNotDeclared, field, &port.to_string(), text))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{authn, codes, pod, service, texts};

    #[test]
    fn of_two_in_one_namespace_the_younger_is_told() {
        let two = [authn("a", "x", "{mtls: {mode: STRICT}}"), authn("a", "b", "{mtls: {mode: PERMISSIVE}}")];
        let found = texts(&two.concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("[CUL0202] (PeerAuthentication a/x "), "{found:?}");
        assert!(found[0].contains("a/b counts instead"), "{found:?}");
        let dated = two[0].replace("name: x", "creationTimestamp: 2026-01-01T00:00:00Z, name: x");
        assert!(texts(&[dated, two[1].clone()].concat())[0].contains("(PeerAuthentication a/b "));
    }

    #[test]
    fn of_two_that_select_the_same_workload_the_younger_is_told() {
        let selects = |name, labels: &str| {
            authn("a", name, &format!("{{selector: {{matchLabels: {labels}}}, mtls: {{mode: STRICT}}}}"))
        };
        let pods = [pod("a", "p", "{app: x, tier: t}"), pod("a", "q", "{app: x}")].concat();
        let found = texts(&[pods.clone(), selects("b", "{tier: t}"), selects("c", "{app: x}")].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("(PeerAuthentication a/c "), "{found:?}");
        assert!(found[0].contains("no effect for Pod a/p: a/b selects the same"), "{found:?}");
        let found = texts(&[pods, selects("b", "{app: x}"), selects("c", "{app: x}")].concat());
        assert!(found[0].contains("It has no effect: a/b"), "{found:?}");
    }

    #[test]
    fn a_port_that_no_workload_declares_is_told() {
        let ports = |port: u16| {
            let port = format!("\"{port}\": {{mode: PERMISSIVE}}");
            authn("a", "x", &format!("{{selector: {{matchLabels: {{app: x}}}}, portLevelMtls: {{{port}}}}}"))
        };
        let pod = pod("a", "p", "{app: x}");
        let declares = pod.replace("spec: {", "spec: {containers: [{ports: [{containerPort: 8080}]}], ");
        let service = service("a", "s", "{}", "[{port: 80, targetPort: 8080}]");
        assert!(codes(&[pod, ports(80)].concat()).is_empty());
        assert!(codes(&[declares.clone(), ports(8080)].concat()).is_empty());
        let found = texts(&[declares, service, ports(80)].concat());
        assert!(found[0].starts_with("Info [CUL0203]"), "{found:?}");
        assert!(found[0].contains("it is a port of Service a/s"), "{found:?}");
    }
}
