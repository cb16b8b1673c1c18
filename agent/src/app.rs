//! The agent: the one place that knows everyone. Reads top down as the story of a start and of a change.

mod book;
mod config_dump;
mod connections;
mod ends;
mod events;
mod explain;
mod hooks_log;
mod limits;
mod memory;
mod mesh;
mod neighbours;
mod node;
mod notes;
mod observe;
mod redirection;
mod route;
mod view;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bpf::{self, Capacities, Kernel, KernelConfig, PIN_ROOT};
use crate::claim::Claim;
use crate::cli::{AgentArgs, SameNode, SourceGuard};
use crate::control::{manifests, names};
use crate::identity::{Ca, CertStore, EmbeddedCa, PeerRules, RemoteCa, RemoteConfig, Revocations, VERSION};
use crate::model::{Settings, Snapshot, World};
use crate::pods::Pods;
use crate::policy::Compiled;
use crate::proxy::{ProxyConfig, Shared};
use crate::telemetry::flows::FlowLog;
use crate::telemetry::log::{self, LogControl};
use crate::{admin, sys};
use events::Untracked;
use limits::Limits;
use mesh::MeshView;
use node::{Node, Parts};
use observe::Observer;
use view::{Published, State};

/// Runs `culvert agent` until SIGTERM or SIGINT, and then until its tunnels have ended (`--drain`).
///
/// # Errors
///
/// What keeps the agent from starting, or the loss of something that it cannot do without.
pub fn run(args: AgentArgs) -> Result<()> {
    let log = log::init(&args.log, args.log_format)?;
    sys::raise_descriptor_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(start(args, log))
}

async fn start(args: AgentArgs, log: LogControl) -> Result<()> {
    let begun = Instant::now();
    check_instance(&args.instance)?;
    args.compliance_policy.check().map_err(anyhow::Error::msg)?;
    let state_dir = state_dir(&args.instance);
    make_state_dir(&state_dir).with_context(|| format!("creating {}", state_dir.display()))?;
    let cgroup_root = match &args.cgroup_root {
        Some(path) => path.clone(),
        None => sys::cgroup2_mount()?,
    };
    // What the user gave is judged before anything is attached: the kernel's side outlives a failed start.
    anyhow::ensure!(
        args.manifests.is_dir(),
        "--manifests {}: no such folder; it holds Kubernetes YAML",
        args.manifests.display()
    );
    let _claim = Claim::take(&state_dir, &cgroup_root)?;
    let ca = open_ca(&args)?;
    let kernel = match load_kernel(&args, &cgroup_root) {
        Ok(kernel) => Arc::new(kernel),
        // What the kernel lacks explains more than what it refused because of that.
        Err(error) => return Err(bpf::lacking().map_or(error, |lacking| anyhow::anyhow!(lacking))),
    };
    neighbours::report(&kernel);
    let lost = kernel.maps.forget_handovers().context("tidying up after an earlier agent")?;
    if lost > 0 {
        tracing::info!(lost, "tunnels that an earlier agent was about to take are forgotten");
    }
    let rules = PeerRules {
        aliases: args.trust_domain_aliases.clone(),
        compliance: args.compliance_policy,
        revocations: args.crl.clone().map(Revocations::follow).unwrap_or_default(),
    };
    let certs = CertStore::with_rules(ca, rules);
    let shutdown = CancellationToken::new();
    let updates = manifests::spawn(args.manifests.clone(), shutdown.clone());
    let updates = names::spawn(updates, names::Config::new(args.resolv_conf.clone()), shutdown.clone());

    let settings = settings(&args);
    let flows = Arc::new(FlowLog::new(&args.node));
    let (publish, snapshots) = watch::channel(Arc::new(nothing_known(&settings)));
    let observer = Observer::new(flows.clone(), args.access_log, args.metrics_series, snapshots.clone());
    let observer = Arc::new(observer);
    let mesh = MeshView::new(kernel.clone(), snapshots.clone(), observer.clone());
    let drain = Duration::from_secs(args.drain);
    let threads = args.tunnel_threads.unwrap_or_else(tunnel_threads);
    let busy_poll = args.busy_poll.map_or_else(busy_poll, Duration::from_micros);
    let proxy_config = ProxyConfig { drain, threads, busy_poll, ..ProxyConfig::default() };
    let proxy = Shared::new(Arc::new(mesh), certs.clone(), proxy_config)
        .context("starting the threads that carry tunnels")?;
    let (status, state) = watch::channel(State::default());
    let quit = CancellationToken::new();
    tokio::spawn(hooks_log::follow(kernel.clone(), snapshots.clone(), log.kernel()));
    let view = Published {
        snapshots,
        state,
        flows,
        observer: observer.clone(),
        kernel: kernel.clone(),
        proxy: proxy.clone(),
        certs,
        same_node: args.same_node,
        log,
        quit: quit.clone(),
    };
    admin::serve(Arc::new(view), &state_dir.join("admin.sock"), args.admin_port, shutdown.clone())
        .await
        .context("admin socket")?;
    let guard = args.source_guard != SourceGuard::Off;
    let pods = Pods::new(kernel.clone(), proxy.clone(), cgroup_root, guard);
    let untracked = Arc::new(Untracked::new(&kernel));
    events::read(
        &kernel,
        observer.clone(),
        publish.subscribe(),
        pods.sockets(),
        untracked.clone(),
        status.clone(),
    )?;
    tracing::info!(version = VERSION, node = args.node, instance = args.instance, after = ?begun.elapsed(), "agent started");

    tokio::spawn(notes::follow(publish.subscribe()));
    tokio::spawn(memory::look_after());
    let node = Node::new(Parts {
        settings,
        pods,
        end_older: args.end_older_connections.map(Duration::from_secs),
        limits: Limits::new(kernel.clone(), untracked),
        proxy,
        kernel,
        observer,
        publish,
        status,
        quit,
        begun,
    });
    node.follow(updates).await?;
    shutdown.cancel();
    let _ = std::fs::remove_file(state_dir.join("admin.sock"));
    tracing::info!("agent stopped; enforcement stays in the kernel");
    Ok(())
}

