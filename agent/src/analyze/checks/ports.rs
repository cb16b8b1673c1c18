//! Ports of Services in policies: L4 sees the workload's own.

use super::super::index::{Policy, Target};
use super::super::{Code, Index, Message};
use crate::control::objects::TargetPort;
use crate::policy::{ConditionKey, Rule};

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    for policy in &index.policies {
        // At a waypoint the Service's port is what counts.
        let Some(target) = &policy.target else { continue };
        for (n, rule) in policy.object.rules.iter().enumerate() {
            for (field, port) in named(rule, &format!("spec.rules[{n}]")) {
                out.extend(judge(policy, target, &field, port));
            }
        }
    }
}

/// The ports that a rule names, each with its field.
fn named(rule: &Rule, field: &str) -> Vec<(String, u16)> {
    let mut found = Vec::new();
    let mut list = |field: String, ports: &[u16]| {
        found.extend(ports.iter().enumerate().map(|(n, port)| (format!("{field}[{n}]"), *port)));
    };
    for (n, to) in rule.to.iter().enumerate() {
        list(format!("{field}.to[{n}].operation.ports"), &to.ports);
        list(format!("{field}.to[{n}].operation.notPorts"), &to.not_ports);
    }
    for (n, when) in rule.when.iter().enumerate() {
        if let ConditionKey::DestinationPort { values, not_values } = &when.test {
            list(format!("{field}.when[{n}].values"), values);
            list(format!("{field}.when[{n}].notValues"), not_values);
        }
    }
    found
}

fn judge(policy: &Policy<'_>, target: &Target, field: &str, port: u16) -> Option<Message> {
    let (service, behind) = target.service_ports.get(&port).filter(|_| !target.ports.contains(&port))?;
    let instead = match behind {
        TargetPort::Number(number) => format!("write {number}"),
        TargetPort::Name(name) => format!("write the number of its port {name:?}"),
    };
    let text = format!(
        "{field}: {port} is a port of Service {service}, but what counts at L4 is the workload's own port; {instead}."
    );
    Some(policy.origin.message(Code::ServicePortInPolicy, field, text))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{codes, namespace, pod, policy, service, texts};

    fn mesh(port: u16, target: &str) -> String {
        let ports = format!("[{{port: 80, targetPort: {target}}}]");
        let rules = format!("{{rules: [{{to: [{{operation: {{ports: [\"{port}\"]}}}}]}}]}}");
        [namespace("a"), pod("a", "q", "{app: x}"), service("a", "s", "{}", &ports), policy(&rules)].concat()
    }

    #[test]
    fn a_service_port_in_a_policy_is_found() {
        let found = texts(&mesh(80, "8080"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("[CUL0110]"), "{found:?}");
        assert!(
            found[0].contains("80 is a port of Service a/s") && found[0].contains("write 8080"),
            "{found:?}"
        );
        assert!(texts(&mesh(80, "http"))[0].contains("the number of its port \"http\""));
        let when = mesh(80, "8080").replace(
            "to: [{operation: {ports: [\"80\"]}}]",
            "when: [{key: destination.port, values: [\"80\"]}]",
        );
        assert_eq!(codes(&when), ["CUL0110"]);
    }

    #[test]
    fn the_workloads_own_port_is_fine() {
        for text in [mesh(8080, "8080"), mesh(80, "80"), mesh(9090, "8080")] {
            assert!(codes(&text).is_empty());
        }
        let declared = mesh(80, "8080").replace(
            "spec: {}\n---\napiVersion: v1\nkind: Service",
            "spec: {containers: [{ports: [{containerPort: 80}]}]}\n---\napiVersion: v1\nkind: Service",
        );
        assert!(codes(&declared).is_empty());
    }
}
