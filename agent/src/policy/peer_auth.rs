//! PeerAuthentication: for which ports a workload insists on mTLS.

use std::collections::BTreeSet;

use crate::control::objects::{MtlsMode, PeerAuthenticationSpec, Resource};

/// The effective setting of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Strict {
    /// For ports without a setting of their own.
    pub(crate) everywhere: bool,
    /// Ports that differ from `everywhere`.
    pub(crate) except: BTreeSet<u16>,
    /// `namespace/name` of the policy that says so.
    pub(crate) policy: String,
    /// `namespace/name` of the policy that sets the exceptions.
    pub(crate) except_policy: String,
}

impl Strict {
    /// The policy that demands mTLS on `port`, when one does. `None` stands for any port without a setting of its own.
    pub(crate) fn demanded_by(&self, port: Option<u16>) -> Option<&str> {
        let excepted = port.is_some_and(|p| self.except.contains(&p));
        match (self.everywhere, excepted) {
            (true, false) => Some(&self.policy),
            (false, true) => Some(&self.except_policy),
            _ => None,
        }
    }
}

type PeerAuthentication = Resource<PeerAuthenticationSpec>;

/// The setting that follows from the policies of mesh, namespace and workload: the oldest of each scope, UNSET inheriting
/// from the scope above, PERMISSIVE when nobody says anything. DISABLE is PERMISSIVE: HBONE is always mTLS.
pub(crate) fn effective(
    mesh: Option<&PeerAuthentication>,
    namespace: Option<&PeerAuthentication>,
    workload: Option<&PeerAuthentication>,
) -> Strict {
    let mut strict = Strict::default();
    for policy in [mesh, namespace, workload].into_iter().flatten() {
        if policy.spec.mtls.mode != MtlsMode::Unset {
            strict.everywhere = policy.spec.mtls.mode == MtlsMode::Strict;
            strict.policy = name(policy);
        }
    }
    // Port settings count only with a selector.
    if let Some(policy) = workload {
        strict.except_policy = name(policy);
        for (port, mtls) in &policy.spec.port_level_mtls {
            let demanded = mtls.mode == MtlsMode::Strict;
            if mtls.mode != MtlsMode::Unset && demanded != strict.everywhere {
                strict.except.insert(*port);
            }
        }
    }
    strict
}

fn name(policy: &PeerAuthentication) -> String {
    format!("{}/{}", policy.metadata.namespace, policy.metadata.name)
}
