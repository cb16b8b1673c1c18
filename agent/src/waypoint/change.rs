//! Changes of a folder's files, all of them made out before the first is written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::gateway::{GROUP, PORT};
use super::{CLASS, Folder, Wanted};
use crate::control::manifests::edit::{self, Rest, Text};
use crate::model::waypoint::{USE, USE_NAMESPACE};
use crate::model::workload::MODE_LABEL;

const GATEWAY: (&str, &str) = (GROUP, "Gateway");
const NAMESPACE: (&str, &str) = ("", "Namespace");

/// Files to be written.
pub struct Staged<'a> {
    folder: &'a Folder,
    /// What they hold (`None`: they are new), and what they are to hold (`None`: they are to go).
    files: BTreeMap<PathBuf, (Option<String>, Option<String>)>,
}

/// What [`Staged::apply`] has done.
#[derive(PartialEq, Eq, Debug)]
pub struct Applied {
    /// Whether there was no such Gateway before.
    pub new: bool,
}

/// What there is to know of a namespace before it is enrolled with a waypoint.
#[derive(PartialEq, Eq, Debug)]
pub struct Enrolment {
    /// It has a waypoint by label already.
    pub taken: bool,
    /// Its pods are in the mesh.
    pub ambient: bool,
}

impl Enrolment {
    /// Of a namespace; one that is not in the folder has no labels.
    pub fn of(folder: &Folder, namespace: &str) -> Self {
        let label = |key: &str| folder.namespace(namespace).and_then(|meta| meta.labels.get(key));
        Self { taken: label(USE).is_some(), ambient: label(MODE_LABEL).is_some_and(|mode| mode == "ambient") }
    }
}

impl<'a> Staged<'a> {
    /// No change yet.
    pub fn new(folder: &'a Folder) -> Self {
        Self { folder, files: BTreeMap::new() }
    }

    /// Adds the waypoint's Gateway, or brings the one that is there in line: the labels that are asked for, and its address once its
    /// Service has a ready endpoint. What else it holds stays.
    ///
    /// # Errors
    ///
    /// A Gateway of that name is no waypoint, or cannot be changed without touching something else.
    pub fn apply(&mut self, wanted: &Wanted, namespace: &str) -> Result<Applied> {
        let (folder, name) = (self.folder, wanted.name.as_str());
        let new = folder.find(GATEWAY, namespace, name)?.is_none();
        if new {
            let wanted = Wanted { namespace: Some(namespace.to_owned()), ..wanted.clone() };
            self.create(folder.dir.join(format!("gateway_{namespace}_{name}.yaml")), wanted.manifest())?;
        } else {
            self.check(namespace, name)?;
        }
        for (key, value) in wanted.labels() {
            self.set(GATEWAY, namespace, name, &["metadata", "labels", key], &json!(value))?;
        }
        if let Some(address) = self.address(wanted, namespace) {
            let addresses = json!([{"type": "Hostname", "value": address}]);
            self.set(GATEWAY, namespace, name, &["status", "addresses"], &addresses)?;
        }
        Ok(Applied { new })
    }

    /// The address to give the Gateway; `None`: it has one, or cannot have one yet.
    fn address(&self, wanted: &Wanted, namespace: &str) -> Option<String> {
        let mut world = self.folder.world();
        let gateway = match self.folder.gateway(namespace, &wanted.name) {
            Some(gateway) => gateway.as_ref().clone(),
            None => wanted.object(namespace)?,
        };
        let unassigned = gateway.status.addresses.is_empty();
        if unassigned { self.folder.assignable(&mut world, &gateway) } else { None }
    }

    fn check(&self, namespace: &str, name: &str) -> Result<()> {
        let Some(gateway) = self.folder.gateway(namespace, name) else {
            bail!(
                "the file that holds Gateway {namespace}/{name} is not valid, so agents use nothing of it; correct it first"
            );
        };
        let spec = &gateway.spec;
        let hbone = |l: &crate::control::objects::Listener| {
            l.port == PORT && l.protocol.eq_ignore_ascii_case("HBONE")
        };
        if spec.gateway_class_name != CLASS || !spec.listeners.iter().any(hbone) {
            bail!(
                "Gateway {namespace}/{name} is there and no waypoint: that has gatewayClassName {CLASS} and a listener on port {PORT} \
                 with protocol HBONE. Correct it, or choose another --name; nothing was changed"
            );
        }
        Ok(())
    }

