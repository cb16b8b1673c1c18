//! What the kernel's maps are to hold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use culvert_common::{
    BackendKey, Endpoint, Ip, Member, Name, PolicyKey, PolicyRow, Service, ServiceKey, Workload, flags,
};

use super::Mesh;
use crate::policy::{Compiled, Interner, SourceBlock};

/// The content of every map that the model decides. Compared with what is there, it says what to write.
#[derive(Clone, Default, PartialEq)]
#[expect(missing_docs, reason = "each field is the map of its name")]
pub struct Desired {
    pub workloads: HashMap<Ip, Workload>,
    pub services: HashMap<ServiceKey, Service>,
    pub backends: HashMap<BackendKey, Endpoint>,
    pub members: HashMap<Member, u32>,
    pub policy: Arc<HashMap<PolicyKey, PolicyRow>>,
    pub sources: Arc<HashMap<SourceBlock, u32>>,
    pub notes: Vec<u32>,
    pub identities: Arc<HashMap<u32, Name>>,
    pub policy_names: Arc<HashMap<u32, Name>>,
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
        sources: compiled.sources.clone(),
        notes: compiled.notes.ids(),
        identities: interner.identity_names().clone(),
        policy_names: interner.policy_names().clone(),
        ..Desired::default()
    };
    add_workloads(&mut maps, mesh, compiled, serving);
    add_services(&mut maps, mesh, interner);
    maps
}

fn add_workloads(maps: &mut Desired, mesh: &Mesh, compiled: &Compiled, serving: &HashSet<String>) {
    maps.workloads.reserve(mesh.addresses.pods.len());
    for (ip, n) in &mesh.addresses.pods {
        let Some(workload) = mesh.workloads.get(*n) else { continue };
        let local = workload.node == mesh.settings.node && !workload.native_tunnel;
        let via = via(workload.waypoint);
        let hooked = !local || serving.contains(&workload.uid);
        let identity = compiled.identities.get(&workload.identity);
        let entry = match (identity, compiled.class_of(*n, *ip)) {
            (Some(identity), Some(class)) if workload.enrolled && hooked => Workload {
                identity: *identity,
                class,
                flags: flags::ENROLLED | via | if local { flags::LOCAL } else { 0 },
            },
            _ => Workload { identity: 0, class: 0, flags: via },
        };
        maps.workloads.insert((*ip).into(), entry);
    }
}

fn add_services(maps: &mut Desired, mesh: &Mesh, interner: &mut Interner) {
    let led = |service: &&super::Service| !service.passthrough || service.waypoint.is_some();
    let mut services: Vec<_> = mesh.services.iter().filter(led).collect();
    services.sort_by_key(|service| service.precedence());
    for service in services {
        for (vip, port) in service.vips.iter().flat_map(|vip| service.ports.iter().map(move |p| (vip, p))) {
            let key = ServiceKey { vip: Endpoint::new((*vip).into(), port.port) };
            if maps.services.contains_key(&key) {
                // Two services claim the address: the first keeps it, whatever the order of events.
                continue;
            }
            let id = interner.service(key);
            let affinity = service.choice.affinity.unwrap_or(0);
            let mut backends = 0;
            for backend in port.slots(vip.is_ipv4()).map(Endpoint::from) {
                maps.backends.insert(BackendKey { service: id, slot: backends }, backend);
                backends += 1;
                if affinity != 0 {
                    maps.members.insert(Member { service: id, backend }, 1);
                }
            }
            let node_only = if service.choice.balancing.is_strict() { flags::NODE_ONLY } else { 0 };
            let flags = via(service.waypoint) | node_only;
            maps.services.insert(key, Service { id, backends, flags, affinity });
        }
    }
}

fn via(waypoint: Option<usize>) -> u32 {
    if waypoint.is_some() { flags::WAYPOINT } else { 0 }
}
