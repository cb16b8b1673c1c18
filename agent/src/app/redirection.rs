//! Istio reports with the annotation `ambient.istio.io/redirection` that a pod's connections are led through the mesh. A folder
//! of manifests cannot be written to, so the agent tells it; and it reads what others have written there.

use std::collections::HashSet;

use crate::model::{Mesh, Snapshot, WorkloadRow};
use crate::pods::PodState;

/// The rows of `culvert workloads`, with what this node's agent knows of its own pods.
pub(super) fn workloads(snapshot: &Snapshot, pods: &[PodState]) -> Vec<WorkloadRow> {
    let mut rows = snapshot.workload_rows();
    for row in &mut rows {
        if row.redirection.is_empty() && row.node == snapshot.mesh.settings.node {
            let name = format!("{}/{}", row.namespace, row.name);
            let found = pods.binary_search_by(|pod| pod.name.as_str().cmp(&name)).ok();
            row.redirection = found.and_then(|n| pods.get(n)).map_or("pending", |pod| pod.redirection);
        }
    }
    rows
}

/// Warns, once for each pod, when a pod that is about to be enrolled is redirected by another agent, or was: its rules would
/// stay in the pod's network namespace. `told` holds the UIDs of those that were warned of.
pub(super) fn warn(mesh: &Mesh, enrolled: &HashSet<String>, told: &mut HashSet<String>) {
    told.retain(|uid| mesh.workloads.iter().any(|workload| workload.uid == *uid));
    let own =
        mesh.workloads.iter().filter(|w| w.is_captured() && w.redirected && w.node == mesh.settings.node);
    for workload in own {
        if enrolled.contains(&workload.uid) || !told.insert(workload.uid.clone()) {
            continue;
        }
        tracing::warn!(
            pod = workload.full_name(),
            "carries ambient.istio.io/redirection: enabled: istio-cni redirects it, or did and left the annotation. If its rules \
             are still in the pod's network namespace (`nft list ruleset` or `iptables-save` there name ISTIO chains) the pod's \
             connections fail: take it out of Istio's mesh, or replace the pod"
        );
    }
}
