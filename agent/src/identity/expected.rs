//! Who may answer at an address.

use std::fmt;
use std::sync::Arc;

use super::SpiffeId;

/// The workload itself, or one of the identities that its service names (`subjectAltNames` of a ServiceEntry).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Expected {
    identity: SpiffeId,
    others: Option<Arc<[SpiffeId]>>,
}

impl Expected {
    /// `others` may answer too; none is as good as an empty list.
    pub fn any(identity: SpiffeId, others: Option<Arc<[SpiffeId]>>) -> Self {
        Self { identity, others: others.filter(|others| !others.is_empty()) }
    }

    /// The workload's own.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Whether who proves this identity is one of them.
    pub fn admits(&self, proven: &SpiffeId) -> bool {
        self.identity == *proven || self.others.as_ref().is_some_and(|others| others.contains(proven))
    }
}

impl From<&SpiffeId> for Expected {
    fn from(identity: &SpiffeId) -> Self {
        Self { identity: identity.clone(), others: None }
    }
}

impl From<&Expected> for Expected {
    fn from(expected: &Expected) -> Self {
        expected.clone()
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.identity)?;
        self.others.iter().flat_map(|others| others.iter()).try_for_each(|other| write!(f, " or {other}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", account)
    }

    #[test]
    fn the_workload_or_who_its_service_names() {
        let alone = Expected::from(&id("a"));
        assert!(alone.admits(&id("a")) && !alone.admits(&id("b")));
        assert_eq!(alone, Expected::any(id("a"), Some(Arc::from([]))), "one connection serves both");
        let both = Expected::any(id("a"), Some(Arc::from([id("b")])));
        assert!(both.admits(&id("a")) && both.admits(&id("b")) && !both.admits(&id("c")));
        assert_eq!(
            both.to_string(),
            "spiffe://cluster.local/ns/shop/sa/a or spiffe://cluster.local/ns/shop/sa/b"
        );
    }
}
