//! The lab's API server: objects as they were applied, completed as a cluster would complete them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use rand::RngExt;
use serde_json::{Map, Value, json};

/// Kind, namespace (empty for cluster-scoped kinds), name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

const CLUSTER_SCOPED: [&str; 6] =
    ["Namespace", "Node", "GatewayClass", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"];
/// Kinds that make pods from a template.
pub(crate) const WORKLOAD_KINDS: [&str; 4] = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"];

impl Key {
    /// The key of an object.
    pub fn of(object: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let kind = text(&object["kind"]);
        let name = text(&object["metadata"]["name"]);
        if kind.is_empty() || name.is_empty() {
            bail!("an object needs kind and metadata.name: {object}");
        }
        let mut namespace = text(&object["metadata"]["namespace"]);
        if CLUSTER_SCOPED.contains(&kind.as_str()) {
            namespace.clear();
        } else if namespace.is_empty() {
            namespace.push_str("default");
        }
        Ok(Self { kind, namespace, name })
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The objects of a text: several documents, lists unpacked.
pub fn read(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|e| anyhow::anyhow!("{}", e.without_snippet()))?;
    let mut objects = Vec::new();
    for document in documents {
        unpack(document, &mut objects)?;
    }
    Ok(objects)
}

fn unpack(document: Value, objects: &mut Vec<Value>) -> Result<()> {
    let kind = document["kind"].as_str().unwrap_or("").to_owned();
    match (kind.strip_suffix("List"), document.get("items").and_then(Value::as_array)) {
        (Some(item_kind), Some(items)) => {
            for item in items {
                let mut item = item.clone();
                if item.get("kind").is_none() && !item_kind.is_empty() {
                    item["kind"] = item_kind.into();
                    item["apiVersion"] = document["apiVersion"].clone();
                }
                unpack(item, objects)?;
            }
        }
        _ => objects.push(document),
    }
    Ok(())
}

/// All objects.
#[derive(Default)]
pub struct Store {
    objects: BTreeMap<Key, Value>,
    next_vip: u16,
    next_node_port: u16,
}

impl Store {
    /// Adds or replaces an object; what the cluster filled in stays.
    pub(crate) fn apply(&mut self, mut object: Value) -> Result<Key> {
        let key = Key::of(&object)?;
        if !key.namespace.is_empty() {
            object["metadata"]["namespace"] = key.namespace.clone().into();
            self.ensure_namespace(&key.namespace);
        }
        let old = self.objects.get(&key).cloned();
        let metadata = object["metadata"].as_object_mut().context("metadata must be a map")?;
        for field in ["uid", "creationTimestamp"] {
            if !metadata.contains_key(field) {
                let kept = old.as_ref().map(|o| o["metadata"][field].clone()).filter(|v| !v.is_null());
                metadata.insert(field.to_owned(), kept.unwrap_or_else(|| fresh(field)));
            }
        }
        if key.kind == "Service" {
            let ips = old.as_ref().map(|o| o["spec"]["clusterIPs"].clone());
            self.complete_service(&mut object, ips);
            self.give_node_ports(&mut object, old.as_ref());
        }
        if key.kind == "Pod" {
            complete_pod(&mut object, old.as_ref())?;
        }
        self.objects.insert(key.clone(), object);
        Ok(key)
    }

    fn ensure_namespace(&mut self, name: &str) {
        let key = Key { kind: "Namespace".into(), namespace: String::new(), name: name.into() };
        self.objects.entry(key).or_insert_with(|| {
            json!({"apiVersion": "v1", "kind": "Namespace",
                   "metadata": {"name": name, "uid": fresh("uid"), "creationTimestamp": fresh("creationTimestamp")}})
        });
    }

    fn complete_service(&mut self, service: &mut Value, old_ips: Option<Value>) {
        let spec = &mut service["spec"];
        if spec["clusterIP"] == "None" || spec["type"] == "ExternalName" || spec["clusterIPs"].is_array() {
            return;
        }
        let ips = old_ips.filter(Value::is_array).unwrap_or_else(|| {
            self.next_vip += 1;
            let [high, low] = (self.next_vip + 9).to_be_bytes();
            json!([format!("10.96.{high}.{low}"), format!("fd00:10:96::{:x}", self.next_vip + 9)])
        });
        spec["clusterIP"] = ips[0].clone();
        spec["clusterIPs"] = ips;
    }

    /// What `type: NodePort` promises: each port has one on every node.
    fn give_node_ports(&mut self, service: &mut Value, old: Option<&Value>) {
        if service["spec"]["type"] != "NodePort" {
            return;
        }
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].is_null() {
                let known = old.and_then(|o| o["spec"]["ports"].as_array()).into_iter().flatten();
                let mut same = known.filter(|p| p["port"] == port["port"]).map(|p| p["nodePort"].clone());
                port["nodePort"] = same.find(Value::is_u64).unwrap_or_else(|| {
                    self.next_node_port += 1;
                    (30_000 + u32::from(self.next_node_port)).into()
                });
            }
        }
    }

    /// Removes an object; a namespace takes all that is in it along.
    pub(crate) fn delete(&mut self, key: &Key) -> Vec<Key> {
        let mut gone = Vec::new();
        if self.objects.remove(key).is_some() {
            gone.push(key.clone());
        }
        let children: Vec<Key> = self
            .objects
            .iter()
            .filter(|(other, object)| {
                (key.kind == "Namespace" && other.namespace == key.name)
                    || (other.namespace == key.namespace
                        && object["metadata"]["ownerReferences"].as_array().is_some_and(|o| {
                            o.iter().any(|o| o["kind"] == *key.kind && o["name"] == *key.name)
                        }))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for child in children {
            gone.extend(self.delete(&child));
        }
        gone
    }

    /// One object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&Key { kind: kind.into(), namespace: namespace.into(), name: name.into() })
    }

    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut Value> {
        self.objects.get_mut(key)
    }

    /// All objects of a kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        self.objects.iter().filter(move |(key, _)| key.kind == kind)
    }

    /// All objects.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects.iter()
    }

    /// Ready endpoints of a service port: pod key, addresses and port.
    pub(crate) fn endpoints(&self, service: &Key, port: &Value) -> Vec<(Vec<String>, u64)> {
        let Some(object) = self.objects.get(service) else { return Vec::new() };
        let Some(selector) = object["spec"]["selector"].as_object().filter(|s| !s.is_empty()) else {
            return self.slice_endpoints(service, port);
        };
        let pods = self.of_kind("Pod").filter(|(key, _)| key.namespace == service.namespace);
        pods.filter(|(_, pod)| selects(selector, &pod["metadata"]["labels"]) && is_ready(pod))
            .filter_map(|(_, pod)| Some((addresses(pod), target_port(port, pod)?)))
            .collect()
    }

    fn slice_endpoints(&self, service: &Key, port: &Value) -> Vec<(Vec<String>, u64)> {
        let mut found = Vec::new();
        for (key, slice) in self.of_kind("EndpointSlice") {
            let of = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str();
            if key.namespace != service.namespace || of != Some(&service.name) {
                continue;
            }
            let name = |p: &Value| p["name"].as_str().unwrap_or("").to_owned();
            let ports = slice["ports"].as_array().cloned().unwrap_or_default();
            let target = ports.iter().find(|p| name(p) == name(port)).and_then(|p| p["port"].as_u64());
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let ready = endpoint["conditions"]["ready"] != false;
                let ips = endpoint["addresses"].as_array().into_iter().flatten();
                let ips = ips.filter_map(|a| a.as_str().map(str::to_owned)).collect();
                if let (true, Some(target)) = (ready, target) {
                    found.push((ips, target));
                }
            }
        }
        found
    }
}

