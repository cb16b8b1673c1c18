//! ServiceEntries: each of their hosts is a service. Istio's rules: `services.go` of istiod's ambient index.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Choice, Service, ServicePort, Workload, World};
use crate::control::Kind;
use crate::control::objects::{Resolution, ServiceEntry, TargetPort};
use crate::identity::SpiffeId;
use crate::policy::matches_labels;

/// `false`: addresses that istiod may have given it do not count.
const ALLOCATE_LABEL: &str = "networking.istio.io/enable-autoallocate-ip";

/// A ServiceEntry and those of its hosts that are its own.
pub(super) struct Owned<'a> {
    pub(super) entry: &'a ServiceEntry,
    pub(super) hosts: Vec<&'a str>,
}

/// Whose each host is, in each namespace: the Service's that is called so, else the oldest ServiceEntry's. Notes say to the owners
/// who else named their host.
pub(super) fn owners<'a>(world: &'a World, services: &mut [Service]) -> (Vec<Owned<'a>>, Notes<'a>) {
    let mut taken: HashMap<(&str, &str), &str> = HashMap::new();
    let mut notes = Notes::new();
    let known: HashSet<(String, String)> =
        services.iter().map(|s| (s.namespace.clone(), s.hostname.clone())).collect();
    let mut entries: Vec<&ServiceEntry> = world.service_entries.values().map(AsRef::as_ref).collect();
    entries.sort_by_key(|entry| entry.metadata.creation_timestamp.as_deref().unwrap_or_default());
    let mut owned = Vec::new();
    for entry in entries {
        let meta = &entry.metadata;
        let note = format!(
            "ServiceEntry {}/{} names this host too, and is left out: a Service comes first, else the oldest",
            meta.namespace, meta.name
        );
        let mut hosts = Vec::new();
        for host in &entry.spec.hosts {
            let key = (meta.namespace.as_str(), host.as_str());
            if known.contains(&(meta.namespace.clone(), host.clone())) {
                let same = services.iter_mut().find(|s| s.namespace == meta.namespace && s.hostname == *host);
                same.into_iter().for_each(|service| service.notes.push(note.clone()));
            } else if let Some(owner) = taken.get(&key) {
                if *owner != meta.name {
                    notes.entry(key).or_default().push(note.clone());
                }
            } else {
                taken.insert(key, &meta.name);
                hosts.push(host.as_str());
            }
        }
        if !hosts.is_empty() {
            owned.push(Owned { entry, hosts });
        }
    }
    (owned, notes)
}

/// By namespace and host.
pub(super) type Notes<'a> = HashMap<(&'a str, &'a str), Vec<String>>;

impl Service {
    /// The service that a host of a ServiceEntry is. `members` are the pods and WorkloadEntries of its namespace when it
    /// selects them, else its own endpoints.
    pub(super) fn of_entry(owned: &Owned<'_>, host: &str, members: &mut [&mut Workload]) -> Self {
        let ServiceEntry { metadata, spec, .. } = owned.entry;
        let mut notes = Vec::new();
        let mut resolved = Self {
            kind: Kind::ServiceEntry,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            hostname: host.to_owned(),
            vips: vips(owned.entry, host, &mut notes),
            ports: ports(owned.entry),
            created: metadata.creation_timestamp.clone().unwrap_or_default(),
            answerers: answerers(&spec.subject_alt_names, &mut notes),
            passthrough: spec.resolution == Resolution::None,
            backing: 0,
            serving: 0,
            waypoint: None,
            canary: None,
            unbound: None,
            choice: Choice::default(),
            notes,
        };
        let selector = spec.workload_selector.as_ref().map(|selector| &selector.labels);
        for member in members.iter_mut() {
            let belongs = match selector {
                Some(selector) => !selector.is_empty() && matches_labels(selector, &member.labels),
                None => !owned.entry.serves_hosts() || member.location == host,
            };
            if belongs && !resolved.passthrough {
                resolved.add_member(member, false);
            }
        }
        resolved.settle();
        resolved
    }
}

/// Whether the ServiceEntry selects who serves it.
pub(super) fn selects(entry: &ServiceEntry) -> bool {
    entry.spec.workload_selector.is_some()
}

/// The virtual addresses: those of the spec, else those that istiod gave.
fn vips(entry: &ServiceEntry, host: &str, notes: &mut Vec<String>) -> Vec<IpAddr> {
    let spec = &entry.spec;
    let mut vips: Vec<IpAddr> = Vec::new();
    for text in &spec.addresses {
        let block = || text.parse::<IpNet>().ok();
        let alone = |block: IpNet| (block.prefix_len() == block.max_prefix_len()).then(|| block.addr());
        match text.parse().ok().or_else(|| block().and_then(alone)) {
            Some(ip) => vips.push(ip),
            None => notes.push(format!(
                "connections to addresses in {text} pass untouched: a block has no endpoints and no waypoint; list addresses"
            )),
        }
    }
    if spec.addresses.is_empty() && gets_addresses(entry, host) {
        let own = entry.status.addresses.iter().filter(|address| address.host == host);
        vips.extend(own.filter_map(|address| address.value.parse::<IpAddr>().ok()));
    }
    vips.sort_unstable();
    vips.dedup();
    if vips.is_empty() && spec.addresses.is_empty() {
        notes.push(
            "has no address that connections could be known by: they go where DNS leads the app; set spec.addresses"
                .to_owned(),
        );
    }
    vips
}

/// Those of the names that are identities of the mesh; `None` without any.
fn answerers(names: &[String], notes: &mut Vec<String>) -> Option<Arc<[SpiffeId]>> {
    let mut known: Vec<SpiffeId> = Vec::new();
    for name in names {
        match name.parse() {
            Ok(identity) => known.push(identity),
            Err(_) => notes.push(format!(
                "spec.subjectAltNames: {name:?} does not count: peers prove spiffe://<trust domain>/ns/<namespace>/sa/<account>"
            )),
        }
    }
    known.sort_unstable();
    known.dedup();
    (!known.is_empty()).then(|| known.into())
}

/// Whether addresses that istiod gave count (`ShouldV2AutoAllocateIP`).
fn gets_addresses(entry: &ServiceEntry, host: &str) -> bool {
    let resolution = entry.spec.resolution;
    let refused = entry.metadata.labels.get(ALLOCATE_LABEL).is_some_and(|v| v.eq_ignore_ascii_case("false"));
    let wildcard = host.starts_with('*') && resolution != Resolution::DynamicDns;
    resolution != Resolution::None && !refused && !wildcard
}

/// A target port counts unless the endpoint has its own port of the same name.
fn ports(entry: &ServiceEntry) -> Vec<ServicePort> {
    let tcp = entry.spec.ports.iter().filter(|port| !port.protocol.eq_ignore_ascii_case("UDP"));
    tcp.map(|port| ServicePort {
        name: port.name.clone(),
        port: port.number,
        target: TargetPort::Number(if port.target_port == 0 { port.number } else { port.target_port }),
        endpoints: Vec::new(),
        ranks: Vec::new(),
        draining: Vec::new(),
        weights: BTreeMap::new(),
    })
    .collect()
}
