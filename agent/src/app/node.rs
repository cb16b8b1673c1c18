//! The node follows the world: every change of the objects, of the pods and of the time becomes the state of the kernel and of the
//! proxy.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_common::{Decision, Reason, Tuple, decide};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::limits::{self, Limits};
use super::observe::Observer;
use super::view::State;
use super::{mesh, redirection};
use crate::bpf::Kernel;
use crate::control::Update;
use crate::hbone::baggage;
use crate::model::{Settings, Snapshot, Workload, World, desired};
use crate::pods::{Ended, Pods, Wanted};
use crate::policy::{Interner, compile};
use crate::proxy::Shared;
use crate::sys::until;

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

/// What a start gives.
pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) pods: Pods,
    pub(super) limits: Limits,
    pub(super) proxy: Arc<Shared>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) observer: Arc<Observer>,
    pub(super) publish: watch::Sender<Arc<Snapshot>>,
    pub(super) status: watch::Sender<State>,
    /// Whether it was asked to stop.
    pub(super) quit: CancellationToken,
    /// When the start began.
    pub(super) begun: Instant,
    /// How long connections from before a pod joined may go on; `None`: as long as they like.
    pub(super) end_older: Option<Duration>,
}

/// The state that follows the world.
pub(super) struct Node {
    parts: Parts,
    world: World,
    interner: Option<Interner>,
    /// What an earlier agent left is gone.
    swept: bool,
    /// Whether the records of open connections were held against the sockets; false: before every pod was enrolled.
    compared: Option<bool>,
    retired: bool,
    /// The enrolled pod that has each address of this node, by UID, and its policy class: as long as they stay, no open
    /// connection is judged otherwise.
    owners: HashMap<IpAddr, (String, Option<u32>)>,
    /// Pods that were warned of: others redirect them.
    redirected: HashSet<String>,
    /// When open connections are held against the policy once more.
    rechecks: VecDeque<Instant>,
    /// Why the kernel tables could not be written the last time.
    stuck: Option<String>,
    /// Told to stop: until the last open tunnel has ended, or its time is up.
    draining: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Node {
    /// Knows nothing of the world yet.
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            world: World::default(),
            interner: None,
            swept: false,
            compared: None,
            retired: false,
            owners: HashMap::new(),
            redirected: HashSet::new(),
            rechecks: VecDeque::new(),
            stuck: None,
            draining: None,
        }
    }

    /// Applies updates until the process is told to stop.
    pub(super) async fn follow(mut self, mut updates: mpsc::Receiver<Vec<Update>>) -> Result<()> {
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
                () = self.parts.quit.cancelled(), if self.draining.is_none() => { self.told_to_stop(); false }
                () = ended(&mut self.draining) => break,
                batch = updates.recv() => {
                    let batch = batch.context("the control source ended")?;
                    let changed = self.world.apply(batch);
                    self.tell();
                    changed
                }
                () = tokio::time::sleep(RETRY), if self.parts.pods.is_pending() && self.draining.is_none() => true,
                _ = looks.tick(), if self.draining.is_none() => {
                    let seen = self.parts.pods.look_after();
                    if seen.changed {
                        self.tell();
                    }
                    seen.moved
                }
                () = tokio::time::sleep(UNSTUCK), if self.stuck.is_some() => true,
                _ = rounds.tick() => {
                    let ended = self.parts.limits.look(&self.parts.pods);
                    self.report_ended(ended, false);
                    self.look_at_programs();
                    false
                }
                () = until(self.rechecks.front().copied()) => {
                    self.rechecks.pop_front();
                    let snapshot = self.parts.publish.borrow().clone();
                    self.end_refused(&snapshot);
                    false
                }
                () = until(self.parts.pods.older_due()) => {
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
        self.parts.status.send_modify(|state| state.draining = true);
        self.draining = Some(Box::pin(self.parts.pods.drain()));
        false
    }

    /// Makes the node what the world says: leaving first, then what joins, then the tables, then enforcement, and the
    /// removal of what nothing refers to any more last. An agent that stops leaves joining and leaving to the next one.
    async fn reconcile(&mut self) {
        let mesh = Arc::new(self.world.resolve(&self.parts.settings));
        let interner = self.interner.get_or_insert_with(|| adopt(&self.parts.kernel));
        let compiled = Arc::new(compile(&mesh, interner));
        let wanted: HashMap<String, Wanted> = mesh
            .workloads
            .iter()
            .filter(|w| w.is_captured() && w.node == self.parts.settings.node)
            .map(|w| (w.uid.clone(), wanted(w)))
            .collect();
        if self.draining.is_none() {
            self.parts.pods.release(&wanted);
            redirection::warn(&mesh, &self.parts.pods.serving(), &mut self.redirected);
            self.parts.pods.prepare(&wanted).await;
        }
        let serving = self.parts.pods.serving();
        let desired = desired(&mesh, &compiled, &serving, interner);
        let mut short = match self.parts.kernel.maps.sync_before(&desired) {
            Ok(synced) => synced.short,
            Err(error) => return self.stay(error.to_string()),
        };
        self.stuck = None;
        let snapshot = Arc::new(Snapshot::new(mesh, compiled));
        self.parts.publish.send_replace(snapshot.clone());
        if self.draining.is_none() {
            self.parts.pods.enforce(&snapshot.compiled.identities).await;
        }
        self.hold_against_policy(&snapshot, &serving);
        if let Err(error) = self.parts.kernel.maps.sync_after(&desired) {
            tracing::error!(%error, "old kernel table entries could not be removed");
        }
        if !short.is_empty() {
            // What has just gone has left room.
            short = match self.parts.kernel.maps.sync_before(&desired) {
                Ok(synced) => synced.short,
                Err(error) => return self.stay(error.to_string()),
            };
        }
        self.parts.limits.tell(&short);
        if !self.swept {
            self.swept = self.parts.pods.sweep().unwrap_or_else(|error| {
                tracing::error!(%error, "what an earlier agent left could not be removed");
                true
            });
        }
        let complete = !self.parts.pods.is_pending();
        if self.compared.is_none_or(|before| !before && complete) {
            self.compared = Some(complete);
            let ended = self.parts.limits.compare(&self.parts.pods);
            self.report_ended(ended, false);
        }
        self.retire_predecessor();
        self.parts.status.send_modify(|state| {
            state.reconciled = true;
            state.stuck = None;
            state.short = short;
        });
        self.tell();
    }

    /// The programs of an agent with another layout enforce until those of this one do so for every pod.
    fn retire_predecessor(&mut self) {
        if self.retired || (self.parts.pods.is_pending() && self.parts.begun.elapsed() < HANDOVER) {
            return;
        }
        self.retired = true;
        match self.parts.kernel.retire_predecessor() {
            Ok(true) => tracing::info!("the programs of an agent with another layout are gone"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the programs of an earlier agent could not be removed"),
        }
    }

    /// Tells when programs are no longer attached, and when they are again.
    fn look_at_programs(&self) {
        let detached = self.parts.kernel.detached();
        if detached == self.parts.status.borrow().detached {
            return;
        }
        for what in &detached {
            tracing::error!("{what}");
        }
        if detached.is_empty() {
            tracing::info!("every BPF program is attached again");
        }
        self.parts.status.send_modify(|state| state.detached = detached);
    }

    /// The last good state stays in force; the change is tried again.
    fn stay(&mut self, error: String) {
        if self.stuck.as_ref() != Some(&error) {
            tracing::error!(
                error,
                "kernel tables could not be written: the state before stays in force, and the change is tried again"
            );
        }
        self.parts.status.send_modify(|state| state.stuck = Some(error.clone()));
        self.stuck = Some(error);
    }

    /// Ends what is open and now refused, where the rules have changed for a pod of this node, or an address has gone to
    /// another one.
    fn hold_against_policy(&mut self, snapshot: &Snapshot, serving: &HashSet<String>) {
        let mesh = &snapshot.mesh;
        let pods = mesh.addresses.pods.iter().filter_map(|(ip, n)| Some((*ip, *n, mesh.workloads.get(*n)?)));
        // A pod that joins brings the connections that it had under an earlier agent.
        let own = pods.filter(|(_, _, workload)| serving.contains(&workload.uid));
        let owners: HashMap<IpAddr, (String, Option<u32>)> = own
            .map(|(ip, n, workload)| (ip, (workload.uid.clone(), snapshot.compiled.class_of(n, ip))))
            .collect();
        if owners == self.owners {
            return;
        }
        self.owners = owners;
        self.parts.proxy.policy_changed();
        self.end_refused(snapshot);
        self.rechecks = RECHECKS.iter().map(|after| Instant::now() + *after).collect();
    }

    /// A policy that refuses an open connection ends it, and says so. So does the end of the pod that opened it: what comes
    /// from its address then is not its own.
    fn end_refused(&self, snapshot: &Snapshot) {
        let verdict = |tuple: &Tuple, identity: u32| {
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
        let judge = |tuple: &Tuple, identity: u32| {
            let decision = verdict(tuple, identity);
            if !decision.allowed() {
                self.parts.observer.cut(*tuple, decision, snapshot);
            }
            decision
        };
        self.report_ended(self.parts.pods.end_refused(judge), true);
    }

    /// `heard`: the programs tell of their ends too.
    fn report_ended(&self, ended: Vec<Ended>, heard: bool) {
        for (tuple, connection, decision) in ended {
            self.parts.observer.ended(mesh::ended(tuple, connection, decision), heard);
        }
    }

    /// Connections from before their pods joined: which are left, and whether their time is up. What leaves the mesh is none
    /// of its business.
    fn look_at_older(&mut self) {
        let snapshot = self.parts.publish.borrow().clone();
        let known = |ip: IpAddr| {
            snapshot.workload_by_ip(ip).is_some_and(|w| w.enrolled) || snapshot.service_by_vip(ip).is_some()
        };
        let ended =
            self.parts.pods.look_at_older(self.parts.end_older, |c| c.inbound || known(c.server.ip()));
        for (netns, connection) in ended {
            self.parts.observer.ended(mesh::ended_older(netns, &connection), false);
        }
        self.tell();
    }

    fn tell(&self) {
        self.parts.status.send_modify(|state| {
            state.pods = self.parts.pods.states();
            state.source = self.world.report().clone();
        });
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
