//! Whether a waypoint takes connections: what an agent that follows the folder would find.

use std::sync::Arc;

use serde::Serialize;

use super::folder::{Condition, Found};
use super::gateway::PORT;
use super::{Folder, REVISION};
use crate::control::objects::{Gateway, GatewayAddress};
use crate::control::{Object, Update};
use crate::model::waypoint::FOR;
use crate::model::{Mesh, World};

/// A waypoint and its state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The revision that it belongs to, `default` when it does not say.
    pub revision: String,
    /// What its label says, `none` without one, as istioctl has it (the default is then services all the same).
    pub traffic_type: String,
    /// Whether it takes connections.
    pub programmed: bool,
    /// Why (not), in a word.
    pub reason: String,
    /// Why (not), and what to do.
    pub message: String,
}

impl Folder {
    /// The waypoints of `namespace` (`None`: of all), in order.
    pub fn states(&self, namespace: Option<&str>) -> Vec<State> {
        let mut world = self.world();
        let found = self.waypoints().into_iter();
        let wanted =
            found.filter(|f| namespace.is_none_or(|namespace| f.gateway.metadata.namespace == namespace));
        wanted.map(|found| self.state(&mut world, &found)).collect()
    }

    fn state(&self, world: &mut World, found: &Found) -> State {
        let meta = &found.gateway.metadata;
        let label = |key: &str, default: &str| {
            meta.labels.get(key).filter(|value| !value.is_empty()).map_or(default, String::as_str).to_owned()
        };
        let (programmed, reason, message) = self.verdict(world, found);
        State {
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            revision: label(REVISION, "default"),
            traffic_type: label(FOR, "none"),
            programmed,
            reason,
            message,
        }
    }

    /// What the manifest's own status denies stays denied; what it affirms has to be true.
    fn verdict(&self, world: &mut World, found: &Found) -> (bool, String, String) {
        let no = |reason: &str, message: String| (false, reason.to_owned(), message);
        let gateway = &found.gateway;
        let Some(listener) = gateway.spec.listeners.iter().find(|l| l.protocol.eq_ignore_ascii_case("HBONE"))
        else {
            let message = format!("Expected a single listener on port {PORT} with protocol \"HBONE\"");
            return no("UnsupportedProtocol", message);
        };
        let denies = |c: &&Condition| c.r#type == "Programmed" && c.status != "True";
        if let Some(Condition { reason, message, .. }) = found.conditions.iter().find(denies) {
            return no(reason, message.clone());
        }
        let mesh = world.resolve(&self.settings);
        if gateway.status.addresses.is_empty() {
            return no("AddressNotAssigned", self.unassigned(world, &mesh, gateway));
        }
        let addresses: Vec<String> =
            gateway.status.addresses.iter().map(|a| format!("{}:{}", a.value, listener.port)).collect();
        let addresses = addresses.join(", ");
        match instances(&mesh, gateway) {
            0 => {
                let own = self.address_of(gateway);
                let why = match gateway.status.addresses.iter().all(|a| a.value == own) {
                    true => self.missing(&mesh, gateway),
                    false => "no ready pod or WorkloadEntry has it, nor a Service with one".to_owned(),
                };
                no(
                    "NoEndpoints",
                    format!(
                        "Nobody serves {addresses}: {why}. Until then agents refuse what uses this waypoint"
                    ),
                )
            }
            ready => {
                let s = if ready == 1 { "" } else { "s" };
                let message = format!(
                    "Resource programmed, assigned to service(s) {addresses} with {ready} ready endpoint{s}"
                );
                (true, "Programmed".to_owned(), message)
            }
        }
    }

    fn unassigned(&self, world: &mut World, mesh: &Mesh, gateway: &Gateway) -> String {
        let meta = &gateway.metadata;
        match self.assignable(world, gateway) {
            Some(_) => format!(
                "The Gateway has no status.addresses, so no agent uses it, though its Service has ready endpoints; write them with: \
                 culvert waypoint apply -n {} --name {} --manifests {}",
                meta.namespace,
                meta.name,
                self.dir.display()
            ),
            None => format!(
                "No agent uses it yet: {}. Then write its address into the Gateway with culvert waypoint apply (--wait waits for it)",
                self.missing(mesh, gateway)
            ),
        }
    }

    /// Why the Service that bears the waypoint's name serves nobody.
    fn missing(&self, mesh: &Mesh, gateway: &Gateway) -> String {
        let meta = &gateway.metadata;
        let name = format!("{}/{}", meta.namespace, meta.name);
        let Some(service) = mesh.services.iter().find(|s| s.hostname == self.address_of(gateway)) else {
            return format!(
                "{} has no Service {name}; add it, with port {PORT}, and its pods",
                self.dir.display()
            );
        };
        if !service.ports.iter().any(|port| port.port == PORT) {
            return format!("Service {name} has no TCP port {PORT}; add it");
        }
        match service.backing {
            0 => format!("Service {name} has no pod; add pods that its selector selects"),
            backing => format!("none of the {backing} pods of Service {name} is ready and has an address"),
        }
    }

    /// The host name of the Service that istiod makes for a waypoint.
    fn address_of(&self, gateway: &Gateway) -> String {
        let meta = &gateway.metadata;
        format!("{}.{}.svc.{}", meta.name, meta.namespace, self.settings.cluster_domain)
    }

    /// The address that a waypoint can be given: of its Service, once that has a ready endpoint.
    pub(super) fn assignable(&self, world: &mut World, gateway: &Gateway) -> Option<String> {
        let value = self.address_of(gateway);
        let mut trial = gateway.clone();
        trial.status.addresses = vec![GatewayAddress { value: value.clone() }];
        world.apply(vec![Update::Upsert(Object::Gateway(Arc::new(trial)))]);
        let ready = instances(&world.resolve(&self.settings), gateway);
        world.apply(vec![Update::Upsert(Object::Gateway(Arc::new(gateway.clone())))]);
        (ready > 0).then_some(value)
    }
}

fn instances(mesh: &Mesh, gateway: &Gateway) -> usize {
    let meta = &gateway.metadata;
    let own = mesh.waypoints.iter().find(|w| (&w.namespace, &w.name) == (&meta.namespace, &meta.name));
    own.map_or(0, |waypoint| waypoint.instances.len())
}
