//! From objects to the mesh. The rules are Istio's: who is enrolled (istio-cni's enablement selectors), which pods back a
//! service (selector in the same namespace, EndpointSlices only without one), what a named port means.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::{Mesh, Service, ServicePort, Settings, Workload, World};
use crate::control::Object;
use crate::control::objects::{
    EndpointSlice, Labels, Meta, PodSpec, PodStatus, PortRef, Protocol, Resource, ServicePort as Port,
    ServiceSpec,
};
use crate::identity::SpiffeId;

/// The enrolment label of pods and namespaces.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Pods of these namespaces are never enrolled (istio-cni's default).
const EXCLUDED_NAMESPACES: [&str; 1] = ["kube-system"];

type Pod = Resource<PodSpec, PodStatus>;

impl World {
    /// The mesh that follows from the objects.
    pub fn resolve(&self, settings: &Settings) -> Mesh {
        let namespaces: HashMap<&str, &Labels> = self
            .objects()
            .filter_map(|o| match o {
                Object::Namespace(ns) => Some((ns.metadata.name.as_str(), &ns.metadata.labels)),
                _ => None,
            })
            .collect();
        let mut pods: BTreeMap<&str, Vec<(&Pod, usize)>> = BTreeMap::new();
        let mut workloads = Vec::new();
        for object in self.objects() {
            let Object::Pod(pod) = object else { continue };
            let Some(workload) =
                workload(pod, namespaces.get(pod.metadata.namespace.as_str()).copied(), settings)
            else {
                continue;
            };
            pods.entry(&pod.metadata.namespace).or_default().push((pod, workloads.len()));
            workloads.push(workload);
        }
        let slices = self.slices();
        let services = self
            .objects()
            .filter_map(|object| match object {
                Object::Service(service) => {
                    let local = pods.get(service.metadata.namespace.as_str()).map_or(&[][..], Vec::as_slice);
                    let slices = slices.get(&(&*service.metadata.namespace, &*service.metadata.name));
                    resolve_service(
                        service,
                        local,
                        &workloads,
                        slices.map_or(&[][..], Vec::as_slice),
                        settings,
                    )
                }
                _ => None,
            })
            .collect();
        Mesh { workloads, services }
    }

    fn slices(&self) -> HashMap<(&str, &str), Vec<&EndpointSlice>> {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for object in self.objects() {
            let Object::EndpointSlice(slice) = object else { continue };
            if let Some(service) = slice.metadata.labels.get("kubernetes.io/service-name") {
                slices.entry((slice.metadata.namespace.as_str(), service.as_str())).or_default().push(slice);
            }
        }
        slices
    }
}

fn workload(pod: &Pod, namespace: Option<&Labels>, settings: &Settings) -> Option<Workload> {
    let (meta, spec, status) = (&pod.metadata, &pod.spec, &pod.status);
    if status.phase == "Succeeded" || status.phase == "Failed" {
        return None;
    }
    let mut addresses: Vec<IpAddr> = status.pod_ips.iter().map(|ip| ip.ip).collect();
    if let Some(ip) = status.pod_ip
        && !addresses.contains(&ip)
    {
        addresses.insert(0, ip);
    }
    if addresses.is_empty() {
        return None;
    }
    let account = if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
    Some(Workload {
        uid: if meta.uid.is_empty() { format!("{}/{}", meta.namespace, meta.name) } else { meta.uid.clone() },
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        service_account: account.to_owned(),
        node: spec.node_name.clone(),
        addresses,
        labels: meta.labels.clone(),
        host_network: spec.host_network,
        ready: is_ready(pod),
        enrolled: is_enrolled(meta, spec.host_network, namespace),
        identity: SpiffeId::new(&settings.trust_domain, &meta.namespace, account),
    })
}

/// A pod without conditions (a manifest that nobody reported on) counts as ready.
fn is_ready(pod: &Pod) -> bool {
    let ready = pod.status.conditions.iter().find(|c| c.kind == "Ready");
    pod.metadata.deletion_timestamp.is_none() && ready.is_none_or(|c| c.status == "True")
}