    /// Labels a Namespace with a waypoint; adds the object when it is not in the folder.
    ///
    /// # Errors
    ///
    /// Another label makes this one mean another waypoint, or the object cannot be changed without touching something else.
    pub fn enroll(&mut self, namespace: &str, waypoint: &str) -> Result<()> {
        let elsewhere = self.folder.namespace(namespace).and_then(|meta| meta.labels.get(USE_NAMESPACE));
        if let Some(other) = elsewhere.filter(|other| *other != namespace && !other.is_empty()) {
            bail!(
                "namespace {namespace} has the label {USE_NAMESPACE}: {other}, so {USE}: {waypoint} would mean {other}/{waypoint}; remove \
                 that label first. Nothing was changed"
            );
        }
        if self.folder.find(NAMESPACE, "", namespace)?.is_none() {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {USE: waypoint}}});
            let path = self.folder.dir.join(format!("namespace_{namespace}.yaml"));
            return self.create(path, edit::block(&object, 0));
        }
        self.set(NAMESPACE, "", namespace, &["metadata", "labels", USE], &json!(waypoint))
    }

    /// Takes a waypoint's Gateway out; false: there is none.
    ///
    /// # Errors
    ///
    /// It cannot be taken out without touching something else.
    pub fn delete(&mut self, namespace: &str, name: &str) -> Result<bool> {
        let Some((file, place)) = self.folder.find(GATEWAY, namespace, name)? else { return Ok(false) };
        let text = self.current(&file.path).unwrap_or(&file.text);
        // Places change with what was taken out before.
        let read = Text::read(text).context("a changed file")?;
        let place = read.find(GROUP, "Gateway", namespace, name).unwrap_or(place);
        let Some(rest) = read.without(place) else {
            bail!(
                "{}: Gateway {namespace}/{name} cannot be taken out without touching what else is in the file (it is an item of a list, \
                 say); remove it by hand. Nothing was changed",
                file.path.display()
            );
        };
        let rest = match rest {
            Rest::Nothing => None,
            Rest::Text(text) => Some(text),
        };
        self.files.insert(file.path.clone(), (Some(file.text.clone()), rest));
        Ok(true)
    }

    /// Writes what is different now. What has not changed is not touched.
    ///
    /// # Errors
    ///
    /// A file cannot be written, or was changed by somebody else; files before it are written then.
    pub fn write(self) -> Result<()> {
        for (path, (before, after)) in self.files {
            match after {
                Some(after) if before.as_ref() == Some(&after) => Ok(()),
                Some(after) => edit::replace(&path, before.as_deref(), &after),
                None => std::fs::remove_file(&path),
            }
            .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn create(&mut self, path: PathBuf, text: String) -> Result<()> {
        if path.exists() {
            bail!("{} is there and holds something else; rename it. Nothing was changed", path.display());
        }
        self.files.insert(path, (None, Some(text)));
        Ok(())
    }

    fn current(&self, path: &PathBuf) -> Option<&String> {
        self.files.get(path)?.1.as_ref()
    }

    fn set(
        &mut self,
        (group, kind): (&str, &str),
        namespace: &str,
        name: &str,
        path: &[&str],
        value: &Value,
    ) -> Result<()> {
        let found = self.folder.find((group, kind), namespace, name)?;
        let file = match found {
            Some((file, _)) => file.path.clone(),
            None => self.folder.dir.join(format!("gateway_{namespace}_{name}.yaml")),
        };
        let before = found.map(|(file, _)| file.text.clone());
        let text = self.current(&file).or(before.as_ref()).context("a file that is staged")?;
        let read = Text::read(text).context("a file that was read before")?;
        let place = read.find(group, kind, namespace, name).context("an object that was there")?;
        let object = read.object(place).unwrap_or_default();
        if path.iter().try_fold(&object, |node, key| node.get(*key)) == Some(value) {
            return Ok(());
        }
        let Some(text) = read.set(place, path, value) else {
            let nested = path.iter().rev().fold(value.clone(), |inner, key| json!({*key: inner}));
            let by_hand = edit::block(&nested, 2);
            bail!(
                "{}: {kind} {name} cannot be changed without touching something else in the file; write by hand:\n{by_hand}Nothing was \
                 changed",
                file.display()
            );
        };
        self.files.insert(file, (before, Some(text)));
        Ok(())
    }
}
