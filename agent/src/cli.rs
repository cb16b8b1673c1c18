//! The command line: `culvert agent` runs a node; `culvert analyze` reads manifests; the other verbs ask a running agent.

mod analyze;
mod ca;
mod client;
mod show;
mod table;
mod uninstall;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bpf::MapEntries;
use crate::identity::{Compliance, VERSION};
use crate::policy::L7Deny;
use crate::telemetry::access::AccessLog;

/// Node agent of an ambient service mesh: eBPF decides, HBONE encrypts.
#[derive(Parser, Debug)]
#[command(name = "culvert", version = VERSION, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the agent of this node
    Agent(Box<AgentArgs>),
    /// List the workloads the mesh knows, with their protocol (HBONE once enrolled)
    #[command(visible_alias = "workload")]
    Workloads(QueryArgs),
    /// List the services with their virtual addresses, ready endpoints, and which of those this node's pods use
    #[command(visible_alias = "service")]
    Services(QueryArgs),
    /// List the policies, with what is notable about each
    #[command(visible_alias = "policy")]
    Policies(QueryArgs),
    /// List the certificates of this node's identities
    #[command(visible_alias = "certificate")]
    Certificates(QueryArgs),
    /// List the pods of this node that are enrolled or waiting to be, with the reason
    Pods(QueryArgs),
    /// Show recent connections: who, to whom, by which path, and why (not)
    #[command(
        after_help = "Examples:\n  culvert flows --verdict refused\n  culvert flows --from test/curl -o json\n  culvert flows --follow"
    )]
    Flows(FlowArgs),
    /// Say whether a connection is allowed, which policy and rule decide, and what the kernel's table says
    #[command(
        after_help = "Examples:\n  culvert explain test/curl hello/helloworld:5000\n  culvert explain 10.244.2.7 hello/db-0:9000\n  culvert explain spiffe://cluster.local/ns/web/sa/nginx 10.244.1.3:5000"
    )]
    Explain(ExplainArgs),
    /// Say what is wrong or unexpected in manifests, before they reach an agent; needs neither agent nor root
    #[command(
        after_help = "Examples:\n  culvert analyze deploy/\n  culvert analyze -R . -n shop --failure-threshold warning\n  kubectl get ns,pods,svc,sa,authorizationpolicies,peerauthentications,serviceentries,workloadentries -A -o yaml | culvert analyze -\n\nExit status: 1 when a message reaches the threshold, else 0."
    )]
    Analyze(Box<analyze::AnalyzeArgs>),
    /// Print everything the agent knows as one JSON document
    Dump(SocketArgs),
    /// Print the agent's metrics
    Metrics(SocketArgs),
    /// Say whether the agent is ready, and if not, what it waits for
    Ready(SocketArgs),
    /// Sign certificates for the agents of a mesh, by Istio's certificate API
    #[command(
        after_help = "Examples:\n  culvert ca --token /etc/culvert/tokens --server-name ca.example\n  culvert agent --node n1 --manifests m --ca-address ca.example:15012 --ca-root ca.crt --ca-token token"
    )]
    Ca(Box<ca::CaArgs>),
    /// Print the version, and which cryptography is built in
    Version,
    /// Remove every trace of a stopped agent from the node: programs, maps, state
    Uninstall(uninstall::UninstallArgs),
}

