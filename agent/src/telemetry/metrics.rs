//! The first metrics: what the kernel counted and what the relay carried. Prometheus text format.

use std::fmt::Write;

use culvert_common::Counter;

/// Values at one moment.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Kernel counters.
    pub kernel: Vec<(Counter, u64)>,
    /// Bytes that the relay carried, from and to apps together.
    pub relayed_bytes: u64,
    /// Tunnelled connections now open.
    pub open_tunnels: u64,
    /// Enrolled pods of this node.
    pub enrolled_pods: u64,
    /// Pods that should be enrolled and are not yet.
    pub pending_pods: u64,
}

impl Metrics {
    /// The text that `/metrics` serves.
    pub fn render(&self) -> String {
        let mut text = String::new();
        header(
            &mut text,
            "culvert_kernel_connections_total",
            "counter",
            "Decisions of the BPF programs, by kind.",
        );
        for (counter, value) in &self.kernel {
            let _ =
                writeln!(text, "culvert_kernel_connections_total{{kind=\"{}\"}} {value}", counter.as_str());
        }
        let single = [
            (
                "culvert_relay_bytes_total",
                "counter",
                "Bytes carried through tunnels by the agent.",
                self.relayed_bytes,
            ),
            ("culvert_tunnels_open", "gauge", "Tunnelled connections now open.", self.open_tunnels),
            ("culvert_pods_enrolled", "gauge", "Enrolled pods of this node.", self.enrolled_pods),
            ("culvert_pods_pending", "gauge", "Pods whose enrolment has not finished.", self.pending_pods),
        ];
        for (name, kind, help, value) in single {
            header(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

fn header(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_counter_is_a_series() {
        let kernel = Counter::ALL.iter().map(|c| (*c, 3)).collect();
        let text = Metrics { kernel, relayed_bytes: 7, ..Metrics::default() }.render();
        for counter in Counter::ALL {
            assert!(text.contains(&format!("{{kind=\"{}\"}} 3\n", counter.as_str())));
        }
        assert!(text.contains("\nculvert_relay_bytes_total 7\n"));
    }
}
