//! What the kernel's maps are to hold.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use culvert_common::{
    BackendKey, Endpoint, Ip, Name, PolicyKey, PolicyRow, Service, ServiceKey, Workload, flags,
};

use super::Mesh;
use crate::policy::{Compiled, Interner};

/// The content of every map that the model decides. Compared with what is there, it says what to write.
#[derive(Clone, Default, PartialEq)]
#[expect(missing_docs, reason = "each field is the map of its name")]
pub struct Desired {
    pub workloads: HashMap<Ip, Workload>,
    pub services: HashMap<ServiceKey, Service>,
    pub backends: HashMap<BackendKey, Endpoint>,
    pub policy: HashMap<PolicyKey, PolicyRow>,
    pub identities: HashMap<u32, Name>,
    pub policy_names: HashMap<u32, Name>,
}

/// The maps for `mesh`. `serving` holds the uids of the local pods whose hooks are in place: a local pod that is to be
/// enrolled but is not among them is written as one that is not enrolled.
pub fn desired(
    mesh: &Mesh,
    compiled: &Compiled,
    serving: &HashSet<String>,
    interner: &mut Interner,
) -> Desired {
    let mut maps = Desired {
        policy: compiled.rows.clone(),
        identities: compiled.identities.iter().map(|(id, n)| (*n, id.to_string().as_str().into())).collect(),
        policy_names: compiled.policy_names.iter().map(|(text, n)| (*n, text.as_str().into())).collect(),
        ..Desired::default()
    };
    add_workloads(&mut maps, mesh, compiled, serving);
    add_services(&mut maps, mesh, interner);
    maps
}

fn add_workloads(maps: &mut Desired, mesh: &Mesh, compiled: &Compiled, serving: &HashSet<String>) {
    for (ip, workload) in super::snapshot::by_address(mesh) {
        maps.workloads.insert(ip.into(), entry(workload, mesh, compiled, serving));
    }
}

fn entry(
    workload: &super::Workload,
    mesh: &Mesh,
    compiled: &Compiled,
    serving: &HashSet<String>,
) -> Workload {
    let local = workload.node == mesh.settings.node;
    let outside = Workload { identity: 0, class: 0, flags: 0 };
    if !workload.enrolled || (local && !serving.contains(&workload.uid)) {
        return outside;
    }
    let identity = compiled.identities.get(&workload.identity);
    let class = compiled.class_of.get(&workload.uid);
    match (identity, class) {
        (Some(identity), Some(class)) => Workload {
            identity: *identity,
            class: *class,
            flags: flags::ENROLLED | if local { flags::LOCAL } else { 0 },
        },
        _ => outside,
    }
}

fn add_services(maps: &mut Desired, mesh: &Mesh, interner: &mut Interner) {
    for service in &mesh.services {
        for (vip, port) in service.vips.iter().flat_map(|vip| service.ports.iter().map(move |p| (vip, p))) {
            let key = ServiceKey { vip: Endpoint::new((*vip).into(), port.port) };
            if maps.services.contains_key(&key) {
                // Two services claim the address: the first by name keeps it, whatever the order of events.
                continue;
            }
            let id = interner.service(key);
            let same_family = port.endpoints.iter().filter(|e| family(&e.ip()) == family(vip));
            let mut backends = 0;
            for endpoint in same_family {
                maps.backends.insert(BackendKey { service: id, slot: backends }, (*endpoint).into());
                backends += 1;
            }
            maps.services.insert(key, Service { id, backends });
        }
    }
}

fn family(ip: &IpAddr) -> bool {
    ip.is_ipv4()
}
