//! Names for the ends of a connection, as metrics and the access log want them. Kept by address, and for a while beyond the pod's
//! end: its last connections end after it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::control::objects::TargetPort;
use crate::identity::SpiffeId;
use crate::model::{Service, Snapshot, Workload};
use crate::telemetry::labels::{Peer, Reporter, ServiceName};
use crate::telemetry::traffic::Place;

/// Pods that are gone and still named.
const DEPARTED: usize = 4096;
/// Pairs whose place in the metrics is kept.
const PAIRS: usize = 16_384;

/// What the labels of a connection follow from, while the names stay.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) reporter: Reporter,
    pub(super) client: IpAddr,
    /// With the port where the destination reports, which leads to the service; else 0.
    pub(super) server: SocketAddr,
    /// The HBONE listener's.
    pub(super) hop: Option<IpAddr>,
    /// `None` where the destination reports.
    pub(super) requested: Option<IpAddr>,
    pub(super) proven: Proven,
}

/// Who the two ends have proven to be, and so how the connection goes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Proven {
    /// To the kernel: numbers of identities.
    Numbers { source: u32, destination: u32, path: u32 },
    /// In a tunnel.
    Ids { source: Option<SpiffeId>, destination: Option<SpiffeId> },
}

/// A workload by its address.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) peer: Arc<Peer>,
    /// The pod's own name and namespace, else empty.
    pub(super) name: String,
    pub(super) namespace: String,
    /// Who it is, where it is in the mesh.
    pub(super) principal: String,
}

/// The names of one snapshot, and of pods that were in earlier ones.
pub(super) struct Book {
    snapshot: Arc<Snapshot>,
    known: HashMap<IpAddr, Known>,
    departed: HashMap<IpAddr, Known>,
    services: HashMap<IpAddr, Arc<ServiceName>>,
    guesses: HashMap<SocketAddr, Arc<ServiceName>>,
    places: HashMap<Pair, Place>,
}

impl Book {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            known: HashMap::new(),
            departed: HashMap::new(),
            services: HashMap::new(),
            guesses: HashMap::new(),
            places: HashMap::new(),
        }
    }

    /// Goes on with this one.
    pub(super) fn turn_to(&mut self, snapshot: &Arc<Snapshot>) {
        if Arc::ptr_eq(&self.snapshot, snapshot) {
            return;
        }
        self.snapshot = snapshot.clone();
        self.services.clear();
        self.guesses.clear();
        self.places.clear();
        let gone = self.known.drain().filter(|(ip, _)| snapshot.workload_by_ip(*ip).is_none());
        if self.departed.len() > DEPARTED {
            self.departed.clear();
        }
        self.departed.extend(gone);
        self.departed.retain(|ip, _| snapshot.workload_by_ip(*ip).is_none());
    }

    /// Where this pair was counted last.
    pub(super) fn place(&self, pair: &Pair) -> Option<Place> {
        self.places.get(pair).copied()
    }

    /// With the names of `snapshot` it is counted there.
    pub(super) fn remember(&mut self, snapshot: &Arc<Snapshot>, pair: Pair, place: Place) {
        if !Arc::ptr_eq(&self.snapshot, snapshot) {
            return;
        }
        if self.places.len() >= PAIRS {
            self.places.clear();
        }
        self.places.insert(pair, place);
    }

    /// Who has this address, or had it last.
    pub(super) fn workload(&mut self, ip: IpAddr) -> Known {
        if let Some(known) = self.known.get(&ip) {
            return known.clone();
        }
        let Some(workload) = self.snapshot.workload_by_ip(ip) else {
            return self.departed.get(&ip).cloned().unwrap_or_else(nobody);
        };
        let known = known(workload, &self.snapshot.mesh.settings.cluster);
        self.known.insert(ip, known.clone());
        known
    }

    /// The service with this virtual address.
    pub(super) fn service(&mut self, vip: IpAddr) -> Arc<ServiceName> {
        let snapshot = &self.snapshot;
        let found = || snapshot.service_by_vip(vip).map_or_else(ServiceName::unknown, named);
        self.services.entry(vip).or_insert_with(found).clone()
    }

    /// What the client of a connection to `server` has likely asked for: of the services with this port of the pod, one in the
    /// pod's own namespace, and the first by name.
    pub(super) fn service_behind(&mut self, server: SocketAddr) -> Arc<ServiceName> {
        let snapshot = &self.snapshot;
        let guess = || guess(snapshot, server).map_or_else(ServiceName::unknown, named);
        self.guesses.entry(server).or_insert_with(guess).clone()
    }
}

fn nobody() -> Known {
    let (name, namespace, principal) = (String::new(), String::new(), String::new());
    Known { peer: Peer::unknown(), name, namespace, principal }
}

fn known(workload: &Workload, cluster: &str) -> Known {
    let peer = Peer {
        workload: workload.owner.1.clone(),
        namespace: workload.namespace.clone(),
        app: workload.app.clone(),
        version: workload.version.clone(),
        cluster: cluster.to_owned(),
    };
    Known {
        peer: Arc::new(peer),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        principal: if workload.enrolled { workload.identity.to_string() } else { String::new() },
    }
}

fn named(service: &Service) -> Arc<ServiceName> {
    Arc::new(ServiceName {
        host: service.hostname.clone(),
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    })
}

fn guess(snapshot: &Snapshot, server: SocketAddr) -> Option<&Service> {
    let workload = snapshot.workload_by_ip(server.ip())?;
    let leads_here = |service: &&Service| {
        service.ports.iter().any(|port| match &port.target {
            TargetPort::Number(number) => *number == server.port(),
            TargetPort::Name(name) => workload.port_named(name) == Some(server.port()),
        })
    };
    let services = snapshot.mesh.services.iter().filter(|service| workload.services.contains(&service.key()));
    services
        .filter(leads_here)
        .min_by_key(|service| (service.namespace != workload.namespace, &service.namespace, &service.name))
}
