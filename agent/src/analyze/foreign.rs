//! Objects and fields that the agent has no use for, and the analyzer has.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::control::manifests::Document;
use crate::control::objects::{
    Container, ContainerPort, Metadata, Pod, PodSpec, Protocol, WorkloadEntry, or_default,
};

/// Any object's metadata.
#[derive(Deserialize)]
pub(super) struct Any {
    pub(super) metadata: Metadata,
}

/// Whether an object that the agent does not read lives in a namespace, as far as the analyzer cares.
pub(super) fn is_namespaced(document: &Document) -> bool {
    template_field(document).is_some() || super::l7::is_namespaced(document)
}

/// An entry of `spec.targetRefs`.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub(super) struct TargetRef {
    #[serde(default)]
    pub(super) group: Option<String>,
    pub(super) kind: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: Option<String>,
}

#[derive(Deserialize)]
struct Targeted {
    spec: Targets,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Targets {
    #[serde(default, deserialize_with = "or_default")]
    target_refs: Vec<TargetRef>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
}

/// What a policy is attached to, each with its field.
pub(super) fn target_refs(document: &Document) -> Vec<(String, TargetRef)> {
    let Some(Targeted { spec }) = document.read_as() else { return Vec::new() };
    let many = spec.target_refs.into_iter().enumerate();
    let many = many.map(|(n, target)| (format!("spec.targetRefs[{n}]"), target));
    many.chain(spec.target_ref.map(|target| ("spec.targetRef".to_owned(), target))).collect()
}

#[derive(Deserialize)]
struct Template {
    #[serde(default, deserialize_with = "or_default")]
    metadata: TemplateMetadata,
    #[serde(default, deserialize_with = "or_default")]
    spec: PodSpec,
}

#[derive(Deserialize, Default)]
struct TemplateMetadata {
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Owner {
    spec: OwnerSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerSpec {
    #[serde(default)]
    template: Option<Template>,
    #[serde(default)]
    job_template: Option<Box<Owner>>,
}

/// Where an object that makes pods has their template; `None` for other kinds.
pub(super) fn template_field(document: &Document) -> Option<&'static str> {
    let group = document.api_version.split('/').next().unwrap_or_default();
    match (group, document.kind.as_str()) {
        ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet") | ("batch", "Job") => {
            Some("spec.template")
        }
        ("v1", "ReplicationController") => Some("spec.template"),
        ("batch", "CronJob") => Some("spec.jobTemplate.spec.template"),
        _ => None,
    }
}

/// The pod that a Deployment or the like would make.
pub(super) fn templated_pod(document: &Document, owner: &Metadata) -> Option<Pod> {
    let spec = document.read_as::<Owner>()?.spec;
    let template = spec.template.or_else(|| spec.job_template?.spec.template)?;
    let metadata = Metadata {
        name: owner.name.clone(),
        namespace: owner.namespace.clone(),
        labels: template.metadata.labels,
        annotations: template.metadata.annotations,
        ..Metadata::default()
    };
    Some(Pod { metadata, spec: template.spec, ..Pod::default() })
}

/// A WorkloadEntry as the pod that it takes the place of.
pub(super) fn pod_of_entry(entry: &WorkloadEntry) -> Pod {
    let mut metadata = entry.metadata.clone();
    for (key, value) in &entry.spec.labels {
        metadata.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let port = |(name, number): (&String, &u16)| ContainerPort {
        name: name.clone(),
        container_port: *number,
        protocol: Protocol::Tcp,
    };
    let ports = entry.spec.ports.iter().map(port).collect();
    let spec = PodSpec {
        service_account_name: entry.spec.service_account.clone(),
        containers: vec![Container { ports, ..Container::default() }],
        ..PodSpec::default()
    };
    Pod { metadata, spec, ..Pod::default() }
}
