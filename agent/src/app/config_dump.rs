//! What ztunnel's `/config_dump` shows, under ztunnel's names, so that `istioctl ztunnel-config` reads it (field names: istio
//! `istioctl/pkg/writer/ztunnel/configdump/api.go`). Times are RFC 3339, addresses of the mesh's one network begin with `/`.

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value, json};

use super::connections::ConnectionRow;
use super::view::State;
use crate::control::Kind;
use crate::control::objects::TargetPort;
use crate::identity::{CertInfo, CertStore, SpiffeId, VERSION};
use crate::model::{Balancing, Mesh, Service, Workload};
use crate::policy::istio;

/// The document.
pub(super) fn dump(mesh: &Mesh, state: &State, certs: &CertStore, connections: &[ConnectionRow]) -> Value {
    let policies = istio::dump(mesh);
    let named = mesh.workloads.iter().zip(&policies.of_workloads);
    json!({
        "workloads": named.map(|(workload, policies)| self::workload(mesh, workload, policies)).collect::<Vec<_>>(),
        "services": services(mesh),
        "policies": policies.policies,
        "stagedServices": {},
        "staticConfig": {"workloads": [], "services": [], "policies": []},
        "version": {"version": VERSION, "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
                    "istioVersion": "unknown", "implementation": "culvert"},
        "config": config(mesh),
        "certificates": certificates(certs),
        "workloadState": workload_state(mesh, state, connections),
    })
}

fn config(mesh: &Mesh) -> Value {
    let settings = &mesh.settings;
    json!({
        "localNode": settings.node,
        "clusterId": settings.cluster,
        "clusterDomain": settings.cluster_domain,
        "trustDomain": settings.trust_domain,
        "trustDomainAliases": settings.trust_domain_aliases,
        "rootNamespace": settings.root_namespace,
        "network": "",
        "proxyMode": "Shared",
    })
}

/// istiod's uid: that of a pod is made of its names.
fn uid(mesh: &Mesh, workload: &Workload) -> String {
    match workload.kind {
        Kind::Pod => format!("{}//Pod/{}/{}", mesh.settings.cluster, workload.namespace, workload.name),
        _ => workload.uid.clone(),
    }
}

fn status(workload: &Workload) -> &'static str {
    if workload.ready { "Healthy" } else { "Unhealthy" }
}

fn workload(mesh: &Mesh, workload: &Workload, policies: &[String]) -> Value {
    let (kind, owner) = &workload.owner;
    let mut fields = json!({
        "uid": uid(mesh, workload),
        "workloadIps": workload.addresses,
        "protocol": if workload.enrolled { "HBONE" } else { "TCP" },
        "networkMode": if workload.host_network { "HostNetwork" } else { "Standard" },
        "name": workload.name,
        "namespace": workload.namespace,
        "trustDomain": mesh.settings.trust_domain,
        "serviceAccount": workload.service_account,
        "workloadName": owner,
        "workloadType": kind,
        "canonicalName": workload.app,
        "canonicalRevision": workload.version,
        "hostname": workload.location,
        "node": workload.node,
        "nativeTunnel": workload.native_tunnel,
        "status": status(workload),
        "clusterId": mesh.settings.cluster,
        "capacity": workload.weight,
    });
    if let Some(waypoint) = waypoint(mesh, workload.waypoint) {
        fields["waypoint"] = waypoint;
    }
    if !policies.is_empty() {
        fields["authorizationPolicies"] = json!(policies);
    }
    let mut places = workload.locality.split('/').filter(|place| !place.is_empty());
    for name in ["region", "zone", "subzone"] {
        if let Some(place) = places.next() {
            fields["locality"][name] = json!(place);
        }
    }
    fields
}

/// By the name of its Service, which istiod writes into the Gateway's status, else by an address.
fn waypoint(mesh: &Mesh, place: Option<usize>) -> Option<Value> {
    let waypoint = mesh.waypoints.get(place?)?;
    let own = |s: &&Service| (&s.namespace, &s.name) == (&waypoint.namespace, &waypoint.name);
    let address = waypoint.instances.first().map(|(end, _)| end);
    let destination = match (mesh.services.iter().find(own), address) {
        (Some(service), _) => service.key(),
        (None, Some(end)) => format!("/{}", end.ip()),
        (None, None) => waypoint.full_name(),
    };
    let port = address.map_or(culvert_common::HBONE_PORT, std::net::SocketAddr::port);
    Some(json!({"destination": destination, "hboneMtlsPort": port}))
}

fn services(mesh: &Mesh) -> Vec<Value> {
    let mut members: BTreeMap<&str, Vec<&Workload>> = BTreeMap::new();
    for workload in mesh.workloads.iter() {
        for key in &workload.services {
            members.entry(key).or_default().push(workload);
        }
    }
    let members_of = |service: &Service| members.get(service.key().as_str()).cloned().unwrap_or_default();
    mesh.services.iter().map(|service| self::service(mesh, service, &members_of(service))).collect()
}