/// `culvert agent`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Example:\n  culvert agent --node n1 --manifests /etc/culvert/manifests --ca-dir /etc/culvert/ca"
)]
pub struct AgentArgs {
    /// This node's name, as in a pod's spec.nodeName
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Name of this agent's pins (/sys/fs/bpf/culvert/NAME) and state (/run/culvert/NAME)
    #[arg(long, env = "CULVERT_INSTANCE", default_value = "default")]
    pub instance: String,
    /// Folder of Kubernetes manifests to follow
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Folder with the embedded CA's root (ca.crt, ca.key), shared by the agents of a mesh; made when missing, watched for other roots
    #[arg(long, value_name = "DIR", required_unless_present = "ca_address", conflicts_with = "ca_address")]
    pub ca_dir: Option<PathBuf>,
    /// A CA that serves Istio's certificate API, instead of the embedded one: `culvert ca`, or istiod
    #[arg(long, value_name = "HOST:PORT", requires = "ca_root", requires = "ca_token")]
    pub ca_address: Option<String>,
    /// Roots (PEM) that the server at --ca-address is checked against; read anew for every request
    #[arg(long, value_name = "FILE", requires = "ca_address")]
    pub ca_root: Option<PathBuf>,
    /// Token to show to the server at --ca-address; read anew for every request
    #[arg(long, value_name = "FILE", requires = "ca_address")]
    pub ca_token: Option<PathBuf>,
    /// Names the DNS servers (as resolv.conf(5) does) that are asked for the host names of ServiceEntries and WorkloadEntries; read
    /// again when it changes
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Name of this cluster, for the server at --ca-address and in the uids of ServiceEntries and WorkloadEntries
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// cgroup v2 directory whose processes the hooks see [default: the cgroup v2 mount]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// SPIFFE trust domain of the mesh
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// Other trust domains whose identities count as this mesh's, in policies and certificates (Istio's
    /// trustDomainAliases)
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    pub trust_domain_aliases: Vec<String>,
    /// What DENY and CUSTOM policies mean when L4 cannot see all of their attributes: `fail-safe` refuses more, `istio` leaves
    /// such rules without effect, as Istio does
    #[arg(long, value_enum, default_value_t = L7Deny::FailSafe)]
    pub l7_deny: L7Deny,
    /// Let every waypoint reach the workloads behind it, by a policy made for it (Istio's PILOT_AUTO_ALLOW_WAYPOINT_POLICY). Unless
    /// there are other ALLOW policies, nothing else may then reach them
    #[arg(long)]
    pub auto_allow_waypoint: bool,
    /// DNS domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Istio's root namespace: mesh-wide policies live there
    #[arg(long, default_value = "istio-system")]
    pub root_namespace: String,
    /// How pods of this node reach each other: `direct` in the kernel, or `tunnel` to encrypt every byte
    #[arg(long, value_enum, default_value_t = SameNode::Direct)]
    pub same_node: SameNode,
    /// Whether packets that leave an enrolled pod under an address not its own are dropped: `enforce` (by a tcx link, or by a tc
    /// filter where the kernel has none), `clsact` (by a tc filter in any case) or `off`
    #[arg(long, value_enum, default_value_t = SourceGuard::Enforce)]
    pub source_guard: SourceGuard,
    /// How many entries a BPF map has room for, for example `workloads=500000`; a map that is full closes what it has no room
    /// for (`affinity` forgets the client that was away for longest), and `culvert metrics` tells how full each is
    /// (culvert_map_entries, culvert_map_max_entries)
    #[arg(long, value_name = "MAP=N", value_delimiter = ',')]
    pub map_entries: Vec<MapEntries>,
    /// Lifetime of workload certificates, in seconds; renewed at half of it
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(10..=31_536_000))]
    pub certificate_ttl: u64,
    /// What TLS leaves out: `pqc` all key exchange but X25519MLKEM768, so peers without it are refused; `fips-140-2` what is not in
    /// the FIPS module, so the agent starts only when it was built with that
    #[arg(long, env = "COMPLIANCE_POLICY", value_enum, default_value_t)]
    pub compliance_policy: Compliance,
    /// Revocation lists (PEM): peers whose certificates they name are refused, and their open tunnels ended. The file is watched
    #[arg(long, value_name = "FILE")]
    pub crl: Option<PathBuf>,
    /// How long open tunnels may go on after SIGTERM, in seconds; a second signal ends them at once. A pod's
    /// terminationGracePeriodSeconds must be longer
    #[arg(long, default_value_t = 20, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain: u64,
    /// End the connections that a pod had before it joined the mesh, to or from the mesh, that many seconds after it joined
    /// [default: they are left alone; `culvert pods` counts them]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub end_older_connections: Option<u64>,
    /// Log filter, for example `info` or `culvert=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Which connections get a line in the log when they have ended (target `access`, level info): `all`, `errors` (refused,
    /// failed, cut) or `off`
    #[arg(long, value_enum, default_value_t)]
    pub access_log: AccessLog,
    /// How many sets of labels the metrics istio_tcp_* have at most; what has no room is counted under `overflow`
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = series)]
    pub metrics_series: usize,
}

/// Same-node traffic.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SameNode {
    /// Plain TCP in the kernel, admitted by identity.
    Direct,
    /// HBONE, as between nodes.
    Tunnel,
}

/// Packets under foreign addresses.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceGuard {
    /// Dropped and counted, by a tcx link (Linux 6.6) or else as `clsact`.
    Enforce,
    /// Dropped and counted, by a tc filter at the clsact qdisc.
    Clsact,
    /// Not looked at.
    Off,
}

/// Log lines.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// At least one, and not more than a scrape can carry.
fn series(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|n| (1..=100_000).contains(n));
    number.ok_or_else(|| "write a number from 1 to 100000".to_owned())
}

/// Which agent to ask.
#[derive(Args, Debug)]
struct SocketArgs {
    /// The agent's instance, when several run on this machine
    #[arg(long, env = "CULVERT_INSTANCE")]
    instance: Option<String>,
}

#[derive(Args, Debug)]
struct QueryArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Only this namespace
    #[arg(short, long, visible_alias = "workload-namespace", visible_alias = "service-namespace")]
    namespace: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
struct FlowArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Go on with new flows as they come
    #[arg(short, long)]
    follow: bool,
    /// Only from this workload (namespace/name) or namespace
    #[arg(long)]
    from: Option<String>,
    /// Only to this workload (namespace/name) or namespace
    #[arg(long)]
    to: Option<String>,
    /// Only `allowed` or `refused`
    #[arg(long, value_parser = ["allowed", "refused"])]
    verdict: Option<String>,
    /// Only the last N
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
struct ExplainArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Who connects: namespace/pod, an address, or a SPIFFE id
    from: String,
    /// Where to: namespace/pod:port, namespace/service:port, host:port or address:port
    to: String,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Output {
    /// Columns for people.
    Table,
    /// JSON.
    Json,
}

/// Runs the command.
///
/// # Errors
///
/// Whatever the user should read.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Agent(args) => crate::app::run(*args),
        Command::Workloads(args) => wait(show::list("workloads", &args)),
        Command::Services(args) => wait(show::list("services", &args)),
        Command::Policies(args) => wait(show::list("policies", &args)),
        Command::Certificates(args) => wait(show::list("certificates", &args)),
        Command::Pods(args) => wait(show::list("pods", &args)),
        Command::Flows(args) => wait(show::flows(&args)),
        Command::Explain(args) => wait(show::explain(&args)),
        Command::Analyze(args) => analyze::run(&args),
        Command::Dump(args) => wait(show::page("/dump", &args)),
        Command::Metrics(args) => wait(show::page("/metrics", &args)),
        Command::Ready(args) => wait(show::page("/healthz/ready", &args)),
        Command::Ca(args) => serve_ca(&args),
        Command::Version => show::print(&format!("culvert {VERSION}\n")),
        Command::Uninstall(args) => uninstall::run(&args),
    }
}

fn wait(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn serve_ca(args: &ca::CaArgs) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(ca::run(args))
}