fn fresh(field: &str) -> Value {
    if field == "uid" {
        let r: [u32; 4] = rand::rng().random();
        let (a, b, c) = (r[1] >> 16, r[1] & 0xffff, r[2] >> 16);
        return format!("{:08x}-{a:04x}-{b:04x}-{c:04x}-{:04x}{:08x}", r[0], r[2] & 0xffff, r[3]).into();
    }
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string().into()
}

fn complete_pod(pod: &mut Value, old: Option<&Value>) -> Result<()> {
    if !pod["spec"].is_object() {
        pod["spec"] = json!({});
    }
    if pod["spec"]["serviceAccountName"].is_null() {
        pod["spec"]["serviceAccountName"] = "default".into();
    }
    if let Some(old) = old {
        for field in ["podIP", "podIPs", "hostIP", "phase", "conditions"] {
            if pod["status"][field].is_null() && !old["status"][field].is_null() {
                let kept = old["status"][field].clone();
                if !pod["status"].is_object() {
                    pod["status"] = Value::Object(Map::new());
                }
                pod["status"][field] = kept;
            }
        }
        if pod["spec"]["nodeName"].is_null() {
            pod["spec"]["nodeName"] = old["spec"]["nodeName"].clone();
        }
    }
    Ok(())
}

pub(crate) fn selects(selector: &Map<String, Value>, labels: &Value) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Ready, and not on its way out.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.and_then(|c| c.iter().find(|c| c["type"] == "Ready"));
    pod["metadata"]["deletionTimestamp"].is_null() && ready.is_none_or(|c| c["status"] == "True")
}

