//! Which workloads a selector selects: asked of its rarest label, so that the other workloads cost nothing.

use std::collections::{BTreeMap, HashMap};

use super::Workload;

/// Workloads by label. The namespace `""` stands for all of them.
pub(super) struct Selection<'a> {
    by_namespace: HashMap<&'a str, Vec<usize>>,
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<usize>>,
    labels: Vec<&'a BTreeMap<String, String>>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(workloads: &[Workload<'a>]) -> Self {
        let mut index = Self { by_namespace: HashMap::new(), by_label: HashMap::new(), labels: Vec::new() };
        for (n, workload) in workloads.iter().enumerate() {
            let labels = &workload.pod.metadata.labels;
            for namespace in ["", workload.origin.namespace] {
                index.by_namespace.entry(namespace).or_default().push(n);
                for (key, value) in labels {
                    index.by_label.entry((namespace, key, value)).or_default().push(n);
                }
            }
            index.labels.push(labels);
        }
        index
    }

    /// The workloads of `namespace` with all labels of `selector`; an empty one selects all.
    pub(super) fn select(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<usize> {
        let with = selector.iter().map(|(key, value)| self.with(namespace, key, value));
        let Some(rarest) = with.min_by_key(|found| found.len()) else {
            return self.by_namespace.get(namespace).cloned().unwrap_or_default();
        };
        let has = |n: &usize| {
            let labels = self.labels.get(*n);
            selector.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
        };
        rarest.iter().copied().filter(has).collect()
    }

    fn with<'s>(&'s self, namespace: &'s str, key: &'s str, value: &'s str) -> &'s [usize] {
        self.by_label.get(&(namespace, key, value)).map_or(&[], Vec::as_slice)
    }
}
