//! The policy objects as written. Unknown fields are errors here: a misspelt constraint would widen a policy.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::MtlsMode;
use crate::control::objects::{Metadata, or_default};

#[derive(Deserialize)]
pub(crate) struct RawAuthorizationPolicy {
    pub(crate) metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) spec: AuthorizationSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AuthorizationSpec {
    #[serde(default)]
    pub(super) selector: Option<Selector>,
    #[serde(default)]
    pub(super) target_ref: Option<TargetRef>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) target_refs: Vec<TargetRef>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) rules: Vec<RawRule>,
    #[serde(default)]
    pub(super) action: RawAction,
    #[serde(default)]
    pub(super) provider: Option<Provider>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selector {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TargetRef {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) namespace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Provider {
    pub(super) name: String,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum RawAction {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    #[serde(default)]
    pub(super) from: Option<Vec<From>>,
    #[serde(default)]
    pub(super) to: Option<Vec<To>>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) when: Vec<RawCondition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) source: RawSource,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct To {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) operation: RawOperation,
}

macro_rules! lists {
    ($name:ident { $($field:ident),* $(,)? }) => {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(super) struct $name {
            $(#[serde(default, deserialize_with = "or_default")] pub(super) $field: Vec<String>,)*
        }

        impl $name {
            /// Every list with its name, in the order of the documentation.
            pub(super) fn lists(&self) -> Vec<(&'static str, &[String])> {
                vec![$((stringify!($field), &self.$field)),*]
            }
        }
    };
}

lists!(RawSource {
    principals,
    not_principals,
    request_principals,
    not_request_principals,
    namespaces,
    not_namespaces,
    service_accounts,
    not_service_accounts,
    ip_blocks,
    not_ip_blocks,
    remote_ip_blocks,
    not_remote_ip_blocks,
    trust_domains,
    not_trust_domains,
});

lists!(RawOperation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths });

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawCondition {
    pub(super) key: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) values: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) not_values: Vec<String>,
}

#[derive(Deserialize)]
pub(crate) struct RawPeerAuthentication {
    pub(crate) metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) spec: PeerAuthenticationSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PeerAuthenticationSpec {
    #[serde(default)]
    pub(super) selector: Option<Selector>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) mtls: Mtls,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) port_level_mtls: BTreeMap<String, Mtls>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Mtls {
    #[serde(default)]
    pub(super) mode: MtlsMode,
}