/// `status.podIPs`, else `status.podIP`.
pub(crate) fn addresses(pod: &Value) -> Vec<String> {
    let list = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let list: Vec<String> = list.filter_map(|ip| ip["ip"].as_str().map(str::to_owned)).collect();
    if list.is_empty() {
        pod["status"]["podIP"].as_str().map(str::to_owned).into_iter().collect()
    } else {
        list
    }
}

fn target_port(port: &Value, pod: &Value) -> Option<u64> {
    match &port["targetPort"] {
        Value::Number(number) => number.as_u64(),
        Value::String(name) => {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
            let named = ports.find(|p| p["name"] == **name).and_then(|p| p["containerPort"].as_u64());
            named.or_else(|| name.parse().ok())
        }
        _ => port["port"].as_u64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_keep_their_addresses_and_pods_their_uid() {
        let mut store = Store::default();
        let service =
            "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {ports: [{port: 80}]}";
        let objects = read(service).unwrap();
        let key = store.apply(objects[0].clone()).unwrap();
        let first = store.get("Service", "a", "s").unwrap().clone();
        assert_eq!(first["spec"]["clusterIPs"], json!(["10.96.0.10", "fd00:10:96::a"]));
        store.apply(objects[0].clone()).unwrap();
        assert_eq!(store.get("Service", "a", "s").unwrap(), &first);
        assert!(store.get("Namespace", "", "a").is_some());
        assert_eq!(
            store.delete(&Key { kind: "Namespace".into(), namespace: String::new(), name: "a".into() }).len(),
            2
        );
        assert!(store.delete(&key).is_empty());
    }

    #[test]
    fn node_ports_are_kept_too() {
        let mut store = Store::default();
        let service = |ports: &str| {
            format!("kind: Service\nmetadata: {{name: s}}\nspec: {{type: NodePort, ports: [{ports}]}}")
        };
        let mut given = |ports: &str| {
            let key = store.apply(read(&service(ports)).unwrap()[0].clone()).unwrap();
            let service = store.get("Service", &key.namespace, &key.name).unwrap();
            let ports = service["spec"]["ports"].as_array().unwrap().iter();
            ports.map(|p| p["nodePort"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(given("{port: 80}, {port: 81, nodePort: 32000}"), [30_001, 32_000]);
        assert_eq!(given("{port: 82}, {port: 80}"), [30_002, 30_001]);
    }

    #[test]
    fn lists_are_unpacked() {
        let text = "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n\
                    kind: PodList\napiVersion: v1\nitems:\n- metadata: {name: p}\n";
        let kinds: Vec<_> = read(text).unwrap().iter().map(|o| o["kind"].clone()).collect();
        assert_eq!(kinds, ["Namespace", "Pod"]);
    }
}
