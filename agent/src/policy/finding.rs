//! What a policy asks for that L4 does not do.

use std::fmt;

use serde::Serialize;

use super::AuthorizationPolicy;

/// A part of a policy that is not enforced as written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Finding {
    /// Which case it is.
    pub code: Code,
    /// `Kind namespace/name`.
    pub object: String,
    /// The field, such as `spec.rules[0]`.
    pub field: String,
    /// What it means, and what to do.
    pub message: String,
}

impl Finding {
    pub(super) fn of(
        policy: &AuthorizationPolicy,
        code: Code,
        field: impl Into<String>,
        message: String,
    ) -> Self {
        Self {
            code,
            object: format!("AuthorizationPolicy {}", policy.full_name()),
            field: field.into(),
            message,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.message)
    }
}

/// The cases of [`Finding`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// CUSTOM with `--l7-deny=istio`: no effect at L4.
    ActionNotEnforced,
    /// The rule can never match.
    AllowRuleNeverMatches,
    /// CUSTOM at L4: what it matches is refused.
    CustomRefuses,
    /// A DENY rule that cannot match, with `--l7-deny=istio`.
    DenyRuleNoEffect,
    /// A DENY, CUSTOM or AUDIT rule is evaluated without some of its parts.
    DenyRuleWidened,
    /// PeerAuthentication DISABLE is the same as PERMISSIVE.
    DisableIsPermissive,
    /// `istio.io/dry-run`: evaluated and counted, not enforced.
    DryRun,
    /// A PeerAuthentication that has no effect.
    PeerAuthenticationIgnored,
    /// A principal written with `spiffe://` never matches.
    PrincipalWithScheme,
    /// The kernel has no room for what it compiles to: its workloads are closed.
    TooManyRows,
    /// Left to waypoints.
    WaypointPolicy,
}
