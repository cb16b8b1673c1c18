//! The command line: `culvert agent` runs a node; `culvert analyze` reads manifests; the other verbs ask a running agent.

mod analyze;
mod args;
mod ca;
mod check;
mod client;
mod dump;
mod flows;
mod graph;
mod lists;
mod log;
mod manual;
mod profile;
mod quit;
mod show;
mod source;
mod style;
mod table;
mod top;
mod uninstall;
mod waypoint;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use args::{
    AllArgs, ConnectionArgs, ExplainArgs, FlowArgs, LogArgs, QueryArgs, ServiceArgs, SocketArgs, WorkloadArgs,
};
use lists::List;

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
    #[command(
        visible_alias = "workload",
        alias = "w",
        after_help = "Examples:\n  culvert workloads -n shop\n  culvert workloads --node n1 -o wide\n  culvert workloads --address 10.244.1.0/24 -o yaml\n  culvert workloads --file dump.json"
    )]
    Workloads(WorkloadArgs),
    /// List the services with their virtual addresses, ready endpoints, and which of those this node's pods use
    #[command(
        visible_alias = "service",
        aliases = ["svc", "s"],
        after_help = "Examples:\n  culvert services -n shop\n  culvert services --address 10.96.0.17 -o json"
    )]
    Services(ServiceArgs),
    /// List the policies, with what is notable about each
    #[command(
        visible_alias = "policy",
        aliases = ["pol", "p"],
        after_help = "Examples:\n  culvert policies --policy-namespace shop\n  culvert policies -o yaml"
    )]
    Policies(QueryArgs),
    /// List the certificates of this node's identities
    #[command(
        visible_alias = "certificate",
        aliases = ["certs", "cert"],
        after_help = "Examples:\n  culvert certificates\n  culvert certificates -n shop -o wide"
    )]
    Certificates(QueryArgs),
    /// List the pods of this node that are enrolled or waiting to be, with the reason
    #[command(after_help = "Examples:\n  culvert pods\n  culvert pods -n shop -o json")]
    Pods(QueryArgs),
    /// List what is open now: tunnels, and direct and plaintext connections into pods of this node
    #[command(
        visible_alias = "connection",
        alias = "cons",
        after_help = "Examples:\n  culvert connections -n shop\n  culvert connections --direction inbound --address 10.244.2.0/24\n  culvert connections --raw -o wide\n\nBytes are those from client to server (SENT) and back (RECEIVED). The kernel tells them of what stays in it only at its end, in `culvert flows`."
    )]
    Connections(ConnectionArgs),
    /// Print all lists, or with `-o json` and `-o yaml` everything the agent knows, for `--file` of the lists
    #[command(
        after_help = "Examples:\n  culvert all --with-headers\n  culvert all -o json > dump.json\n  culvert workloads --file dump.json"
    )]
    All(AllArgs),
    /// Show recent connections: who, to whom, by which path, and why (not)
    #[command(
        after_help = "Examples:\n  culvert flows --verdict refused --since 5m\n  culvert flows --follow --last 0 --to shop/web\n  culvert flows --from 10.244.1.0/24 --verdict refused,ended\n  culvert flows --policy shop/no-test -o json\n\nThe agent keeps the last 65536 records. When some are missing because they came faster than they were read, --follow says how many."
    )]
    Flows(FlowArgs),
    /// Draw who talked to whom: workloads, paths, refusals, from flow records
    #[command(
        after_help = "Examples:\n  culvert graph -O flows.svg\n  culvert graph --since 10m --verdict refused -o mermaid\n  culvert graph --by namespace -o dot | dot -Tpng > flows.png\n  culvert flows -o json > n1.json\n  culvert graph --file n1.json --file n2.json --from shop/ -O shop.svg\n\nA connection that both of its ends tell of is counted once. Bytes of tunnels and of direct connections are those of connections that have ended."
    )]
    Graph(Box<graph::GraphArgs>),
    /// Watch who talks to whom: pairs by their rate of connections, bytes or refusals
    #[command(
        after_help = "Examples:\n  culvert top\n  culvert top --from shop/ --sort bytes --interval 5\n  culvert top --verdict refused --by namespace\n  culvert top --once --rows 10\n\nKeys: q quits, s sorts by the next column, p pauses, / filters by name. Rates are those of the last 10 seconds. Bytes of tunnels are counted as they go, those of direct and plaintext connections at their end: the kernel keeps them until then."
    )]
    Top(Box<top::TopArgs>),
    /// Say whether a connection is allowed, which policy and rule decide, and what the kernel's table says
    #[command(
        after_help = "Examples:\n  culvert explain test/curl hello/helloworld:5000\n  culvert explain 10.244.2.7 hello/db-0:9000\n  culvert explain spiffe://cluster.local/ns/web/sa/nginx 10.244.1.3:5000"
    )]
    Explain(ExplainArgs),
    /// Show or change what the running agent logs
    #[command(
        after_help = "Examples:\n  culvert log\n  culvert log debug\n  culvert log culvert::hbone=trace,info\n  culvert log access=off\n  culvert log --reset\n\nA restarted agent logs what its --log (RUST_LOG) says."
    )]
    Log(LogArgs),
    /// Say whether everything on this node is as it should be, and what to do where it is not
    #[command(
        after_help = "Examples:\n  culvert check\n  culvert check --machine\n  culvert check --quiet --failure-threshold warning\n  culvert check --file dump.json\n\nIt looks at the machine (privileges, kernel, mounts), at what is attached, and at what the agent says of itself: pods, certificates, input, maps, events, other programs on the same hooks. Exit status: 1 when a finding reaches the threshold, else 0."
    )]
    Check(check::CheckArgs),
    /// Say what is wrong or unexpected in manifests, before they reach an agent; needs neither agent nor root
    #[command(
        after_help = "Examples:\n  culvert analyze deploy/\n  culvert analyze -R . -n shop --failure-threshold warning\n  kubectl get ns,pods,svc,sa,authorizationpolicies,peerauthentications,serviceentries,workloadentries -A -o yaml | culvert analyze -\n\nExit status: 1 when a message reaches the threshold, else 0."
    )]
    Analyze(Box<analyze::AnalyzeArgs>),
    /// Make, list, judge and delete waypoints in a folder of manifests, with istioctl's verbs; needs neither agent nor root
    #[command(
        after_help = "Examples:\n  culvert waypoint generate --for service -n shop\n  culvert waypoint apply -n shop --enroll-namespace --manifests DIR\n  culvert waypoint status -A --manifests DIR\n  culvert waypoint delete waypoint -n shop --manifests DIR"
    )]
    Waypoint(waypoint::WaypointArgs),
    /// Print everything the agent knows as one JSON document
    #[command(after_help = "Example:\n  culvert dump > dump.json")]
    Dump(SocketArgs),
    /// Print the agent's metrics
    #[command(after_help = "Example:\n  culvert metrics")]
    Metrics(SocketArgs),
    /// Say whether the agent is ready, and if not, what it waits for
    #[command(after_help = "Example:\n  culvert ready && echo go")]
    Ready(SocketArgs),
    /// Measure where the agent's processor time goes
    #[command(
        after_help = "Examples:\n  culvert profile cpu --seconds 30 && go tool pprof -top cpu.pb.gz\n  culvert profile cpu --format folded -o - | sort -t' ' -k2 -n | tail\n  culvert profile heap --seconds 60 && go tool pprof -top heap.pb.gz\n\nThe agent takes the samples of its own threads by perf_event_open(2), and of its own allocations while it watches them. One profile is taken at a time; ctrl-C ends it."
    )]
    Profile(profile::ProfileArgs),
    /// Stop the agent as SIGTERM does, and wait until it is gone
    #[command(
        visible_alias = "drain",
        after_help = "Examples:\n  culvert quit\n  culvert quit --timeout 120 && reboot\n\nThe agent takes no new tunnels, lets open ones end for as long as its --drain says, and stops. Enforcement stays in the kernel. Exit status: 0 when the agent is gone, 1 when it is not after --timeout."
    )]
    Quit(quit::QuitArgs),
    /// Sign certificates for the agents of a mesh, by Istio's certificate API
    #[command(
        after_help = "Examples:\n  culvert ca --token /etc/culvert/tokens --server-name ca.example\n  culvert agent --node n1 --manifests m --ca-address ca.example:15012 --ca-root ca.crt --ca-token token"
    )]
    Ca(Box<ca::CaArgs>),
    /// Print the version, and which cryptography is built in
    #[command(after_help = "Example:\n  culvert version")]
    Version,
    /// Print a script that completes commands in a shell
    #[command(
        after_help = "Examples:\n  culvert completions bash > /etc/bash_completion.d/culvert\n  culvert completions zsh > /usr/local/share/zsh/site-functions/_culvert\n  culvert completions fish > /etc/fish/completions/culvert.fish"
    )]
    Completions(manual::CompletionArgs),
    /// Print a manual page, or write all of them into a folder
    #[command(
        after_help = "Examples:\n  culvert man flows | man -l -\n  culvert man --dir /usr/local/share/man/man1"
    )]
    Man(manual::ManArgs),
    /// Remove every trace of a stopped agent from the node: programs, maps, state
    #[command(after_help = "Examples:\n  culvert uninstall --dry-run\n  culvert uninstall --instance blue")]
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
    /// Threads that carry tunnels, each with HBONE connections of its own [default: a quarter of the processors, at least 2]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub tunnel_threads: Option<usize>,
    /// How long a thread that carries tunnels waits for what is about to come, in microseconds, without sleeping: round trips take
    /// about half the time, on processors that would else be idle; 0: it sleeps at once [default: 300, but 0 with a limit of
    /// processor time, or one processor]
    #[arg(long, env = "CULVERT_BUSY_POLL", value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub busy_poll: Option<u64>,
    /// How long open tunnels may go on after SIGTERM, in seconds; a second signal ends them at once. A pod's
    /// terminationGracePeriodSeconds must be longer
    #[arg(long, default_value_t = 20, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain: u64,
    /// End the connections that a pod had before it joined the mesh, to or from the mesh, that many seconds after it joined
    /// [default: they are left alone; `culvert pods` counts them]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub end_older_connections: Option<u64>,
    /// Port of the pages that istioctl asks, on 127.0.0.1 and ::1; 0: none
    #[arg(long, env = "CULVERT_ADMIN_PORT", default_value_t = crate::admin::ADMIN_PORT, value_name = "PORT")]
    pub admin_port: u16,
    /// Watch the agent's own allocations from the start, for `culvert profile heap` to tell what lives; costs processor time with
    /// every 64 KiB that it allocates
    #[arg(long, env = "CULVERT_FOLLOW_HEAP")]
    pub follow_heap: bool,
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