fn service(mesh: &Mesh, service: &Service, members: &[&Workload]) -> Value {
    let target = |port: &TargetPort| match port {
        TargetPort::Number(number) => *number,
        // Another one for each endpoint.
        TargetPort::Name(_) => 0,
    };
    let ports = service.ports.iter().map(|port| (port.port.to_string(), json!(target(&port.target))));
    let families = (service.vips.iter().any(|ip| ip.is_ipv4()), service.vips.iter().any(|ip| ip.is_ipv6()));
    let answerers = service.answerers.iter().flat_map(|ids| ids.iter()).map(SpiffeId::to_string);
    let mut fields = json!({
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": service.vips.iter().map(|ip| format!("/{ip}")).collect::<Vec<_>>(),
        "ports": ports.collect::<Map<_, _>>(),
        "endpoints": endpoints(mesh, service, members),
        "subjectAltNames": answerers.collect::<Vec<_>>(),
        "ipFamilies": match families { (true, true) => "Dual", (false, true) => "IPv6", _ => "IPv4" },
        "canonical": service.kind == Kind::Service,
        "visibility": "Public",
    });
    let (mode, preferences): (_, &[&str]) = match service.choice.balancing {
        Balancing::Any => ("Standard", &[]),
        Balancing::SameZone => ("Failover", &["Network", "Region", "Zone"]),
        Balancing::SameNode => ("Failover", &["Network", "Region", "Zone", "Subzone", "Node"]),
        Balancing::Local => ("Strict", &["Node"]),
    };
    if service.choice.balancing != Balancing::Any {
        fields["loadBalancer"] =
            json!({"mode": mode, "routingPreferences": preferences, "healthPolicy": "OnlyHealthy"});
    }
    if let Some(waypoint) = waypoint(mesh, service.waypoint) {
        fields["waypoint"] = waypoint;
    }
    fields
}

/// By uid, those that do not serve now among them; addresses that are no workload's stand for themselves.
fn endpoints(mesh: &Mesh, service: &Service, members: &[&Workload]) -> Map<String, Value> {
    let mut found = Map::new();
    let entry = |uid: &str, address: String, status: &str| json!({"workloadUid": uid, "service": service.key(), "address": address, "port": {}, "status": status});
    for member in members {
        let uid = uid(mesh, member);
        let address = member.addresses.first().map_or_else(String::new, |ip| format!("/{ip}"));
        let row = entry(&uid, address, status(member));
        found.insert(uid, row);
    }
    for port in &service.ports {
        for end in &port.endpoints {
            let owner = mesh.addresses.pods.get(&end.ip()).and_then(|n| mesh.workloads.get(*n));
            let uid = owner.map_or_else(|| format!("/{}", end.ip()), |workload| uid(mesh, workload));
            let row =
                found.entry(uid.clone()).or_insert_with(|| entry(&uid, format!("/{}", end.ip()), "Healthy"));
            row["port"][port.port.to_string()] = json!(end.port());
        }
    }
    found
}

fn certificates(certs: &CertStore) -> Vec<Value> {
    let chains = certs.chains();
    let row = |info: CertInfo| {
        let state = match info.status {
            "Unavailable" => format!("Unavailable: {}", info.error),
            status => status.to_owned(),
        };
        let chain = chains.get(&info.identity);
        let written = |list: Option<&[CertificateDer<'_>]>| -> Vec<Value> {
            list.unwrap_or_default().iter().filter_map(certificate).collect()
        };
        json!({"identity": info.identity.to_string(), "state": state, "certChain": written(chain.map(|c| &*c.chain)),
               "rootCerts": written(chain.map(|c| &*c.roots))})
    };
    certs.list().into_iter().map(row).collect()
}

/// istioctl reads serial numbers as decimals.
fn certificate(der: &CertificateDer<'_>) -> Option<Value> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let time = |time: x509_parser::time::ASN1Time| {
        jiff::Timestamp::from_second(time.timestamp()).map_or_else(|_| String::new(), |time| time.to_string())
    };
    let pem = pem::encode_config(
        &pem::Pem::new("CERTIFICATE", der.as_ref()),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    );
    Some(json!({"pem": pem, "serialNumber": cert.tbs_certificate.serial.to_string(),
                "validFrom": time(cert.validity().not_before), "expirationTime": time(cert.validity().not_after)}))
}

/// The pods of this node by their uid, with what they have open.
fn workload_state(mesh: &Mesh, state: &State, connections: &[ConnectionRow]) -> Map<String, Value> {
    let mut open: BTreeMap<&str, [Vec<Value>; 2]> = BTreeMap::new();
    for row in connections {
        let outbound = row.direction == "Outbound";
        let [inbound_rows, outbound_rows] = open.entry(&row.workload).or_default();
        if outbound { outbound_rows } else { inbound_rows }.push(connection(row, outbound));
    }
    let own = mesh.workloads.iter().filter(|w| w.is_captured() && w.node == mesh.settings.node);
    own.map(|workload| {
        let name = workload.full_name();
        let enrolled = state.pods.iter().any(|pod| pod.name == name && pod.state == "enrolled");
        let [inbound, outbound] = open.remove(name.as_str()).unwrap_or_default();
        let row = json!({
            "state": if enrolled { "Up" } else { "Pending" },
            "connections": {"inbound": inbound, "outbound": outbound},
            "info": {"name": workload.name, "namespace": workload.namespace, "trustDomain": mesh.settings.trust_domain,
                     "serviceAccount": workload.service_account},
        });
        (workload.uid.clone(), row)
    })
    .collect()
}

/// A server does not know what its client asked for, but for its own address.
fn connection(row: &ConnectionRow, outbound: bool) -> Value {
    let (src, dst) = if outbound { (row.local, row.remote) } else { (row.remote, row.local) };
    let asked = row.remote_target.unwrap_or(dst);
    json!({"src": src, "originalDst": asked, "actualDst": dst, "protocol": row.protocol})
}
