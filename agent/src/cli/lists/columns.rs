//! What each list shows: istioctl's columns first, by their names.

use anyhow::{Context, Result};
use serde_json::Value;

use super::is;

/// A list of the dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum List {
    Workloads,
    Services,
    Policies,
    Certificates,
    Pods,
    Connections,
}

/// A column.
pub(super) struct Column {
    pub(super) title: &'static str,
    field: &'static str,
    /// Shown when there is nothing in `field`.
    or: &'static str,
    /// Only in wide tables.
    pub(super) wide: bool,
}

const fn column(title: &'static str, field: &'static str) -> Column {
    Column { title, field, or: "", wide: false }
}

const fn either(title: &'static str, field: &'static str, or: &'static str) -> Column {
    Column { title, field, or, wide: false }
}

const fn wide(title: &'static str, field: &'static str) -> Column {
    Column { title, field, or: "", wide: true }
}

impl Column {
    /// What it shows of a row.
    pub(super) fn cell(&self, row: &Value) -> String {
        match (self.field, cell(&row[self.field])) {
            ("age_seconds", _) => row[self.field].as_u64().map_or_else(|| "-".to_owned(), age),
            (_, text) if text == "-" && !self.or.is_empty() => cell(&row[self.or]),
            (_, text) => text,
        }
    }
}

impl List {
    /// Those of `culvert all`.
    pub(super) const ALL: [Self; 6] =
        [Self::Workloads, Self::Services, Self::Policies, Self::Certificates, Self::Pods, Self::Connections];

    /// Where it is in the dump.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Workloads => "workloads",
            Self::Services => "services",
            Self::Policies => "policies",
            Self::Certificates => "certificates",
            Self::Pods => "pods",
            Self::Connections => "connections",
        }
    }

    /// As istioctl's `all --with-headers` has it.
    pub(super) fn headline(self) -> &'static str {
        match self {
            Self::Workloads => "WORKLOAD INFO",
            Self::Services => "SERVICE INFO",
            Self::Policies => "POLICY INFO",
            Self::Certificates => "SECRET INFO",
            Self::Pods => "POD INFO",
            Self::Connections => "CONNECTIONS INFO",
        }
    }

    /// Its rows, those of `namespace` when one is given.
    ///
    /// # Errors
    ///
    /// The dump has no such list.
    pub(super) fn rows(self, dump: &Value, namespace: Option<&str>) -> Result<Vec<Value>> {
        let rows = dump.get(self.key()).and_then(Value::as_array).with_context(|| {
            format!("the dump has no {}: another version of culvert wrote it", self.key())
        })?;
        let wanted = |row: &&Value| namespace.is_none_or(|namespace| is(&self.namespace(row), namespace));
        Ok(rows.iter().filter(wanted).cloned().collect())
    }

    fn namespace(self, row: &Value) -> Value {
        let text = |field: &str| row[field].as_str().unwrap_or("").to_owned();
        match self {
            // spiffe://DOMAIN/ns/NAMESPACE/sa/NAME
            Self::Certificates => text("identity").split('/').nth(4).unwrap_or("").into(),
            Self::Pods => text("name").split('/').next().unwrap_or("").into(),
            _ => row["namespace"].clone(),
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Workloads => {
                const {
                    &[
                        column("NAMESPACE", "namespace"),
                        column("POD NAME", "name"),
                        column("ADDRESS", "addresses"),
                        column("NODE", "node"),
                        column("WAYPOINT", "waypoint"),
                        column("PROTOCOL", "protocol"),
                        column("IDENTITY", "identity"),
                        wide("KIND", "kind"),
                        wide("SERVICE ACCOUNT", "service_account"),
                        wide("REDIRECTION", "redirection"),
                    ]
                }
            }
            Self::Services => {
                const {
                    &[
                        column("NAMESPACE", "namespace"),
                        column("SERVICE NAME", "service"),
                        column("SERVICE VIP", "vips"),
                        column("WAYPOINT", "waypoint"),
                        column("ENDPOINTS", "endpoints"),
                        column("HOST", "hostname"),
                        column("LOAD BALANCING", "load_balancing"),
                        column("PREFERRED", "preferred"),
                        column("AFFINITY", "affinity"),
                        column("NOTES", "notes"),
                        wide("KIND", "kind"),
                        wide("PREFERRED ENDPOINTS", "preferred_endpoints"),
                    ]
                }
            }
            Self::Policies => {
                const {
                    &[
                        column("NAMESPACE", "namespace"),
                        column("POLICY NAME", "name"),
                        column("KIND", "kind"),
                        column("ACTION", "action"),
                        column("SCOPE", "scope"),
                        column("NOTES", "notes"),
                    ]
                }
            }
            Self::Certificates => {
                const {
                    &[
                        column("IDENTITY", "identity"),
                        column("STATUS", "status"),
                        column("VALID CERT", "valid"),
                        column("SERIAL NUMBER", "serial"),
                        column("NOT BEFORE", "not_before"),
                        column("NOT AFTER", "not_after"),
                        column("PROBLEM", "error"),
                        wide("PODS", "users"),
                    ]
                }
            }
            Self::Pods => {
                const {
                    &[
                        column("POD", "name"),
                        column("STATE", "state"),
                        column("REDIRECTION", "redirection"),
                        column("NETNS COOKIE", "netns_cookie"),
                        column("OLDER CONNECTIONS", "older_connections"),
                        column("WAITING FOR", "reason"),
                    ]
                }
            }
            Self::Connections => {
                const {
                    &[
                        column("WORKLOAD", "workload"),
                        column("DIRECTION", "direction"),
                        column("LOCAL", "local"),
                        either("REMOTE", "remote_name", "remote"),
                        either("REMOTE TARGET", "remote_target_name", "remote_target"),
                        column("PROTOCOL", "protocol"),
                        column("PATH", "path"),
                        column("CLIENT IDENTITY", "source_identity"),
                        column("SENT", "bytes_sent"),
                        column("RECEIVED", "bytes_received"),
                        column("AGE", "age_seconds"),
                        wide("SERVER IDENTITY", "destination_identity"),
                        wide("OPENED", "opened"),
                    ]
                }
            }
        }
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) if items.iter().all(Value::is_object) => items.len().to_string(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// As kubectl shows ages: the two largest units.
fn age(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (name, size) in units {
        if left >= size || (name == "s" && parts.is_empty()) {
            parts.push(format!("{}{name}", left / size));
        }
        left %= size;
    }
    parts.truncate(2);
    parts.concat()
}

#[cfg(test)]
mod tests {
    #[test]
    fn ages_have_two_units() {
        let ages = [0, 59, 60, 61, 3600, 3661, 90_061].map(super::age);
        assert_eq!(ages, ["0s", "59s", "1m", "1m1s", "1h", "1h1m", "1d1h"]);
    }
}
