//! The pods of the soak, its objects, and the flows between them.

use serde_json::{Value, json};

use super::oracle::Route;
use super::pod::{PORT, Style};
use super::state::{Pod, State};

const fn pod(name: &'static str, node: &'static str) -> Pod {
    Pod { name, node, guest: false, serves: false }
}

const fn server(name: &'static str, node: &'static str) -> Pod {
    Pod { name, node, guest: false, serves: true }
}

/// Who is there. `calm` is always in the mesh and always let in by its own; `evil` is in the mesh, and `shop` denies it by
/// name; `out` never joins.
pub(crate) const PODS: [Pod; 12] = [
    pod("web/a", "n1"),
    pod("web/b", "n2"),
    pod("evil/e1", "n1"),
    pod("evil/e2", "n2"),
    pod("out/o", "n1"),
    pod("calm/c1", "n1"),
    pod("calm/c2", "n2"),
    server("calm/server", "n1"),
    server("shop/s1", "n1"),
    server("shop/s2", "n2"),
    Pod { guest: true, ..pod("web/guest", "n2") },
    Pod { guest: true, ..server("shop/guest", "n1") },
];
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];
/// Pods that are labelled out of the mesh now and then.
pub(crate) const MAY_OPT_OUT: [&str; 2] = ["web/b", "shop/s2"];
/// Namespaces that join and leave.
pub(crate) const MAY_LEAVE: [&str; 2] = ["web", "shop"];

/// A pod by its name.
pub(crate) fn find(name: &str) -> Option<Pod> {
    PODS.into_iter().find(|pod| pod.name == name)
}

/// A flow: from where, to which address of what.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) route: Route,
    /// As [`crate::lab::Lab::substitute`] reads it.
    pub(crate) address: String,
    pub(crate) every: u64,
}

impl Lane {
    /// What it is for the summary.
    pub(crate) fn title(&self) -> String {
        let Route { from, to, style } = &self.route;
        let place = match &to[..] {
            [one] if one.node == from.node => "same node",
            [_] => "other node",
            _ => "service",
        };
        let style = match style {
            Style::New => "new connections",
            Style::Kept => "kept for seconds",
            Style::Long => "kept throughout",
        };
        let to = to.first().map_or("", Pod::namespace);
        format!("{} -> {to}, {place}, {style}", from.namespace())
    }
}

/// All flows. A flow's place in the list is its number.
pub(crate) fn lanes() -> Vec<Lane> {
    let mut lanes = Vec::new();
    let mut add = |from: &Pod, to: Vec<Pod>, style, kind: &str, name: &str, every| {
        let address = format!("${{{kind}:{name}}}:{PORT}");
        lanes.push(Lane { route: Route { from: *from, to, style }, address, every });
    };
    let shop: Vec<Pod> = PODS.into_iter().filter(|p| p.serves && p.namespace() == "shop").collect();
    for from in PODS.iter().filter(|p| !p.serves && p.namespace() != "calm") {
        for to in shop.iter().filter(|to| !to.guest) {
            for kind in ["pod", "pod6"] {
                add(from, vec![*to], Style::New, kind, to.name, 250);
            }
        }
        for kind in ["vip", "vip6"] {
            add(from, shop.clone(), Style::New, kind, "shop/s", 250);
        }
    }
    for from in PODS.iter().filter(|p| ["web/a", "web/b", "evil/e2", "out/o"].contains(&p.name)) {
        for (to, kind) in shop.iter().filter(|to| !to.guest).zip(["pod6", "pod"]) {
            add(from, vec![*to], Style::Kept, kind, to.name, 150);
        }
    }
    let calm = PODS.into_iter().filter(|p| p.name == "calm/server").collect::<Vec<_>>();
    for from in PODS.iter().filter(|p| !p.serves && p.namespace() == "calm") {
        for (style, every) in [(Style::New, 150), (Style::Long, 100)] {
            for (kind, name) in
                [("pod", "calm/server"), ("pod6", "calm/server"), ("vip", "calm/s"), ("vip6", "calm/s")]
            {
                add(from, calm.clone(), style, kind, name, every);
            }
        }
    }
    lanes
}

