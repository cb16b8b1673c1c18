//! `--auto-allow-waypoint`: policies that let a waypoint reach what is behind it. Istio's rules: `implicitWaypointPolicy` and
//! `implicitWaypointPolicies` of istiod's ambient index, with `PILOT_AUTO_ALLOW_WAYPOINT_POLICY`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::super::{Service, Workload};
use super::Waypoint;
use crate::policy::{Action, Attachment, AuthorizationPolicy, Rule, Source, StringMatch};

/// One for each waypoint that has a pod; those of the last time stay where they have not changed.
pub(in super::super) fn policies(
    waypoints: &[Waypoint],
    known: &[Arc<AuthorizationPolicy>],
) -> Vec<Arc<AuthorizationPolicy>> {
    let known: HashMap<String, &Arc<AuthorizationPolicy>> =
        known.iter().map(|policy| (policy.full_name(), policy)).collect();
    let made = waypoints.iter().filter(|w| !w.identities.is_empty()).map(policy);
    made.map(|made| match known.get(&made.full_name()) {
        Some(same) if ***same == made => Arc::clone(same),
        _ => Arc::new(made),
    })
    .collect()
}

fn policy(waypoint: &Waypoint) -> AuthorizationPolicy {
    let principal = |id: &crate::identity::SpiffeId| StringMatch::Exact(id.principal());
    let source =
        Source { principals: waypoint.identities.iter().map(principal).collect(), ..Source::default() };
    AuthorizationPolicy {
        namespace: waypoint.namespace.clone(),
        // No Kubernetes name has an underscore.
        name: format!("istio_allow_waypoint_{}_{}", waypoint.namespace, waypoint.name),
        action: Action::Allow,
        attachment: Attachment::Behind(waypoint.full_name()),
        dry_run: false,
        rules: vec![Rule { from: vec![source], ..Rule::default() }],
    }
}

/// Tells each workload which waypoints it is behind: its own, those of its services, and their canaries.
///
/// Istio leaves the canaries out, so with it whatever goes through one is refused.
pub(in super::super) fn attach(workloads: &mut [Workload], services: &[Service], waypoints: &[Waypoint]) {
    let names: Vec<Arc<str>> = waypoints.iter().map(|w| w.full_name().into()).collect();
    let of_service: HashMap<String, [Option<usize>; 2]> = services
        .iter()
        .filter(|s| s.waypoint.is_some())
        .map(|s| (s.key(), [s.waypoint, s.canary.map(|canary| canary.waypoint)]))
        .collect();
    for workload in workloads {
        let by_service = workload.services.iter().filter_map(|key| of_service.get(key)).flatten();
        let places: BTreeSet<usize> = by_service.copied().chain([workload.waypoint]).flatten().collect();
        workload.behind = places.iter().filter_map(|place| names.get(*place).cloned()).collect();
    }
}
