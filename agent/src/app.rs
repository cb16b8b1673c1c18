//! The agent: the one place that knows everyone. Reads top down as the story of a start and of a change.

mod events;
mod explain;
mod limits;
mod mesh;
mod neighbours;
mod redirection;
mod route;
mod view;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_common::{Decision, Reason, Tuple, decide};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::bpf::{self, Capacities, Kernel, KernelConfig, PIN_ROOT};
use crate::claim::Claim;
use crate::cli::{AgentArgs, LogFormat, SameNode, SourceGuard};
use crate::control::{Update, manifests};
use crate::hbone::baggage;
use crate::identity::{Ca, CertStore, EmbeddedCa, PeerRules, RemoteCa, RemoteConfig, Revocations};
use crate::model::{Settings, Snapshot, Workload, World, desired};
use crate::pods::{Ended, Pods, Wanted};
use crate::policy::{Compiled, Interner, compile};
use crate::proxy::{ProxyConfig, Shared};
use crate::telemetry::flows::FlowLog;
use crate::{admin, sys};
use events::Untracked;
use limits::Limits;
use mesh::MeshView;
use view::{Published, State};

/// How often pods that could not be enrolled are tried again.
const RETRY: Duration = Duration::from_millis(100);
/// How often enrolled pods are looked after: a sandbox that was made anew is noticed that late at the latest.
const LOOK: Duration = Duration::from_millis(500);
/// How long the programs of an agent with another layout wait for pods that cannot be enrolled.
const HANDOVER: Duration = Duration::from_secs(10);
/// How often kernel tables that could not be written are tried again.
const UNSTUCK: Duration = Duration::from_secs(1);
/// A SYN that was judged a moment before a change is an open connection a moment after: on this node at once, in plaintext from
/// elsewhere after a round trip, and after its first retransmission at the latest.
const RECHECKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(3500)];

/// Runs `culvert agent` until SIGTERM or SIGINT, and then until its tunnels have ended (`--drain`).
///
/// # Errors
///
/// What keeps the agent from starting, or the loss of something that it cannot do without.
pub fn run(args: AgentArgs) -> Result<()> {
    init_logging(&args.log, args.log_format)?;
    sys::raise_descriptor_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(start(args))
}

/// Log lines go to stderr.
pub(crate) fn init_logging(log: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(log).with_context(|| format!("--log {log:?} is not a log filter"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn start(args: AgentArgs) -> Result<()> {
    let begun = Instant::now();
    check_instance(&args.instance)?;
    let state_dir = state_dir(&args.instance);
    std::fs::create_dir_all(&state_dir).with_context(|| format!("creating {}", state_dir.display()))?;
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
        revocations: args.crl.clone().map(Revocations::follow).unwrap_or_default(),
    };
    let certs = CertStore::with_rules(ca, rules);
    let shutdown = CancellationToken::new();
    let updates = manifests::spawn(args.manifests.clone(), shutdown.clone());

    let settings = settings(&args);
    let flows = Arc::new(FlowLog::new(&args.node));
    let (publish, snapshots) = watch::channel(Arc::new(nothing_known(&settings)));
    let mesh = MeshView::new(kernel.clone(), snapshots.clone(), flows.clone());
    let drain = Duration::from_secs(args.drain);
    let proxy_config = ProxyConfig { drain, ..ProxyConfig::default() };
    let proxy = Shared::new(Arc::new(mesh), certs.clone(), proxy_config);
    let (status, state) = watch::channel(State::default());
    let view = Published {
        snapshots,
        state,
        flows: flows.clone(),
        kernel: kernel.clone(),
        proxy: proxy.clone(),
        certs,
        same_node: args.same_node,
    };
    admin::serve(Arc::new(view), &state_dir.join("admin.sock"), shutdown.clone())
        .await
        .context("admin socket")?;
    let guard = args.source_guard != SourceGuard::Off;
    let pods = Pods::new(kernel.clone(), proxy.clone(), cgroup_root, guard);
    let untracked = Arc::new(Untracked::new(&kernel));
    events::read(&kernel, flows.clone(), publish.subscribe(), pods.sockets(), untracked.clone())?;
    tracing::info!(node = args.node, instance = args.instance, after = ?begun.elapsed(), "agent started");

    let node = Node {
        settings,
        pods,
        end_older: args.end_older_connections.map(Duration::from_secs),
        limits: Limits::new(kernel.clone(), untracked),
        proxy,
        kernel,
        world: World::default(),
        interner: None,
        flows,
        publish,
        status,
        swept: false,
        begun,
        retired: false,
        owners: HashMap::new(),
        redirected: HashSet::new(),
        rechecks: VecDeque::new(),
        stuck: None,
        draining: None,
    };
    node.follow(updates).await?;
    shutdown.cancel();
    let _ = std::fs::remove_file(state_dir.join("admin.sock"));
    tracing::info!("agent stopped; enforcement stays in the kernel");
    Ok(())
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
    };
    Ok(Ca::Remote(RemoteCa::new(config)?))
}

/// Where an instance has its socket and its lock.
pub(crate) fn state_dir(instance: &str) -> PathBuf {
    Path::new("/run/culvert").join(instance)
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
        root_namespace: args.root_namespace.clone(),
        trust_domain_aliases: args.trust_domain_aliases.clone(),
        l7_deny: args.l7_deny,
    }
}

