//! A folder of manifests, as the agents that follow it see it.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::CLASS;
use crate::control::manifests::edit::{Place, Text};
use crate::control::manifests::{self, Document};
use crate::control::objects::{Gateway, Metadata};
use crate::control::{Object, Problem, Update};
use crate::model::waypoint::{Choice, chosen};
use crate::model::{Settings, World};

/// What is in a folder of manifests.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub dir: PathBuf,
    /// What the agents would use nothing of, with the reason.
    pub problems: Vec<Problem>,
    /// In the order in which they count: of an object in two files, the later one does.
    pub(super) files: Vec<File>,
    pub(super) settings: Settings,
}

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) text: String,
    documents: Vec<Document>,
}

/// A condition of a Gateway's status.
#[derive(Clone, Deserialize, Debug)]
pub(super) struct Condition {
    pub(super) r#type: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) message: String,
}

/// A waypoint's Gateway, with what its status says.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) gateway: Arc<Gateway>,
    pub(super) conditions: Vec<Condition>,
}

impl Folder {
    /// Reads the manifests of `dir`, but not of the folders below it, as an agent does. `cluster_domain` is the one of the agents.
    ///
    /// # Errors
    ///
    /// The folder cannot be listed, or a file of it cannot be read.
    pub fn read(dir: &Path, cluster_domain: &str) -> Result<Self> {
        let mut found: Vec<(SystemTime, Reverse<PathBuf>)> = Vec::new();
        for entry in dir.read_dir().with_context(|| format!("--manifests {}", dir.display()))? {
            let path = entry?.path();
            if manifests::is_manifest(&path) && path.is_file() {
                found.push((path.metadata()?.modified()?, Reverse(path)));
            }
        }
        found.sort();
        let settings = Settings { cluster_domain: cluster_domain.to_owned(), ..Settings::default() };
        let mut folder = Self { dir: dir.to_owned(), problems: Vec::new(), files: Vec::new(), settings };
        for (_, Reverse(path)) in found {
            let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let read = manifests::read_bytes(&path, &text);
            let (documents, problems) =
                read.map_or_else(|problems| (Vec::new(), problems), |read| (read.valid, read.problems));
            // A file is taken as a whole.
            let documents = if problems.is_empty() { documents } else { Vec::new() };
            folder.problems.extend(problems);
            folder.files.push(File { path, text: String::from_utf8_lossy(&text).into_owned(), documents });
        }
        Ok(folder)
    }

    /// The model of what is in the folder.
    pub(super) fn world(&self) -> World {
        let objects = self.documents().filter_map(|document| document.object.clone());
        let mut world = World::default();
        world.apply(objects.map(Update::Upsert).collect());
        world
    }

    fn documents(&self) -> impl Iterator<Item = &Document> {
        self.files.iter().flat_map(|file| &file.documents)
    }

    /// The Gateways of the waypoints' class, by namespace and name.
    pub(super) fn waypoints(&self) -> Vec<Found> {
        let mut found = std::collections::BTreeMap::new();
        for document in self.documents() {
            if let Some(Object::Gateway(gateway)) = &document.object
                && gateway.spec.gateway_class_name == CLASS
            {
                let conditions = document.read_as::<Reported>().unwrap_or_default().status.conditions;
                let key = (gateway.metadata.namespace.clone(), gateway.metadata.name.clone());
                found.insert(key, Found { gateway: Arc::clone(gateway), conditions });
            }
        }
        found.into_values().collect()
    }

    /// The Gateway of that name, whatever its class.
    pub(super) fn gateway(&self, namespace: &str, name: &str) -> Option<&Arc<Gateway>> {
        let gateways = self.documents().filter_map(|document| match &document.object {
            Some(Object::Gateway(gateway)) => Some(gateway),
            _ => None,
        });
        gateways
            .filter(|g| (g.metadata.namespace.as_str(), g.metadata.name.as_str()) == (namespace, name))
            .last()
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&Metadata> {
        let namespaces = self.documents().filter_map(|document| match &document.object {
            Some(Object::Namespace(namespace)) => Some(&namespace.metadata),
            _ => None,
        });
        namespaces.filter(|meta| meta.name == name).last()
    }

    /// The objects whose labels name a waypoint, as `Kind namespace/name`.
    pub fn users(&self, namespace: &str, name: &str) -> Vec<String> {
        let labels = |object: &'_ Object| -> Option<Metadata> {
            Some(match object {
                Object::Namespace(o) => Metadata { namespace: o.metadata.name.clone(), ..o.metadata.clone() },
                Object::Pod(o) => o.metadata.clone(),
                Object::Service(o) => o.metadata.clone(),
                Object::ServiceEntry(o) => o.metadata.clone(),
                Object::WorkloadEntry(o) => o.metadata.clone(),
                _ => return None,
            })
        };
        let names = |object: &&Object| {
            labels(object).is_some_and(|meta| match chosen(&meta.labels, &meta.namespace) {
                Some(Choice::Gateway { namespace: of, name: called, .. }) => {
                    (of, called) == (namespace, name)
                }
                Some(Choice::OptOut) | None => false,
            })
        };
        let objects = self.documents().filter_map(|document| document.object.as_ref());
        objects.filter(names).map(|object| object.key().to_string()).collect()
    }

    /// The file that an object is in, and where; of several the one that counts.
    ///
    /// # Errors
    ///
    /// A file that is no valid YAML, since the object may be in it.
    pub(super) fn find(
        &self,
        (group, kind): (&str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<Option<(&File, Place)>> {
        for file in self.files.iter().rev() {
            let Some(text) = Text::read(&file.text) else {
                let problem = self.problems.iter().find(|p| Path::new(&p.file) == file.path);
                let why =
                    problem.map_or_else(|| "no valid YAML".to_owned(), |problem| problem.message.clone());
                bail!(
                    "{}: {why}; correct the file first: {kind} {name} may be in it. Nothing was changed",
                    file.path.display()
                );
            };
            if let Some(place) = text.find(group, kind, namespace, name) {
                return Ok(Some((file, place)));
            }
        }
        Ok(None)
    }
}

#[derive(Deserialize, Default)]
struct Reported {
    #[serde(default)]
    status: ReportedStatus,
}

#[derive(Deserialize, Default)]
struct ReportedStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}
