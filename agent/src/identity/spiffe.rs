//! `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A workload's identity. Cheap to clone.
///
/// Parsed as ztunnel does: exactly five parts; namespace and service account may be empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<Parts>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Parts {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// A text that is not a SPIFFE id of a Kubernetes workload.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct SpiffeError {
    text: String,
}

impl SpiffeId {
    /// The id of a service account.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self(Arc::new(Parts {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        }))
    }

    /// The trust domain, `cluster.local` by default in Istio.
    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }

    /// The form that AuthorizationPolicy principals have: the id without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.0.trust_domain, self.0.namespace, self.0.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || SpiffeError { text: text.to_owned() };
        let rest = text.strip_prefix("spiffe://").ok_or_else(error)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts[..] {
            [trust_domain, "ns", namespace, "sa", account] if !trust_domain.is_empty() => {
                Ok(Self::new(trust_domain, namespace, account))
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.0.trust_domain, self.0.namespace, self.0.service_account)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed_as_ztunnel_parses_them() {
        for text in [
            "spiffe://cluster.local/ns/namespace/sa/service-account",
            "spiffe://td.example/ns/a.b/sa/c.d",
            "spiffe://td/ns//sa/",
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        for text in [
            "cluster.local/ns/a/sa/b",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/foobar/b",
            "spiffe:///ns/a/sa/b",
            "",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
