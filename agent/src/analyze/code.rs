//! The stable codes of messages, in one table.

use std::fmt;

use serde::Serialize;

use crate::policy;

/// How bad a message is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, clap::ValueEnum)]
pub enum Level {
    /// Works as written; worth knowing.
    Info,
    /// Probably not what was meant.
    Warning,
    /// Cannot work.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

macro_rules! codes {
    ($($variant:ident = $text:literal, $level:ident, $meaning:literal;)*) => {
        /// What a message is about. Where istioctl has a code for the case, it is the same one.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code itself. It never changes its meaning.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// How bad it is.
            pub fn level(self) -> Level {
                match self { $(Self::$variant => Level::$level,)* }
            }

            /// What it means, in a line.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

codes! {
    ReferencedResourceNotFound = "IST0101", Error, "Something is named that is not in the input.";
    SchemaValidationError = "IST0106", Error, "The object is not valid.";
    ConflictingMeshGatewayVirtualServiceHosts = "IST0109", Error, "Several VirtualServices define the same host.";
    NoMatchingWorkloadsFound = "IST0127", Warning, "A selector selects no workload.";
    ServiceEntryAddressesRequired = "IST0134", Warning, "A ServiceEntry has no address that connections could be known by.";
    IneffectivePolicy = "IST0167", Warning, "The policy has no effect.";
    NegativeConditionStatus = "IST0171", Warning, "A controller has written into the status of an object that it is not in force.";
    DestinationRuleSubsetNotSelectPods = "IST0173", Error, "A subset of a DestinationRule selects no pod.";
    UnknownDestinationRuleHost = "IST0174", Warning, "The host of a DestinationRule is none of the input.";
    AllowRuleNeverMatches = "CUL0101", Warning, "An ALLOW rule asks for what L4 cannot see, so it never matches.";
    DenyRuleWidened = "CUL0102", Warning, "A DENY rule asks for what L4 cannot see, so it denies more than it says.";
    PrincipalNeverMatches = "CUL0103", Warning, "A principal does not have the form of one.";
    ServiceAccountNotFound = "CUL0104", Warning, "No pod runs as the service account that a policy names.";
    NamespaceNotFound = "CUL0105", Warning, "A namespace is named that is not in the input.";
    ForeignTrustDomain = "CUL0106", Warning, "A principal is of a trust domain that is not the mesh's.";
    CallerWithoutIdentity = "CUL0107", Warning, "An ALLOW policy names callers that are not enrolled: they are refused.";
    AllowAllHidesOthers = "CUL0108", Warning, "A rule allows everything, so the other ALLOW policies decide nothing.";
    DenyAllBesideAllow = "CUL0109", Info, "An ALLOW policy without rules stands beside others, and adds nothing to them.";
    ServicePortInPolicy = "CUL0110", Warning, "A policy names a Service's port; the workload's port is what counts.";
    WaypointPolicy = "CUL0111", Info, "The policy is left to waypoints.";
    DryRun = "CUL0112", Info, "The policy is a dry run: evaluated and counted, not enforced.";
    CustomRefuses = "CUL0113", Warning, "A CUSTOM policy refuses what it matches: L4 can ask nobody.";
    DenyRuleNoEffect = "CUL0114", Warning, "A DENY rule asks for what L4 cannot see, and with --l7-deny=istio has no effect.";
    TooManyRows = "CUL0115", Error, "A policy needs more rows than the kernel has room for: its workloads are closed.";
    DisableIsPermissive = "CUL0201", Info, "DISABLE means PERMISSIVE in ambient mode.";
    PeerAuthenticationShadowed = "CUL0202", Warning, "Another PeerAuthentication of the same scope counts instead.";
    PortNotDeclared = "CUL0203", Info, "portLevelMtls names a port that no selected workload declares.";
    StrictKeepsOut = "CUL0204", Info, "STRICT refuses workloads of the input that are not in the mesh.";
    WaypointAlias = "CUL0301", Warning, "The label istio.io/waypoint=enabled is an alias that Istio does not know.";
    IneffectiveLabel = "CUL0302", Warning, "The label does nothing on an object of this kind.";
    UnknownDataplaneMode = "CUL0303", Warning, "istio.io/dataplane-mode has a value that nobody knows.";
    HostNetworkNotEnrolled = "CUL0304", Info, "A pod in the node's network cannot be enrolled.";
    NotAWaypoint = "CUL0305", Warning, "A Gateway is used as a waypoint, and is none.";
    UnknownValue = "CUL0306", Warning, "A Service or Namespace says in words that nobody knows which endpoints to choose.";
    CanaryInvalidWeight = "CUL0307", Warning, "The weight of a canary waypoint is no whole number from 0 to 100: there is no canary.";
    CanaryNoEffect = "CUL0308", Warning, "A canary waypoint gets no connections.";
    WaypointListener = "CUL0309", Error, "A waypoint's Gateway has no listener for HBONE on port 15008.";
    UnknownTrafficType = "CUL0310", Warning, "istio.io/waypoint-for has a value that nobody knows: the waypoint takes nothing.";
    TrafficTypeMismatch = "CUL0311", Warning, "A waypoint does not take the traffic of the object that names it.";
    AttachmentDenied = "CUL0312", Warning, "A waypoint's Gateway does not let objects of this namespace use it.";
    NeedsWaypoint = "CUL0313", Warning, "It has no effect: it needs a waypoint, and none is in the path.";
    DuplicateObject = "CUL0401", Warning, "The object is in the input twice.";
    ExportToIgnored = "CUL0501", Info, "exportTo does nothing in ambient mode: every pod may use a ServiceEntry.";
    AddressBlockNotLed = "CUL0502", Warning, "A ServiceEntry has a block of addresses: connections to it pass untouched.";
    HostTaken = "CUL0503", Warning, "Another object of the namespace has the host of a ServiceEntry, and counts instead.";
    EndpointOutOfReach = "CUL0504", Warning, "An endpoint has an address that no other machine can reach.";
}

impl Code {
    /// Whether the case is that something is missing: no news when the input could not be read in full.
    pub(super) fn is_absence(self) -> bool {
        matches!(
            self,
            Self::ReferencedResourceNotFound
                | Self::NoMatchingWorkloadsFound
                | Self::ServiceAccountNotFound
                | Self::NamespaceNotFound
                | Self::DestinationRuleSubsetNotSelectPods
                | Self::UnknownDestinationRuleHost
                | Self::NeedsWaypoint
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl From<policy::Code> for Code {
    fn from(code: policy::Code) -> Self {
        match code {
            policy::Code::ActionNotEnforced | policy::Code::PeerAuthenticationIgnored => {
                Self::IneffectivePolicy
            }
            policy::Code::AllowRuleNeverMatches => Self::AllowRuleNeverMatches,
            policy::Code::CustomRefuses => Self::CustomRefuses,
            policy::Code::DenyRuleNoEffect => Self::DenyRuleNoEffect,
            policy::Code::DenyRuleWidened => Self::DenyRuleWidened,
            policy::Code::DisableIsPermissive => Self::DisableIsPermissive,
            policy::Code::DryRun => Self::DryRun,
            policy::Code::PrincipalWithScheme => Self::PrincipalNeverMatches,
            policy::Code::TooManyRows => Self::TooManyRows,
            policy::Code::WaypointPolicy => Self::WaypointPolicy,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Code;

    #[test]
    fn no_code_stands_for_two_cases() {
        let texts: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
    }

    #[test]
    fn the_documentation_lists_every_code() {
        let page = include_str!("../../../docs/analyze.md");
        for code in Code::ALL {
            let row = format!("| {code} | {} | {} |", code.level(), code.meaning());
            assert!(page.contains(&row), "docs/analyze.md lacks this line:\n{row}");
        }
    }
}
