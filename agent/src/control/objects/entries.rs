//! Istio's own kinds for what is outside the cluster: ServiceEntry and WorkloadEntry (`networking.istio.io`).

use std::collections::BTreeMap;

use super::{Metadata, or_default};

object! {
    /// A WorkloadEntry: a machine that is no pod.
    WorkloadEntry {
        /// Who it is. Its labels come before those of `spec`.
        metadata: Metadata,
        /// Where it is.
        #[serde(default, deserialize_with = "or_default")]
        spec: EntryEndpoint,
    }
}

object! {
    /// `spec` of a WorkloadEntry, and an entry of `spec.endpoints` of a ServiceEntry.
    EntryEndpoint {
        /// An IP address or a DNS name; may be empty where `network` is not.
        #[serde(default)]
        address: String,
        /// Ports by the names that services call them by.
        #[serde(default, deserialize_with = "or_default")]
        ports: BTreeMap<String, u16>,
        /// Labels.
        #[serde(default, deserialize_with = "or_default")]
        labels: BTreeMap<String, String>,
        /// The network that its address belongs to; empty: the mesh's own.
        #[serde(default)]
        network: String,
        /// `region/zone/subzone`.
        #[serde(default)]
        locality: String,
        /// Its share of the connections, beside the others; 0 counts as 1.
        #[serde(default)]
        weight: u32,
        /// Empty: `default`.
        #[serde(default)]
        service_account: String,
    }
}

object! {
    /// A ServiceEntry: names and addresses that the mesh is to know as a service.
    ServiceEntry {
        /// Label `istio.io/use-waypoint` says where its connections go first.
        metadata: Metadata,
        /// What it is.
        #[serde(default, deserialize_with = "or_default")]
        spec: ServiceEntrySpec,
        /// The addresses that istiod gave it.
        #[serde(default, deserialize_with = "or_default")]
        status: ServiceEntryStatus,
    }
}

object! {
    /// `spec` of a ServiceEntry.
    ServiceEntrySpec {
        /// Each one is a service.
        #[serde(default, deserialize_with = "or_default")]
        hosts: Vec<String>,
        /// Virtual addresses: IP addresses, or blocks of them in CIDR notation.
        #[serde(default, deserialize_with = "or_default")]
        addresses: Vec<String>,
        /// Its ports.
        #[serde(default, deserialize_with = "or_default")]
        ports: Vec<EntryPort>,
        /// In ambient mode, whether it is inside decides nothing: what it speaks does.
        #[serde(default)]
        location: EntryLocation,
        /// How its endpoints are found.
        #[serde(default)]
        resolution: Resolution,
        /// Its endpoints.
        #[serde(default, deserialize_with = "or_default")]
        endpoints: Vec<EntryEndpoint>,
        /// Pods and WorkloadEntries of its namespace that serve it, in place of `endpoints`.
        #[serde(default)]
        workload_selector: Option<EntrySelector>,
        /// Read, and without effect in ambient mode: every pod may use the addresses.
        #[serde(default, deserialize_with = "or_default")]
        export_to: Vec<String>,
        /// Other identities that its endpoints may prove.
        #[serde(default, deserialize_with = "or_default")]
        subject_alt_names: Vec<String>,
    }
}

object! {
    /// A port of a ServiceEntry.
    EntryPort {
        /// Its number.
        number: u16,
        /// `HTTP`, `TLS`, `TCP`, …; empty: not known. `UDP` is not in the mesh.
        #[serde(default)]
        protocol: String,
        /// Matches the names of the endpoints' ports.
        #[serde(default)]
        name: String,
        /// The endpoint's port; `number` when unset or 0.
        #[serde(default)]
        target_port: u16,
    }
}

object! {
    /// `spec.workloadSelector` of a ServiceEntry.
    EntrySelector {
        /// All of them must be there; none at all selects nothing.
        #[serde(default, deserialize_with = "or_default")]
        labels: BTreeMap<String, String>,
    }
}

object! {
    /// `status` of a ServiceEntry.
    ServiceEntryStatus {
        /// One address a family and host.
        #[serde(default, deserialize_with = "or_default")]
        addresses: Vec<HostAddress>,
    }
}

object! {
    /// An entry of `status.addresses`.
    HostAddress {
        /// The address.
        #[serde(default)]
        value: String,
        /// The host that it stands for.
        #[serde(default)]
        host: String,
    }
}

/// Where a ServiceEntry says that its endpoints are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the values of Istio")]
pub enum EntryLocation {
    #[default]
    MeshExternal,
    MeshInternal,
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// Not at all: connections go where they are addressed to.
    #[default]
    None,
    /// They are listed or selected, by address.
    Static,
    /// Their names, or the host itself, are asked of DNS.
    Dns,
    /// As [`Resolution::Dns`]; at most one endpoint.
    DnsRoundRobin,
    /// As [`Resolution::Dns`] for hosts that are names. What stands behind a wildcard only a waypoint can tell.
    DynamicDns,
}

impl Resolution {
    /// Whether DNS is asked.
    pub fn is_dns(self) -> bool {
        matches!(self, Self::Dns | Self::DnsRoundRobin | Self::DynamicDns)
    }
}

impl ServiceEntry {
    /// Where its endpoints are: those listed, or each of its hosts where DNS is to be asked for those.
    ///
    /// None when pods and WorkloadEntries serve it.
    pub fn inline_addresses(&self) -> impl Iterator<Item = &str> {
        let spec = &self.spec;
        let hosts = if self.serves_hosts() { &spec.hosts[..] } else { &[] };
        let listed = spec.endpoints.iter().map(|endpoint| endpoint.address.as_str());
        listed.chain(hosts.iter().map(String::as_str))
    }

    /// Whether each host is its own endpoint.
    pub fn serves_hosts(&self) -> bool {
        let spec = &self.spec;
        spec.endpoints.is_empty() && spec.workload_selector.is_none() && spec.resolution.is_dns()
    }
}
