//! PeerAuthentication: where a peer must prove an identity.
//!
//! Istio's inheritance: workload over namespace over mesh; UNSET asks the next one up; nothing set is PERMISSIVE;
//! DISABLE is PERMISSIVE in ambient mode. Of several in one place the oldest counts. Those with a selector in the root
//! namespace are ignored. (istio: `pilot/pkg/serviceregistry/ambient/policies.go`, `authorization.go`.)

use std::collections::BTreeMap;

use super::select::matches_labels;
use super::{Code, Finding};

/// A PeerAuthentication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerAuthentication {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// RFC 3339; unknown counts as youngest.
    pub created: Option<String>,
    /// The labels that it selects; `None`: its namespace, or the mesh.
    pub selector: Option<BTreeMap<String, String>>,
    /// For every port that is not listed.
    pub mode: MtlsMode,
    /// By the workload's own port.
    pub port_modes: BTreeMap<u16, MtlsMode>,
}

/// `mtls.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As PERMISSIVE.
    Disable,
    /// Plaintext and mutual TLS.
    Permissive,
    /// Mutual TLS only.
    Strict,
    /// Whatever the next place up says.
    #[default]
    Unset,
}

/// The PeerAuthentication that asks for STRICT, as `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StrictBy(pub String);

/// Where a workload is STRICT.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Strictness {
    /// At ports that are not listed.
    pub default: Option<StrictBy>,
    /// At these ports, where it differs from `default`.
    pub ports: BTreeMap<u16, Option<StrictBy>>,
}

impl Strictness {
    /// Who asks for STRICT at `port`; `None` when plaintext may come in.
    pub fn at(&self, port: u16) -> Option<&StrictBy> {
        self.ports.get(&port).unwrap_or(&self.default).as_ref()
    }
}

/// The setting of a workload. `policies` in any order.
pub fn strictness<'a>(
    policies: impl IntoIterator<Item = &'a PeerAuthentication> + Clone,
    root_namespace: &str,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Strictness {
    let oldest = |applies: &dyn Fn(&PeerAuthentication) -> bool| {
        policies.clone().into_iter().filter(|p| applies(p)).min_by_key(|p| p.age())
    };
    let mesh = oldest(&|p| p.selector.is_none() && p.namespace == root_namespace);
    let local = oldest(&|p| p.selector.is_none() && p.namespace == namespace);
    let own = oldest(&|p| {
        let selected = p.selector.as_ref().is_some_and(|s| matches_labels(s, labels));
        selected && p.namespace == namespace && p.namespace != root_namespace
    });
    let mut setting = Strictness::default();
    for policy in [mesh, local, own].into_iter().flatten() {
        setting.default = policy.strict(policy.mode, &setting.default);
    }
    if let Some(policy) = own {
        for (port, mode) in &policy.port_modes {
            let at_port = policy.strict(*mode, &setting.default);
            if at_port != setting.default {
                setting.ports.insert(*port, at_port);
            }
        }
    }
    setting
}

impl PeerAuthentication {
    fn strict(&self, mode: MtlsMode, inherited: &Option<StrictBy>) -> Option<StrictBy> {
        match mode {
            MtlsMode::Unset => inherited.clone(),
            MtlsMode::Strict => Some(StrictBy(format!("{}/{}", self.namespace, self.name))),
            MtlsMode::Disable | MtlsMode::Permissive => None,
        }
    }

    /// The least counts.
    pub(crate) fn age(&self) -> (bool, Option<&str>, &str) {
        (self.created.is_none(), self.created.as_deref(), &self.name)
    }

    /// What of it has no effect.
    pub fn findings(&self, root_namespace: &str) -> Vec<Finding> {
        let finding = |code, field: &str, message: &str| Finding {
            code,
            object: format!("PeerAuthentication {}/{}", self.namespace, self.name),
            field: field.to_owned(),
            message: message.to_owned(),
        };
        let mut findings = Vec::new();
        if self.selector.is_some() && self.namespace == root_namespace {
            findings.push(finding(
                Code::PeerAuthenticationIgnored,
                "spec.selector",
                "a PeerAuthentication with a selector has no effect in the root namespace; move it to the \
                 workload's namespace",
            ));
        }
        if self.selector.is_none() && !self.port_modes.is_empty() {
            findings.push(finding(
                Code::PeerAuthenticationIgnored,
                "spec.portLevelMtls",
                "has no effect without a selector; add one",
            ));
        }
        if self.mode == MtlsMode::Disable || self.port_modes.values().any(|m| *m == MtlsMode::Disable) {
            findings.push(finding(
                Code::DisableIsPermissive,
                "spec.mtls.mode",
                "DISABLE means PERMISSIVE in ambient mode: the mesh still encrypts between enrolled workloads",
            ));
        }
        findings
    }
}