fn namespace(name: &str, enrolled: bool) -> Value {
    let labels = if enrolled { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn pod_object(pod: &Pod, opted_out: bool) -> Value {
    let (namespace, name) = pod.name.split_once('/').unwrap_or_default();
    let mut labels = json!({"app": if pod.serves { "s" } else { name }});
    if opted_out {
        labels["istio.io/dataplane-mode"] = "none".into();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": labels},
           "spec": {"nodeName": pod.node}})
}

/// A pod that no service leads to any more.
pub(crate) fn retired(pod: &Pod) -> Value {
    let mut object = pod_object(pod, false);
    object["metadata"]["labels"]["app"] = "retired".into();
    object
}

fn service(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": namespace},
           "spec": {"selector": {"app": "s"}, "ports": [{"port": PORT}], "ipFamilyPolicy": "RequireDualStack"}})
}

fn peer_authentication(namespace: &str, strict: bool) -> Value {
    let mode = if strict { "STRICT" } else { "PERMISSIVE" };
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
           "metadata": {"name": "default", "namespace": namespace}, "spec": {"mtls": {"mode": mode}}})
}

fn authorization(name: &str, action: &str, namespace: &str) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
           "metadata": {"name": name, "namespace": "shop"},
           "spec": {"action": action, "rules": [{"from": [{"source": {"namespaces": [namespace]}}]}]}})
}

/// Everything that is there from the start.
pub(crate) fn objects(state: &State) -> String {
    let mut items: Vec<Value> = ["calm", "evil", "out", "shop", "web"]
        .map(|name| namespace(name, state.enrolled.contains(name)))
        .into();
    items.extend(PODS.iter().filter(|pod| !pod.guest).map(|pod| pod_object(pod, false)));
    items.extend([service("shop"), service("calm"), authorization("deny-evil", "DENY", "evil")]);
    items.extend([peer_authentication("istio-system", true), peer_authentication("shop", state.strict)]);
    list(items)
}

fn list(items: Vec<Value>) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// What to apply and what to delete, to come from one state to the other. Empty where there is nothing.
pub(crate) fn difference(old: &State, new: &State) -> (String, String) {
    let (mut apply, mut delete) = (Vec::new(), Vec::new());
    for name in MAY_LEAVE {
        if old.enrolled.contains(name) != new.enrolled.contains(name) {
            apply.push(namespace(name, new.enrolled.contains(name)));
        }
    }
    for pod in &PODS {
        let out = |state: &State| state.opted_out.contains(pod.name);
        let there = |state: &State| !pod.guest || state.present.contains(pod.name);
        match (there(old), there(new)) {
            (true, false) => delete.push(pod_object(pod, false)),
            (false, true) => apply.push(pod_object(pod, false)),
            _ if out(old) != out(new) => apply.push(pod_object(pod, out(new))),
            _ => {}
        }
    }
    let policies = [
        (old.deny_web, new.deny_web, authorization("deny-web", "DENY", "web")),
        (old.allow_web, new.allow_web, authorization("allow-web", "ALLOW", "web")),
    ];
    for (before, after, object) in policies {
        match (before, after) {
            (false, true) => apply.push(object),
            (true, false) => delete.push(object),
            _ => {}
        }
    }
    if old.strict != new.strict {
        apply.push(peer_authentication("shop", new.strict));
    }
    let text = |items: Vec<Value>| if items.is_empty() { String::new() } else { list(items) };
    (text(apply), text(delete))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_only_what_differs() {
        let base = State::base();
        assert_eq!(difference(&base, &base), (String::new(), String::new()));
        let denied = State { deny_web: true, ..base.clone() };
        let (apply, delete) = difference(&base, &denied);
        assert!(apply.contains("deny-web") && !apply.contains("Namespace") && delete.is_empty());
        assert!(difference(&denied, &base).1.contains("deny-web"));
    }

    #[test]
    fn there_are_flows_of_every_kind() {
        let titles: Vec<String> = lanes().iter().map(Lane::title).collect();
        for kind in [
            "web -> shop, same node, new connections",
            "web -> shop, other node, kept for seconds",
            "web -> shop, service, new connections",
            "evil -> shop, other node, new connections",
            "out -> shop, same node, new connections",
            "calm -> calm, same node, kept throughout",
            "calm -> calm, other node, kept throughout",
        ] {
            assert!(titles.iter().any(|title| title == kind), "{kind} is not in {titles:?}");
        }
    }
}