/// The state that follows the world.
struct Node {
    settings: Settings,
    pods: Pods,
    limits: Limits,
    proxy: Arc<Shared>,
    kernel: Arc<Kernel>,
    world: World,
    interner: Option<Interner>,
    flows: Arc<FlowLog>,
    publish: watch::Sender<Arc<Snapshot>>,
    status: watch::Sender<State>,
    swept: bool,
    begun: Instant,
    retired: bool,
    /// The pod that has each address of this node, by UID, and its policy class: as long as they stay, no open connection is
    /// judged otherwise.
    owners: HashMap<IpAddr, (String, Option<u32>)>,
    /// Pods that were warned of: others redirect them.
    redirected: HashSet<String>,
    /// When open connections are held against the policy once more.
    rechecks: VecDeque<Instant>,
    /// Why the kernel tables could not be written the last time.
    stuck: Option<String>,
    /// How long connections from before a pod joined may go on; `None`: as long as they like.
    end_older: Option<Duration>,
    /// Told to stop: until the last open tunnel has ended, or its time is up.
    draining: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Node {
    /// Applies updates until the process is told to stop.
    async fn follow(mut self, mut updates: mpsc::Receiver<Vec<Update>>) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = tokio::time::interval(limits::ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let dirty = tokio::select! {
                _ = terminate.recv() => { if self.told_to_stop() { break } false }
                _ = interrupt.recv() => { if self.told_to_stop() { break } false }
                () = ended(&mut self.draining) => break,
                batch = updates.recv() => {
                    let batch = batch.context("the control source ended")?;
                    let changed = self.world.apply(batch);
                    self.tell();
                    changed
                }
                () = tokio::time::sleep(RETRY), if self.pods.is_pending() && self.draining.is_none() => true,
                _ = looks.tick(), if self.draining.is_none() => {
                    let seen = self.pods.look_after();
                    if seen.changed {
                        self.tell();
                    }
                    seen.moved
                }
                () = tokio::time::sleep(UNSTUCK), if self.stuck.is_some() => true,
                _ = rounds.tick() => {
                    let ended = self.limits.look(&self.pods);
                    self.report_ended(ended, &self.publish.borrow());
                    false
                }
                () = until(self.rechecks.front().copied()) => {
                    self.rechecks.pop_front();
                    let snapshot = self.publish.borrow().clone();
                    self.end_refused(&snapshot);
                    false
                }
                () = until(self.pods.older_due()) => {
                    self.look_at_older();
                    false
                }
            };
            if dirty && self.world.synced() {
                self.reconcile().await;
            }
        }
        Ok(())
    }

