//! What a pod is a part of, as telemetry names it.

use crate::control::objects::Pod;

const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// The word of a `baggage` key (`k8s.<word>.name`), and the name.
///
/// istiod's rules (`pkg/kube/util.go`, `GetWorkloadMetaFromPod`): a ReplicaSet whose name ends with the pod's template hash
/// is its Deployment's, a Job whose name ends with a time its CronJob's. What else owns pods is not told: the pod is named.
pub(super) fn owner(pod: &Pod) -> (&'static str, String) {
    let meta = &pod.metadata;
    let controller = meta.owner_references.iter().find(|owner| owner.controller == Some(true));
    let found = controller.and_then(|owner| match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = meta.labels.get(TEMPLATE_HASH_LABEL)?;
            let name = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
            Some(("deployment", name))
        }
        "Job" => Some(cron_job(&owner.name).map_or(("job", owner.name.as_str()), |name| ("cronjob", name))),
        _ => None,
    });
    found
        .filter(|(_, name)| !name.is_empty())
        .map_or(("pod", meta.name.clone()), |(word, name)| (word, name.to_owned()))
}

/// `backup-28473120` is a Job of the CronJob `backup`: minutes since 1970, eight to ten digits.
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let digits = time.bytes().all(|byte| byte.is_ascii_digit());
    (!name.is_empty() && digits && (8..=10).contains(&time.len())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::OwnerReference;

    #[test]
    fn pods_are_named_by_what_runs_them() {
        for (kind, name, controller, expected) in [
            ("ReplicaSet", "web-6b9f", true, ("deployment", "web")),
            ("ReplicaSet", "web", true, ("pod", "p")),
            ("ReplicaSet", "web-6b9f", false, ("pod", "p")),
            ("ReplicaSet", "-6b9f", true, ("pod", "p")),
            ("Job", "backup-28473120", true, ("cronjob", "backup")),
            ("Job", "backup-2", true, ("job", "backup-2")),
            ("StatefulSet", "db", true, ("pod", "p")),
        ] {
            let mut pod = Pod::default();
            pod.metadata.name = "p".to_owned();
            pod.metadata.labels.insert(TEMPLATE_HASH_LABEL.to_owned(), "6b9f".to_owned());
            let owner =
                OwnerReference { kind: kind.to_owned(), name: name.to_owned(), controller: Some(controller) };
            pod.metadata.owner_references.push(owner);
            let (word, named) = super::owner(&pod);
            assert_eq!((word, named.as_str()), expected, "{kind} {name}");
        }
    }
}
