//! What instances have pinned, whether or not an agent runs.

use std::os::unix::net::UnixStream;

use super::finding::{Finding, number};
use crate::app;
use crate::bpf::{self, Instance};

/// Of `chosen`, or of the only instance when none is named; and what others have left behind.
pub(super) fn findings(chosen: Option<&str>) -> Vec<Finding> {
    let instances = match bpf::instances() {
        Ok(instances) => instances,
        Err(error) => {
            return vec![Finding::error("hooks", format!("{}: {error}", bpf::PIN_ROOT), "run as root")];
        }
    };
    let chosen = match (chosen, &instances[..]) {
        (Some(name), _) => Some(name),
        (None, [only]) => Some(only.name.as_str()),
        (None, _) => None,
    };
    let own = |name| match instances.iter().find(|instance| instance.name == name) {
        Some(instance) => of(instance),
        None => vec![nothing(name)],
    };
    let mut findings = chosen.map(own).unwrap_or_default();
    let others = instances.iter().filter(|instance| Some(instance.name.as_str()) != chosen);
    findings.extend(others.filter_map(left_behind));
    findings
}

fn nothing(name: &str) -> Finding {
    Finding::error(
        "hooks",
        format!("instance {name} has nothing in the kernel: no connection is decided"),
        "start the agent",
    )
}

fn of(instance: &Instance) -> Vec<Finding> {
    let mut findings = vec![node(instance), pods(instance)];
    if instance.set_aside {
        findings.push(Finding::warning(
            "earlier programs",
            "those of an agent with another map layout still enforce beside the new ones",
            "they go when the agent has put its state in force: see `culvert ready`",
        ));
    }
    findings
}

fn node(instance: &Instance) -> Finding {
    let missing = instance.detached.join(", ");
    if missing.is_empty() {
        return Finding::ok(
            "hooks",
            format!("{} attached for instance {}", number(instance.attached, "program"), instance.name),
        );
    }
    Finding::error(
        "hooks",
        format!(
            "not attached: {missing}; somebody has removed its pin or its cgroup, and connections pass undecided"
        ),
        "restart the agent: it attaches them again",
    )
}

fn pods(instance: &Instance) -> Finding {
    if instance.gone == 0 {
        return Finding::ok(
            "pods' hooks",
            format!(
                "the verdict in {}, the source guard on {}",
                number(instance.pods, "network namespace"),
                number(instance.guards, "interface")
            ),
        );
    }
    Finding::warning(
        "pods' hooks",
        format!("{} of namespaces or interfaces that are gone", number(instance.gone, "pin")),
        "a running agent sweeps them; without one: `culvert uninstall`",
    )
}

/// Enforces what nobody changes any more.
fn left_behind(instance: &Instance) -> Option<Finding> {
    let runs = UnixStream::connect(app::state_dir(&instance.name).join("admin.sock")).is_ok();
    (!runs).then(|| {
        Finding::warning(
            "other instances",
            format!("{} has {} attached and no agent", instance.name, number(instance.attached, "program")),
            format!("start it again, or `culvert uninstall --instance {}`", instance.name),
        )
    })
}