/// A quarter of the processors, and two at least: ztunnel's choice.
fn tunnel_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().div_ceil(4)).max(2)
}

/// Polling takes processor time that is idle. It is not where there is one processor, or where a limit (cgroup cpu.max) counts it.
fn busy_poll() -> Duration {
    let processors = sched_getaffinity(Pid::from_raw(0))
        .map_or(0, |set| (0..CpuSet::count()).filter(|n| set.is_set(*n).unwrap_or_default()).count());
    // Knows of the limit.
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    if usable > 1 && usable == processors { Duration::from_micros(300) } else { Duration::ZERO }
}

fn open_ca(args: &AgentArgs) -> Result<Ca> {
    let ttl = Duration::from_secs(args.certificate_ttl);
    let (Some(address), Some(root), Some(token)) = (&args.ca_address, &args.ca_root, &args.ca_token) else {
        let dir = args.ca_dir.as_ref().context("--ca-dir or --ca-address is needed")?;
        return Ok(Ca::Embedded(EmbeddedCa::open(dir, ttl)?));
    };
    let config = RemoteConfig {
        address: address.clone(),
        root: root.clone(),
        token: token.clone(),
        cluster: args.cluster_id.clone(),
        ttl,
        compliance: args.compliance_policy,
    };
    Ok(Ca::Remote(RemoteCa::new(config)?))
}

/// Where an instance has its socket and its lock.
pub(crate) fn state_dir(instance: &str) -> PathBuf {
    Path::new("/run/culvert").join(instance)
}

/// For root alone, as the socket in it. One that an earlier agent left open to others is closed.
fn make_state_dir(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Where an instance has its programs, links and maps.
///
/// # Errors
///
/// The name cannot be one.
pub(crate) fn pins(instance: &str) -> Result<PathBuf> {
    check_instance(instance)?;
    Ok(Path::new(PIN_ROOT).join(instance))
}

/// The name becomes a directory.
fn check_instance(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    let good = !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(plain);
    anyhow::ensure!(
        good,
        "--instance {name:?}: use up to 64 letters, digits, `-`, `_` and `.`, not starting with a dot"
    );
    Ok(())
}

fn load_kernel(args: &AgentArgs, cgroup_root: &Path) -> Result<Kernel> {
    sys::mount_bpffs().context("mounting a bpffs at /sys/fs/bpf (root is needed)")?;
    let own = sys::own_cgroup()?;
    let agent_cgroup =
        std::fs::metadata(&own).with_context(|| format!("own cgroup {}", own.display()))?.ino();
    let config = KernelConfig {
        pins: pins(&args.instance)?,
        cgroup: cgroup_root.to_owned(),
        host_netns: sys::own_netns_cookie().context("reading the node's netns cookie (Linux 5.14)")?,
        agent_cgroup,
        same_node_tunnel: args.same_node == SameNode::Tunnel,
        clsact_guard: args.source_guard == SourceGuard::Clsact,
        capacities: Capacities::with(&args.map_entries),
    };
    Ok(Kernel::load(&config)?)
}

fn settings(args: &AgentArgs) -> Settings {
    Settings {
        node: args.node.clone(),
        trust_domain: args.trust_domain.clone(),
        cluster_domain: args.cluster_domain.clone(),
        cluster: args.cluster_id.clone(),
        root_namespace: args.root_namespace.clone(),
        trust_domain_aliases: args.trust_domain_aliases.clone(),
        l7_deny: args.l7_deny,
        auto_allow_waypoint: args.auto_allow_waypoint,
    }
}

/// Before the first word from the control source.
fn nothing_known(settings: &Settings) -> Snapshot {
    let mesh = World::default().resolve(settings);
    Snapshot::new(Arc::new(mesh), Arc::new(Compiled::default()))
}
