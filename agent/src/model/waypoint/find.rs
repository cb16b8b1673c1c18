//! From labels to a waypoint, or to why there is none.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::super::{Service, World};
use super::{Canary, Choice, Waypoint, chosen};
use crate::control::objects::{FromNamespaces, Listener, Metadata, Namespace};

/// Names a second waypoint of a Service, or of all of a Namespace's that take their waypoint from it.
pub(crate) const CANARY: &str = "istio.io/use-waypoint-canary";
/// Where that waypoint is, when not in the same namespace.
pub(crate) const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// Annotation: its share of the connections, 0 to 100.
pub(crate) const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";

/// Why a Service has not the waypoint, or not the canary, that is named. Reasons and words are those of Istio's condition
/// `istio.io/WaypointBound`; each holds the waypoint as `namespace/name`.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the variants are Istio's reasons")]
pub enum Unbound {
    WaypointIsNotReady(String),
    AttachmentDenied(String),
    UnsupportedTrafficType(String),
    CanaryInvalidWeight(String),
    CanarySameAsPrimary(String),
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaypointIsNotReady(name) => {
                write!(f, "WaypointIsNotReady: waypoint {name:?} is not ready")
            }
            Self::AttachmentDenied(name) => write!(
                f,
                "AttachmentDenied: we are not permitted to attach to waypoint {name:?} (missing allowedRoutes?)"
            ),
            Self::UnsupportedTrafficType(name) => write!(
                f,
                "UnsupportedTrafficType: attempting to bind to traffic type \"service\" which the waypoint {name:?} \
                 does not support"
            ),
            Self::CanaryInvalidWeight(name) => write!(
                f,
                "CanaryInvalidWeight: canary waypoint {name:?} has an invalid weight; must be an integer in [0,100]"
            ),
            Self::CanarySameAsPrimary(name) => write!(
                f,
                "CanarySameAsPrimary: canary waypoint {name:?} must differ from the primary waypoint"
            ),
        }
    }
}

pub(super) struct Finder<'a> {
    pub(super) world: &'a World,
    /// Places in `waypoints` by namespace and name, with the listener that says who may attach.
    pub(super) places: HashMap<(&'a str, &'a str), Vec<(usize, &'a Listener)>>,
    pub(super) waypoints: &'a [Waypoint],
}

/// The waypoint that labels name, and whether the object's own do.
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
    own: bool,
}

impl<'a> Finder<'a> {
    /// The waypoint of a workload in `namespace`: what its labels say, else what those of its namespace say.
    pub(super) fn of_workload(&self, labels: &BTreeMap<String, String>, namespace: &str) -> Option<usize> {
        let named = self.named(labels, namespace)?;
        let place = self.place((named.namespace, named.name), namespace).ok()?;
        self.waypoints.get(place).is_some_and(|w| w.workloads).then_some(place)
    }

    /// Gives a Service its waypoint and its canary, or the reason why it has none.
    pub(super) fn bind(&self, service: &mut Service, meta: &Metadata) {
        let Some(named) = self.named(&meta.labels, &meta.namespace) else { return };
        match self.for_services((named.namespace, named.name), &meta.namespace) {
            Ok(place) => service.waypoint = Some(place),
            Err(reason) => {
                service.unbound = Some(reason);
                return;
            }
        }
        match self.canary(meta, &named) {
            Ok(canary) => service.canary = canary,
            Err(reason) => service.unbound = Some(reason),
        }
    }

    /// A canary comes from where the waypoint comes from: a namespace's is for those that take their waypoint from it.
    fn canary(&self, meta: &Metadata, primary: &Named<'_>) -> Result<Option<Canary>, Unbound> {
        let home = self.home(&meta.namespace).map(|home| &home.metadata).filter(|_| !primary.own);
        let Some((labels, name)) = canary_label(meta, home) else { return Ok(None) };
        let namespace = labels.get(CANARY_NAMESPACE).map_or(meta.namespace.as_str(), String::as_str);
        let full = format!("{namespace}/{name}");
        if (namespace, name) == (primary.namespace, primary.name) {
            return Err(Unbound::CanarySameAsPrimary(full));
        }
        let says = |meta: &'a Metadata| meta.annotations.get(CANARY_WEIGHT);
        let weight = meta.annotations.get(CANARY_WEIGHT).or_else(|| home.and_then(says));
        let weight = match weight.map(|text| canary_weight(text)) {
            None => 0,
            Some(Some(weight)) => weight,
            Some(None) => return Err(Unbound::CanaryInvalidWeight(full)),
        };
        let waypoint = self.for_services((namespace, name), &meta.namespace)?;
        Ok(Some(Canary { waypoint, weight }))
    }

    fn for_services(&self, named: (&str, &str), namespace: &str) -> Result<usize, Unbound> {
        let place = self.place(named, namespace)?;
        let serves = self.waypoints.get(place).is_some_and(|w| w.services);
        let (of, name) = named;
        serves.then_some(place).ok_or_else(|| Unbound::UnsupportedTrafficType(format!("{of}/{name}")))
    }

    fn home(&self, namespace: &str) -> Option<&'a Namespace> {
        self.world.namespaces.get(&(String::new(), namespace.to_owned())).map(AsRef::as_ref)
    }

    fn named<'l>(&self, labels: &'l BTreeMap<String, String>, namespace: &'l str) -> Option<Named<'l>>
    where
        'a: 'l,
    {
        let own = chosen(labels, namespace);
        let inherited = || chosen(&self.home(namespace)?.metadata.labels, namespace);
        match own.or_else(inherited)? {
            Choice::Gateway { namespace, name, .. } => Some(Named { namespace, name, own: own.is_some() }),
            Choice::OptOut => None,
        }
    }

    /// A waypoint that objects of `namespace` may attach to.
    fn place(&self, (of, name): (&str, &str), namespace: &str) -> Result<usize, Unbound> {
        let full = || format!("{of}/{name}");
        let candidates = self.places.get(&(of, name)).ok_or_else(|| Unbound::WaypointIsNotReady(full()))?;
        let home = self.home(namespace);
        let attached = candidates.iter().find(|(_, listener)| may_attach(listener, of, namespace, home));
        attached.map(|(place, _)| *place).ok_or_else(|| Unbound::AttachmentDenied(full()))
    }
}

/// The canary's name and the labels that it is among.
fn canary_label<'m>(
    meta: &'m Metadata,
    home: Option<&'m Metadata>,
) -> Option<(&'m BTreeMap<String, String>, &'m str)> {
    let find = |meta: &'m Metadata| Some((&meta.labels, meta.labels.get(CANARY)?.as_str()));
    find(meta).or_else(|| find(home?)).filter(|(_, name)| !matches!(*name, "" | "none"))
}

/// The share that an annotation gives a canary; `None`: it is no whole number from 0 to 100.
pub(crate) fn canary_weight(text: &str) -> Option<u8> {
    text.parse().ok().filter(|weight| *weight <= 100)
}

/// Whether objects of `namespace` may attach to a listener of a Gateway in `of`.
pub(crate) fn may_attach(listener: &Listener, of: &str, namespace: &str, home: Option<&Namespace>) -> bool {
    let allowed = &listener.allowed_routes.namespaces;
    match allowed.from.unwrap_or_default() {
        FromNamespaces::All => true,
        FromNamespaces::Same => of == namespace,
        FromNamespaces::None => false,
        FromNamespaces::Selector => {
            let selector = allowed.selector.as_ref();
            selector.is_some_and(|selector| home.is_some_and(|home| selector.matches(&home.metadata.labels)))
        }
    }
}
