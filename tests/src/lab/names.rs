//! Names as cluster DNS would resolve them, as a hosts file for each namespace.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use super::{Lab, text};
use crate::objects::{self, Key};

impl Lab {
    /// The hosts file of a namespace; made when missing.
    pub(super) fn hosts_file(&self, namespace: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("hosts-{namespace}"));
        if !path.exists() {
            fs::write(&path, "127.0.0.1 localhost\n")?;
        }
        Ok(path)
    }

    /// What the pods of a namespace see in place of the machine's own files.
    pub(super) fn name_files(&self, namespace: &str) -> Result<Vec<(PathBuf, &'static str)>> {
        let mut files =
            vec![(self.hosts_file(namespace)?, "/etc/hosts"), (self.resolv_file()?, "/etc/resolv.conf")];
        if Path::new("/etc/gai.conf").exists() {
            // The cluster's primary family is IPv4, so names lead there first.
            let path = self.dir.join("gai.conf");
            fs::write(&path, "precedence ::ffff:0:0/96 100\n")?;
            files.push((path, "/etc/gai.conf"));
        }
        Ok(files)
    }

    /// A resolv.conf whose server answers at once that it is not there.
    pub(super) fn resolv_file(&self) -> Result<PathBuf> {
        let path = self.dir.join("resolv.conf");
        if !path.exists() {
            fs::write(&path, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        }
        Ok(path)
    }

    /// Writes the names of all services into the files, in place: they are mounted.
    pub(super) fn write_names(&self) -> Result<()> {
        let namespaces: Vec<String> =
            self.store.of_kind("Namespace").map(|(key, _)| key.name.clone()).collect();
        for namespace in namespaces {
            let path = self.hosts_file(&namespace)?;
            let text = self.hosts(&namespace);
            if fs::read_to_string(&path)? != text {
                fs::write(&path, text)?;
            }
        }
        Ok(())
    }

    fn hosts(&self, namespace: &str) -> String {
        let mut file = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (key, service) in self.store.of_kind("Service") {
            let spec = &service["spec"];
            let names = service_names(key, namespace);
            if spec["clusterIP"] == "None" {
                for (_, pod) in self.backing_pods(key, service) {
                    for ip in objects::addresses(pod) {
                        let _ = writeln!(file, "{ip} {names}{}", pod_names(pod, key, namespace));
                    }
                }
            } else {
                for ip in spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    let _ = writeln!(file, "{ip} {names}");
                }
            }
        }
        file
    }

    fn backing_pods<'a>(
        &'a self,
        key: &'a Key,
        service: &'a Value,
    ) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        let selector = service["spec"]["selector"].as_object();
        self.store.of_kind("Pod").filter(move |(pod, object)| {
            pod.namespace == key.namespace
                && selector
                    .is_some_and(|s| !s.is_empty() && objects::selects(s, &object["metadata"]["labels"]))
                && objects::is_ready(object)
        })
    }
}

fn service_names(key: &Key, from: &str) -> String {
    let Key { name, namespace, .. } = key;
    let mut names = format!("{name}.{namespace}.svc.cluster.local {name}.{namespace}.svc {name}.{namespace}");
    if namespace == from {
        names.push(' ');
        names.push_str(name);
    }
    names
}

/// `pod.service…` for pods with hostname and subdomain, or of a StatefulSet.
fn pod_names(pod: &Value, service: &Key, from: &str) -> String {
    let spec = &pod["spec"];
    let owned = pod["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
    let host = match text(spec, "hostname") {
        "" if owned => text(&pod["metadata"], "name"),
        host => host,
    };
    let member = owned || text(spec, "subdomain") == service.name;
    if host.is_empty() || !member {
        return String::new();
    }
    service_names(service, from).split(' ').map(|name| format!(" {host}.{name}")).collect()
}