/// Each thread has a listener in each pod.
fn threads(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|n| (1..=256).contains(n));
    number.ok_or_else(|| "write a number from 1 to 256".to_owned())
}

/// Runs the command.
///
/// # Errors
///
/// Whatever the user should read.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Check(args) => return wait(check::run(&args)),
        Command::Agent(args) => {
            if args.follow_heap {
                crate::profile::follow_heap();
            }
            crate::app::run(*args)
        }
        Command::Workloads(args) => wait(lists::workloads(&args)),
        Command::Services(args) => wait(lists::services(&args)),
        Command::Policies(args) => wait(lists::plain(List::Policies, &args)),
        Command::Certificates(args) => wait(lists::plain(List::Certificates, &args)),
        Command::Pods(args) => wait(lists::plain(List::Pods, &args)),
        Command::Connections(args) => wait(lists::connections(&args)),
        Command::All(args) => wait(lists::all(&args)),
        Command::Flows(args) => wait(flows::run(&args)),
        Command::Graph(args) => wait(graph::run(&args)),
        Command::Top(args) => wait(top::run(&args)),
        Command::Explain(args) => wait(show::explain(&args)),
        Command::Log(args) => wait(log::run(&args)),
        Command::Analyze(args) => analyze::run(&args),
        Command::Waypoint(args) => waypoint::run(&args),
        Command::Dump(args) => wait(show::page("/dump", &args)),
        Command::Metrics(args) => wait(show::page("/metrics", &args)),
        Command::Ready(args) => wait(show::page("/healthz/ready", &args)),
        Command::Profile(args) => wait(profile::run(&args)),
        Command::Quit(args) => wait(quit::run(&args)),
        Command::Ca(args) => serve_ca(&args),
        Command::Version => show::print(&format!("culvert {VERSION}\n")),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        Command::Uninstall(args) => uninstall::run(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn serve_ca(args: &ca::CaArgs) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(ca::run(args))
}
