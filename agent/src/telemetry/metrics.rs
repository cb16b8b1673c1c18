//! What `/metrics` serves beside the traffic: what the kernel counted, what the relay carried, how the agent fares.

use std::collections::BTreeMap;
use std::fmt::Write;

use culvert_common::Counter;

use super::exposition::{Exposition, Format};
use super::labels::Escaped;
use super::process;
use super::traffic::Traffic;
use crate::bpf::Usage;
use crate::identity::VERSION;
use crate::policy::Tally;

/// Values at one moment.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Kernel counters.
    pub kernel: Vec<(Counter, u64)>,
    /// Bytes that the relay carried, from and to apps together.
    pub relayed_bytes: u64,
    /// Tunnelled connections now open.
    pub open_tunnels: u64,
    /// HBONE connections of peers, now open.
    pub peer_connections: u64,
    /// TLS or HTTP/2 handshakes of peers that failed.
    pub handshakes_failed: u64,
    /// [`crate::proxy::polls`].
    pub busy_polls: u64,
    /// HBONE connections turned away: their address or the pod had its share.
    pub turned_away: u64,
    /// HBONE connections ended because the peer broke HTTP/2's rules or a limit.
    pub abused: u64,
    /// Enrolled pods of this node.
    pub enrolled_pods: u64,
    /// Pods that should be enrolled and are not yet.
    pub pending_pods: u64,
    /// Connections of enrolled pods from before they joined.
    pub older_connections: u64,
    /// HBONE connections to other workloads, now open.
    pub pool_connections: u64,
    /// Those ever opened.
    pub pool_opened: u64,
    /// Events of the BPF programs that the agent has read.
    pub flow_events: u64,
    /// Whether the world has been put in force once.
    pub synced: bool,
    /// Whether the last change could not be put in force.
    pub stuck: bool,
    /// Pieces of input that are not in force.
    pub input_problems: u64,
    /// Identities, and when their certificates end, in seconds since 1970; `None`: there is none.
    pub certificates: Vec<(String, Option<i64>)>,
    /// How full the BPF maps are.
    pub maps: Vec<Usage>,
    /// What AUDIT and dry-run policies would have to say, by policy.
    pub policies: BTreeMap<String, Tally>,
}

