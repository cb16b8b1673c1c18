//! The arguments of the verbs that ask an agent.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::telemetry::filter::{VERDICTS, Who};

/// Which agent to ask.
#[derive(Args, Debug)]
pub(super) struct SocketArgs {
    /// The agent's instance, when several run on this machine
    #[arg(long, env = "CULVERT_INSTANCE")]
    pub(super) instance: Option<String>,
}

/// What the lists have in common.
#[derive(Args, Debug)]
pub(super) struct QueryArgs {
    #[command(flatten)]
    pub(super) socket: SocketArgs,
    /// Read what `culvert all -o json` (or yaml) wrote, instead of asking an agent; `-` is standard input
    #[arg(short, long, value_name = "DUMP")]
    pub(super) file: Option<PathBuf>,
    /// Only this namespace
    #[arg(
        short,
        long,
        visible_aliases = ["workload-namespace", "service-namespace", "policy-namespace"]
    )]
    pub(super) namespace: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table)]
    pub(super) output: ListOutput,
}

/// `culvert workloads`.
#[derive(Args, Debug)]
pub(super) struct WorkloadArgs {
    #[command(flatten)]
    pub(super) query: QueryArgs,
    /// Only on this node
    #[arg(long, visible_alias = "workload-node")]
    pub(super) node: Option<String>,
    /// Only with this address, or one in this block: 10.244.1.2, 10.244.1.0/24
    #[arg(long, value_name = "ADDRESS", value_parser = block)]
    pub(super) address: Option<IpNet>,
}

/// `culvert services`.
#[derive(Args, Debug)]
pub(super) struct ServiceArgs {
    #[command(flatten)]
    pub(super) query: QueryArgs,
    /// Only with this virtual address, or one in this block
    #[arg(long, value_name = "ADDRESS", value_parser = block)]
    pub(super) address: Option<IpNet>,
}

/// `culvert connections`.
#[derive(Args, Debug)]
pub(super) struct ConnectionArgs {
    #[command(flatten)]
    pub(super) query: QueryArgs,
    /// Only with this address, or one in this block, at either end or asked for
    #[arg(long, value_name = "ADDRESS", value_parser = block)]
    pub(super) address: Option<IpNet>,
    /// Only those that were accepted, or those that were opened
    #[arg(long, value_enum, ignore_case = true)]
    pub(super) direction: Option<Direction>,
    /// Addresses instead of names
    #[arg(long)]
    pub(super) raw: bool,
}

/// A block of addresses, or one.
fn block(text: &str) -> Result<IpNet, String> {
    match text.parse() {
        Ok(Who::Block(block)) => Ok(block),
        _ => Err("write an address (10.244.1.2) or a block of them (10.244.1.0/24)".to_owned()),
    }
}

/// Seen from the pod of this node.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// The pod accepted it.
    Inbound,
    /// The pod opened it.
    Outbound,
}

/// `culvert all`.
#[derive(Args, Debug)]
pub(super) struct AllArgs {
    #[command(flatten)]
    pub(super) query: QueryArgs,
    /// A headline above each table
    #[arg(long)]
    pub(super) with_headers: bool,
}

/// `culvert flows`.
#[derive(Args, Debug)]
pub(super) struct FlowArgs {
    #[command(flatten)]
    pub(super) socket: SocketArgs,
    /// Go on with new flows as they come, until interrupted
    #[arg(short, long)]
    pub(super) follow: bool,
    #[command(flatten)]
    pub(super) wanted: WantedArgs,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = FlowOutput::Text)]
    pub(super) output: FlowOutput,
}

/// Which flows.
#[derive(Args, Debug, Clone)]
pub(super) struct WantedArgs {
    /// Only from here: namespace/pod, namespace/, an address (10.244.1.2, 10.244.1.0/24) or a SPIFFE id
    #[arg(long, value_name = "WHO")]
    pub(super) from: Option<Who>,
    /// Only to there, as --from; also namespace/service and its address, when that was asked for
    #[arg(long, value_name = "WHO")]
    pub(super) to: Option<Who>,
    /// Only these, separated by commas: allowed, refused (by verdict), opened, closed, ended (by what happened)
    #[arg(long, value_name = "WORDS", ignore_case = true, value_delimiter = ',', value_parser = VERDICTS)]
    pub(super) verdict: Vec<String>,
    /// Only what this policy (namespace/name) decided, or is noted for (AUDIT, dry run)
    #[arg(long, value_name = "POLICY")]
    pub(super) policy: Option<String>,
    /// Only the last N of them; the agent keeps 65536. With `culvert flows --follow`, 0 leaves only new ones
    #[arg(long, value_name = "N")]
    pub(super) last: Option<u64>,
    /// Only from then on: how long ago (30s, 5m, 2h), or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "WHEN")]
    pub(super) since: Option<String>,
}

/// `culvert explain`.
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    pub(super) socket: SocketArgs,
    /// Who connects: namespace/pod, an address, or a SPIFFE id
    pub(super) from: String,
    /// Where to: namespace/pod:port, namespace/service:port, host:port or address:port
    pub(super) to: String,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

/// `culvert log`.
#[derive(Args, Debug)]
pub(super) struct LogArgs {
    #[command(flatten)]
    pub(super) socket: SocketArgs,
    /// What to log from now on: off, error, warn, info, debug or trace, and TARGET=LEVEL for parts. What has no level of its own
    /// keeps the one it had at start. Without FILTER the one in force is shown
    #[arg(value_name = "FILTER")]
    pub(super) filter: Option<String>,
    /// Log as at start (--log of `culvert agent`)
    #[arg(short, long, conflicts_with = "filter")]
    pub(super) reset: bool,
}

/// For lists.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ListOutput {
    /// Columns for people.
    #[value(alias = "short")]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// For flows.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FlowOutput {
    /// A line for people.
    #[value(alias = "table")]
    Text,
    /// A JSON object a line.
    Json,
    /// The same, by its other name.
    Jsonl,
}

/// For what has one table.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Output {
    /// Columns for people.
    Table,
    /// JSON.
    Json,
}