fn is_enrolled(meta: &Meta, host_network: bool, namespace: Option<&Labels>) -> bool {
    let excluded = host_network
        || meta.annotations.contains_key("sidecar.istio.io/status")
        || EXCLUDED_NAMESPACES.contains(&meta.namespace.as_str());
    let ambient = |labels: &Labels| labels.get(DATAPLANE_MODE).is_some_and(|mode| mode == "ambient");
    let opted_out = meta.labels.get(DATAPLANE_MODE).is_some_and(|mode| mode == "none");
    !excluded && (ambient(&meta.labels) || (!opted_out && namespace.is_some_and(ambient)))
}

fn resolve_service(
    service: &Resource<ServiceSpec>,
    pods: &[(&Pod, usize)],
    workloads: &[Workload],
    slices: &[&EndpointSlice],
    settings: &Settings,
) -> Option<Service> {
    let (meta, spec) = (&service.metadata, &service.spec);
    if spec.kind == "ExternalName" {
        return None;
    }
    let members: Vec<&(&Pod, usize)> = if spec.selector.is_empty() {
        Vec::new()
    } else {
        pods.iter().filter(|(pod, _)| selects(&spec.selector, &pod.metadata.labels)).collect()
    };
    let serving: Vec<(&Pod, &Workload)> = members
        .iter()
        .map(|(pod, index)| (*pod, &workloads[*index]))
        .filter(|(_, workload)| workload.ready || spec.publish_not_ready_addresses)
        .collect();
    let ports = spec
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp)
        .map(|port| ServicePort {
            port: port.port,
            endpoints: if spec.selector.is_empty() {
                slices.iter().flat_map(|slice| slice_endpoints(slice, port)).collect()
            } else {
                serving.iter().flat_map(|(pod, workload)| pod_endpoints(pod, workload, port)).collect()
            },
        })
        .collect();
    Some(Service {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        hostname: format!("{}.{}.svc.{}", meta.name, meta.namespace, settings.cluster_domain),
        vips: vips(spec),
        ports,
        members: if spec.selector.is_empty() {
            slices.iter().map(|s| s.endpoints.len()).sum()
        } else {
            members.len()
        },
        ready: if spec.selector.is_empty() {
            slices.iter().flat_map(|s| &s.endpoints).filter(|e| e.conditions.ready != Some(false)).count()
        } else {
            serving.len()
        },
    })
}

/// Whether every pair of `selector` is among `labels`.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn vips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let mut vips: Vec<IpAddr> = Vec::new();
    // "None" (headless) and "" are not addresses.
    for ip in spec.cluster_ips.iter().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()) {
        if !vips.contains(&ip) {
            vips.push(ip);
        }
    }
    vips
}

fn pod_endpoints(pod: &Pod, workload: &Workload, port: &Port) -> Vec<SocketAddr> {
    let target = match &port.target_port {
        None | Some(PortRef::Number(0)) => Some(port.port),
        Some(PortRef::Number(number)) => Some(*number),
        Some(PortRef::Name(name)) => named_port(&pod.spec, name),
    };
    // A port name that the pod does not have: the pod does not serve this port.
    let Some(target) = target else { return Vec::new() };
    workload.addresses.iter().map(|ip| SocketAddr::new(*ip, target)).collect()
}

fn named_port(spec: &PodSpec, name: &str) -> Option<u16> {
    // YAML writes a number in quotes now and then; Kubernetes reads it as a number too.
    let named =
        spec.containers.iter().flat_map(|c| &c.ports).find(|p| p.name == name && p.protocol == Protocol::Tcp);
    named.map(|p| p.container_port).or_else(|| name.parse().ok())
}

fn slice_endpoints(slice: &EndpointSlice, port: &Port) -> Vec<SocketAddr> {
    let matches = |name: &str| name == port.name;
    let Some(target) = slice.ports.iter().find(|p| matches(&p.name) && p.protocol == Protocol::Tcp) else {
        return Vec::new();
    };
    let ready = slice.endpoints.iter().filter(|e| e.conditions.ready != Some(false));
    let addresses = ready.flat_map(|e| &e.addresses).filter_map(|a| a.parse().ok());
    addresses.map(|ip| SocketAddr::new(ip, target.port.unwrap_or(port.port))).collect()
}