impl Metrics {
    /// The text that `/metrics` serves.
    pub fn render(&self, traffic: &Traffic, format: Format) -> String {
        let mut out = Exposition::new(format);
        out.family("istio_build", "gauge", "The version of this agent.");
        let _ = writeln!(out, "istio_build{{component=\"culvert\",tag=\"{}\"}} 1", Escaped(VERSION));
        traffic.render(&mut out);
        out.family("culvert_kernel_connections_total", "counter", "Decisions of the BPF programs, by kind.");
        for (counter, value) in &self.kernel {
            let _ =
                writeln!(out, "culvert_kernel_connections_total{{kind=\"{}\"}} {value}", counter.as_str());
        }
        let single = [
            (
                "culvert_relay_bytes_total",
                "counter",
                "Bytes carried through tunnels by the agent.",
                self.relayed_bytes,
            ),
            ("culvert_tunnels_open", "gauge", "Tunnelled connections now open.", self.open_tunnels),
            (
                "culvert_hbone_peer_connections",
                "gauge",
                "HBONE connections of peers now open.",
                self.peer_connections,
            ),
            (
                "culvert_hbone_handshakes_failed_total",
                "counter",
                "TLS or HTTP/2 handshakes of peers that failed.",
                self.handshakes_failed,
            ),
            (
                "culvert_hbone_connections_turned_away_total",
                "counter",
                "HBONE connections turned away because their address or the pod had its share.",
                self.turned_away,
            ),
            (
                "culvert_hbone_connections_abused_total",
                "counter",
                "HBONE connections ended because the peer broke the rules of HTTP/2 or a limit.",
                self.abused,
            ),
            (
                "culvert_hbone_pool_connections",
                "gauge",
                "HBONE connections to other workloads now open.",
                self.pool_connections,
            ),
            (
                "culvert_hbone_pool_opened_total",
                "counter",
                "HBONE connections to other workloads that were opened.",
                self.pool_opened,
            ),
            (
                "culvert_busy_polls_total",
                "counter",
                "How often threads that carry tunnels asked for more and did not sleep (--busy-poll); about a microsecond each.",
                self.busy_polls,
            ),
            (
                "culvert_flow_events_total",
                "counter",
                "Events of the BPF programs that were read; kind=\"events_lost\" counts the others.",
                self.flow_events,
            ),
            (
                "culvert_control_synced",
                "gauge",
                "1: the state of the control source has been put in force.",
                self.synced.into(),
            ),
            (
                "culvert_control_stuck",
                "gauge",
                "1: the last change could not be put in force; the state before stays.",
                self.stuck.into(),
            ),
            (
                "culvert_control_problems",
                "gauge",
                "Pieces of input that are wrong and not in force.",
                self.input_problems,
            ),
            ("culvert_pods_enrolled", "gauge", "Enrolled pods of this node.", self.enrolled_pods),
            ("culvert_pods_pending", "gauge", "Pods whose enrolment has not finished.", self.pending_pods),
            (
                "culvert_older_connections",
                "gauge",
                "Open connections of enrolled pods from before they joined, which no policy has judged.",
                self.older_connections,
            ),
        ];
        for (name, kind, help, value) in single {
            out.family(name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
        self.render_maps(&mut out);
        self.render_policies(&mut out);
        self.render_certificates(&mut out);
        process::render(&mut out);
        out.finish()
    }

    fn render_certificates(&self, out: &mut Exposition) {
        let name = "culvert_certificate_expiry_timestamp_seconds";
        out.family(
            name,
            "gauge",
            "When an identity's certificate ends, in seconds since 1970; 0: it has none.",
        );
        for (identity, end) in &self.certificates {
            let _ = writeln!(out, "{name}{{identity=\"{}\"}} {}", Escaped(identity), end.unwrap_or(0));
        }
    }

    fn render_maps(&self, out: &mut Exposition) {
        let mut series = |name: &str, help: &str, value: fn(&Usage) -> usize| {
            out.family(name, "gauge", help);
            for usage in &self.maps {
                let _ = writeln!(out, "{name}{{map=\"{}\"}} {}", usage.map, value(usage));
            }
        };
        series("culvert_map_entries", "Entries of a BPF map.", |usage| usage.entries);
        series("culvert_map_max_entries", "Entries that a BPF map has room for (--map-entries).", |usage| {
            usage.capacity
        });
    }

    fn render_policies(&self, out: &mut Exposition) {
        let mut series = |name: &str, help: &str, value: fn(&Tally) -> u64| {
            out.family(name, "counter", help);
            for (policy, tally) in self.policies.iter().filter(|(_, tally)| value(tally) > 0) {
                let _ = writeln!(out, "{name}{{policy=\"{policy}\"}} {}", value(tally));
            }
        };
        series("culvert_policy_audit_matches_total", "Connections that an AUDIT policy matched.", |t| {
            t.audited
        });
        series("culvert_policy_dry_run_matches_total", "Connections that a dry-run policy matched.", |t| {
            t.dry_run_matched
        });
        series(
            "culvert_policy_dry_run_would_refuse_total",
            "Allowed connections that would be refused were the dry-run policies enforced, by the policy that decides.",
            |t| t.would_refuse,
        );
        series(
            "culvert_policy_dry_run_would_allow_total",
            "Refused connections that would be allowed were the dry-run policies enforced, by the policy that decides.",
            |t| t.would_allow,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_counter_is_a_series() {
        let kernel = Counter::ALL.iter().map(|c| (*c, 3)).collect();
        let text = Metrics { kernel, relayed_bytes: 7, ..Metrics::default() }
            .render(&Traffic::new(1), Format::Prometheus);
        for counter in Counter::ALL {
            assert!(text.contains(&format!("{{kind=\"{}\"}} 3\n", counter.as_str())));
        }
        assert!(text.contains("\nculvert_relay_bytes_total 7\n"));
    }

    #[test]
    fn a_map_has_its_entries_and_its_room() {
        let maps = vec![Usage { map: "pods", entries: 3, capacity: 1024, high: false }];
        let text = Metrics { maps, ..Metrics::default() }.render(&Traffic::new(1), Format::Prometheus);
        assert!(text.contains("\nculvert_map_entries{map=\"pods\"} 3\n"));
        assert!(text.contains("\nculvert_map_max_entries{map=\"pods\"} 1024\n"));
    }

    #[test]
    fn a_policy_has_the_series_in_which_it_counts() {
        let tally = Tally { audited: 2, ..Tally::default() };
        let text = Metrics { policies: [("a/p".to_owned(), tally)].into(), ..Metrics::default() }
            .render(&Traffic::new(1), Format::Prometheus);
        assert!(text.contains("culvert_policy_audit_matches_total{policy=\"a/p\"} 2\n"));
        assert!(!text.contains("dry_run_matches_total{"));
    }
}