    /// Takes no new tunnels and goes on until the open ones have ended. Returns whether to stop at once: it was told before.
    fn told_to_stop(&mut self) -> bool {
        if self.draining.is_some() {
            tracing::warn!("stopped at once: open tunnels are cut");
            return true;
        }
        tracing::info!("no new tunnels; waiting for the open ones, or for another signal");
        self.status.send_modify(|state| state.draining = true);
        self.draining = Some(Box::pin(self.pods.drain()));
        false
    }

    /// Makes the node what the world says: leaving first, then what joins, then the tables, then enforcement, and the
    /// removal of what nothing refers to any more last. An agent that stops leaves joining and leaving to the next one.
    async fn reconcile(&mut self) {
        let mesh = Arc::new(self.world.resolve(&self.settings));
        let interner = self.interner.get_or_insert_with(|| adopt(&self.kernel));
        let compiled = Arc::new(compile(&mesh, interner));
        let wanted: HashMap<String, Wanted> = mesh
            .workloads
            .iter()
            .filter(|w| w.is_captured() && w.node == self.settings.node)
            .map(|w| (w.uid.clone(), wanted(w)))
            .collect();
        if self.draining.is_none() {
            self.pods.release(&wanted);
            redirection::warn(&mesh, &self.pods.serving(), &mut self.redirected);
            self.pods.prepare(&wanted).await;
        }
        let desired = desired(&mesh, &compiled, &self.pods.serving(), interner);
        let mut short = match self.kernel.maps.sync_before(&desired) {
            Ok(synced) => synced.short,
            Err(error) => return self.stay(error.to_string()),
        };
        self.stuck = None;
        let snapshot = Arc::new(Snapshot::new(mesh, compiled));
        self.publish.send_replace(snapshot.clone());
        if self.draining.is_none() {
            self.pods.enforce(&snapshot.compiled.identities).await;
        }
        self.hold_against_policy(&snapshot);
        if let Err(error) = self.kernel.maps.sync_after(&desired) {
            tracing::error!(%error, "old kernel table entries could not be removed");
        }
        if !short.is_empty() {
            // What has just gone has left room.
            short = match self.kernel.maps.sync_before(&desired) {
                Ok(synced) => synced.short,
                Err(error) => return self.stay(error.to_string()),
            };
        }
        self.limits.tell(&short);
        if !self.swept {
            self.swept = true;
            if let Err(error) = self.pods.sweep() {
                tracing::error!(%error, "what an earlier agent left could not be removed");
            }
            let ended = self.limits.compare(&self.pods);
            self.report_ended(ended, &snapshot);
        }
        self.retire_predecessor();
        self.status.send_modify(|state| {
            state.reconciled = true;
            state.stuck = None;
            state.short = short;
        });
        self.tell();
    }

