//! Options of `culvert-lab bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::plan::{Family, Kind, Plan, workloads};

const QUICK_ROUNDS: u32 = 3;
const ROUNDS: u32 = 5;
const QUICK_DURATION: Duration = Duration::from_millis(300);
const DURATION: Duration = Duration::from_secs(1);

/// `culvert-lab bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// IPv4, 3 rounds of 300 ms, and few workloads: 64 B x1 and x16, 64 KiB writes x1, connect x1
    #[arg(long)]
    quick: bool,
    /// Address families
    #[arg(long, value_enum, value_name = "FAMILY")]
    family: Option<Families>,
    /// How often every leg is measured [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: Option<u32>,
    /// Of one measurement, after its warm-up: 1s, 250ms [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Only these kinds of workload
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KINDS")]
    only: Vec<Kind>,
    /// Connections of the idle workload
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    idle: u32,
    /// More enrolled pods on node n1
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=200))]
    pub(super) pods: u32,
    /// Policies in the mesh; one in ten selects every pod of it
    #[arg(long, value_name = "M", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub(super) policies: u32,
    /// Extra argument of every agent, for example --agent-arg=--same-node=tunnel
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(super) agent_arg: Vec<String>,
    /// Measure another proxy, too, under this name (docs/performance.md says how)
    #[arg(long, value_name = "NAME", requires = "peer_start")]
    pub(super) peer: Option<String>,
    /// What sets it up between the pods of namespace `peer`; for sh
    #[arg(long, value_name = "CMD", requires = "peer")]
    pub(super) peer_start: Option<String>,
    /// What takes it down; for sh
    #[arg(long, value_name = "CMD", requires = "peer")]
    pub(super) peer_stop: Option<String>,
    /// Write every sample, and what the machine is, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Draw the ratios
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// Show what changed since an earlier --json
    #[arg(long, value_name = "FILE")]
    pub(super) compare: Option<PathBuf>,
    /// The culvert binary [default: beside this program]
    #[arg(long, env = "CULVERT_BIN")]
    pub(crate) culvert: Option<PathBuf>,
}

/// `--family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Families {
    #[value(name = "4")]
    V4,
    #[value(name = "6")]
    V6,
    Both,
}

impl BenchArgs {
    /// What is to be measured.
    pub(super) fn plan(&self) -> Plan {
        let families = self.family.unwrap_or(if self.quick { Families::V4 } else { Families::Both });
        Plan {
            rounds: self.rounds.unwrap_or(if self.quick { QUICK_ROUNDS } else { ROUNDS }),
            families: match families {
                Families::V4 => vec![Family::V4],
                Families::V6 => vec![Family::V6],
                Families::Both => vec![Family::V4, Family::V6],
            },
            workloads: workloads(self.quick, &self.only, self.idle),
            peer: self.peer.is_some(),
        }
    }

    /// Of one measurement.
    pub(super) fn length(&self) -> Duration {
        self.duration.unwrap_or(if self.quick { QUICK_DURATION } else { DURATION })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(10)..=Duration::from_secs(600);
    let found = crate::scenario::duration(text).ok().filter(|length| range.contains(length));
    found.ok_or_else(|| "write 10ms to 600s, as 1s or 250ms".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        for wrong in ["", "x", "1ms", "3000s", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
