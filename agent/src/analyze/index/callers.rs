//! Who may call: service accounts, and whether the workloads that run as them prove who they are.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Enrolment, Name, Workload};
use crate::model::workload::service_account;

/// Workloads by namespace and service account.
pub(in crate::analyze) struct Callers<'a> {
    by_namespace: HashMap<&'a str, Group>,
    by_account: HashMap<Name<'a>, Group>,
    accounts: HashMap<&'a str, BTreeSet<&'a str>>,
}

/// Workloads that a policy means together.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::analyze) struct Group {
    pub(in crate::analyze) all: usize,
    /// Those that prove no identity.
    pub(in crate::analyze) outside: usize,
    /// One of those, by its place.
    pub(in crate::analyze) example: usize,
}

impl Group {
    fn add(&mut self, n: usize, workload: &Workload<'_>) {
        self.all += 1;
        if workload.enrolment == Enrolment::Outside {
            self.outside += 1;
            self.example = n;
        }
    }
}

impl<'a> Callers<'a> {
    /// `accounts`: those that are objects, and those that pods name.
    pub(super) fn new(workloads: &[Workload<'a>], accounts: &HashSet<Name<'a>>) -> Self {
        let mut callers =
            Self { by_namespace: HashMap::new(), by_account: HashMap::new(), accounts: HashMap::new() };
        for (n, workload) in workloads.iter().enumerate() {
            let namespace = workload.origin.namespace;
            let account = (namespace, service_account(workload.pod));
            callers.by_namespace.entry(namespace).or_default().add(n, workload);
            callers.by_account.entry(account).or_default().add(n, workload);
        }
        for (namespace, account) in accounts {
            callers.accounts.entry(namespace).or_default().insert(account);
        }
        callers
    }

    pub(in crate::analyze) fn of_namespace(&self, namespace: &str) -> Group {
        self.by_namespace.get(namespace).copied().unwrap_or_default()
    }

    pub(in crate::analyze) fn of_account(&self, namespace: &str, account: &str) -> Group {
        self.by_account.get(&(namespace, account)).copied().unwrap_or_default()
    }

    /// The service accounts of a namespace; `None` when the input has none at all.
    pub(in crate::analyze) fn accounts(&self, namespace: &str) -> Option<&BTreeSet<&'a str>> {
        self.accounts.get(namespace)
    }
}