    /// The programs of an agent with another layout enforce until those of this one do so for every pod.
    fn retire_predecessor(&mut self) {
        if self.retired || (self.pods.is_pending() && self.begun.elapsed() < HANDOVER) {
            return;
        }
        self.retired = true;
        match self.kernel.retire_predecessor() {
            Ok(true) => tracing::info!("the programs of an agent with another layout are gone"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the programs of an earlier agent could not be removed"),
        }
    }

    /// The last good state stays in force; the change is tried again.
    fn stay(&mut self, error: String) {
        if self.stuck.as_ref() != Some(&error) {
            tracing::error!(
                error,
                "kernel tables could not be written: the state before stays in force, and the change is tried again"
            );
        }
        self.status.send_modify(|state| state.stuck = Some(error.clone()));
        self.stuck = Some(error);
    }

    /// Ends what is open and now refused, where the rules have changed for a pod of this node, or an address has gone to
    /// another one.
    fn hold_against_policy(&mut self, snapshot: &Snapshot) {
        let mesh = &snapshot.mesh;
        let pods = mesh.addresses.pods.iter().filter_map(|(ip, n)| Some((*ip, *n, mesh.workloads.get(*n)?)));
        let own = pods.filter(|(_, _, workload)| workload.node == mesh.settings.node);
        let owners: HashMap<IpAddr, (String, Option<u32>)> = own
            .map(|(ip, n, workload)| (ip, (workload.uid.clone(), snapshot.compiled.class_of(n, ip))))
            .collect();
        if owners == self.owners {
            return;
        }
        self.owners = owners;
        self.proxy.policy_changed();
        self.end_refused(snapshot);
        self.rechecks = RECHECKS.iter().map(|after| Instant::now() + *after).collect();
    }

    /// A policy that refuses an open connection ends it, and says so. So does the end of the pod that opened it: what comes
    /// from its address then is not its own.
    fn end_refused(&self, snapshot: &Snapshot) {
        let judge = |tuple: &Tuple, identity: u32| {
            let destination: SocketAddr = tuple.destination().into();
            let source = tuple.source().ip();
            if snapshot.client_is_gone(source.into(), identity) {
                return Decision::refuse(Reason::ClientGone);
            }
            match snapshot.class_at(destination.ip()) {
                Some(class) => decide(&*snapshot.compiled, class, identity, source, destination.port()),
                None => Decision::refuse(Reason::UnknownDestination),
            }
        };
        self.report_ended(self.pods.end_refused(judge), snapshot);
    }

    fn report_ended(&self, ended: Vec<Ended>, snapshot: &Snapshot) {
        for (tuple, connection, decision) in ended {
            let seq = self.flows.kernel(mesh::ended(tuple, connection, decision));
            mesh::log_refusal(&self.flows, seq, snapshot);
        }
    }

    /// Connections from before their pods joined: which are left, and whether their time is up. What leaves the mesh is none
    /// of its business.
    fn look_at_older(&mut self) {
        let snapshot = self.publish.borrow().clone();
        let known = |ip: IpAddr| {
            snapshot.workload_by_ip(ip).is_some_and(|w| w.enrolled) || snapshot.service_by_vip(ip).is_some()
        };
        let ended = self.pods.look_at_older(self.end_older, |c| c.inbound || known(c.server.ip()));
        for (netns, connection) in ended {
            let seq = self.flows.kernel(mesh::ended_older(netns, &connection));
            mesh::log_refusal(&self.flows, seq, &*snapshot);
        }
        self.tell();
    }

    fn tell(&self) {
        self.status.send_modify(|state| {
            state.pods = self.pods.states();
            state.source = self.world.report().clone();
        });
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// When what it waits for has ended; never when there is nothing.
async fn ended(what: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match what {
        Some(what) => what.await,
        None => std::future::pending().await,
    }
}

/// Takes over the numbers that a predecessor gave and left in the maps.
fn adopt(kernel: &Kernel) -> Interner {
    let mut interner = Interner::new();
    interner.set_identity_floor(kernel.maps.highest_identity());
    interner.set_room(kernel.maps.room_for("policy"), kernel.maps.room_for("sources"));
    for (id, text) in kernel.maps.pinned_identities() {
        interner.adopt_identity(id, &text);
    }
    for (index, name) in kernel.maps.pinned_policies() {
        interner.adopt_policy(index, &name);
    }
    for (key, id) in kernel.maps.pinned_services() {
        interner.adopt_service(id, key);
    }
    interner.set_class_floor(kernel.maps.highest_class());
    interner.set_note_floor(kernel.maps.take_pinned_notes());
    interner
}

/// Before the first word from the control source.
fn nothing_known(settings: &Settings) -> Snapshot {
    let mesh = World::default().resolve(settings);
    Snapshot::new(Arc::new(mesh), Arc::new(Compiled::default()))
}

fn wanted(workload: &Workload) -> Wanted {
    let (kind, owner) = &workload.owner;
    let pairs = [
        ("k8s.cluster.name", "Kubernetes"),
        ("k8s.namespace.name", &workload.namespace),
        (&format!("k8s.{kind}.name"), owner),
        ("service.name", &workload.app),
        ("service.version", &workload.version),
    ];
    Wanted {
        uid: workload.uid.clone(),
        name: workload.full_name(),
        addresses: workload.addresses.clone(),
        identity: workload.identity.clone(),
        baggage: baggage(pairs),
    }
}
