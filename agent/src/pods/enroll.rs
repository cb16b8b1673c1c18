//! Enrolment: a pod joins when everything it needs is in place, and leaves without a trace.
//!
//! Joining: namespace found → listeners open in it → certificate there → tables name the pod as local → tunnels served →
//! `pods` entry written: what it opens is decided → sk_lookup attached: what reaches it is judged. Leaving is the reverse.

mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_common::{Guard, Ip, Pod, cut};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::discovery::{Cgroups, Home};
use super::interface::node_end;
use super::older::{OlderConnection, Olders};
use super::sockets::PodSockets;
use super::wanted::Wanted;
use crate::bpf::Kernel;
use crate::identity::SpiffeId;
use crate::proxy::{self, Baggage, PodListeners, PodProxy, Shared};

pub use watch::Seen;

/// How long all pods that join together wait for their certificates before they are put off. The CA goes on; policy must not
/// wait for it.
const CERTIFICATE_WAIT: Duration = Duration::from_millis(50);
/// How long tunnels into a pod that leaves are still accepted, so that other nodes can hear of it.
const LEAVE_GRACE: Duration = Duration::from_millis(500);

/// For connections that were opened before their pods' entries were there to arrive.
const IN_FLIGHT: Duration = Duration::from_millis(20);
/// For the tasks of cancelled listeners to end.
const RETURN_PAUSE: Duration = Duration::from_millis(5);

pub(super) struct Enrolled {
    pub(super) wanted: Wanted,
    pub(super) netns: Arc<OwnedFd>,
    pub(super) cookie: u64,
    home: Home,
    /// It lives in another namespace now.
    moved: bool,
    /// The identity number in the `pods` map.
    written: Option<u32>,
    /// Why what it sends is not checked, or empty.
    unguarded: String,
    baggage: Baggage,
    stop: CancellationToken,
    service: Service,
}

impl Enrolled {
    /// Takes over what has changed of its labels. The pod must not leave for that: while it is out, anybody may reach it.
    fn relabel(&mut self, wanted: &Wanted) {
        if self.wanted.baggage != wanted.baggage {
            self.wanted.baggage.clone_from(&wanted.baggage);
            self.baggage.set(wanted.baggage.clone());
        }
    }
}

/// The proxy of a pod.
enum Service {
    /// Its listeners hold what arrives until the tables can judge it.
    Waiting(Box<(PodProxy, Vec<PodListeners>)>),
    /// The task ends when the pod's last tunnel has.
    Serving(JoinHandle<()>),
    /// It could not be started, or is being drained.
    Ended,
}

impl Service {
    /// Starts accepting.
    fn start(self, proxy: &Arc<Shared>, stop: &CancellationToken) -> (Self, io::Result<()>) {
        let Self::Waiting(waiting) = self else { return (self, Ok(())) };
        let (pod, listeners) = *waiting;
        match proxy::serve_pod(pod, listeners, proxy.clone(), stop.clone()) {
            Ok(task) => (Self::Serving(task), Ok(())),
            Err(error) => (Self::Ended, Err(error)),
        }
    }
}

/// State of one pod, for the reader.
#[derive(Clone, Debug, Serialize)]
pub struct PodState {
    /// `namespace/name`.
    pub name: String,
    /// `enrolled` or `pending`.
    pub state: &'static str,
    /// Whether its connections are led through the mesh, in the words of Istio's annotation
    /// `ambient.istio.io/redirection`: `enabled` or `pending`.
    pub redirection: &'static str,
    /// Why it is pending, or what of it is missing; or empty.
    pub reason: String,
    /// Netns cookie, 0 while pending.
    pub netns_cookie: u64,
    /// What it had open before it joined, and still has: never judged.
    pub older_connections: Vec<OlderConnection>,
}

/// The pods of this node.
pub struct Pods {
    pub(super) kernel: Arc<Kernel>,
    pub(super) sockets: Arc<PodSockets>,
    proxy: Arc<Shared>,
    cgroup_root: PathBuf,
    /// Whether what pods send is checked for their addresses.
    source_guard: bool,
    /// What pods had open before they joined.
    pub(super) olders: Olders,
    pub(super) enrolled: HashMap<String, Enrolled>,
    pending: BTreeMap<String, (String, String)>,
    /// Listeners of pods that left a moment ago, by netns cookie.
    leaving: HashMap<u64, CancellationToken>,
}

impl Pods {
    /// Nothing enrolled yet.
    pub fn new(kernel: Arc<Kernel>, proxy: Arc<Shared>, cgroup_root: PathBuf, source_guard: bool) -> Self {
        Self {
            source_guard,
            olders: Olders::new(),
            kernel,
            sockets: Arc::default(),
            proxy,
            cgroup_root,
            enrolled: HashMap::new(),
            pending: BTreeMap::new(),
            leaving: HashMap::new(),
        }
    }

    /// Releases pods that are no longer wanted as they are, or no longer where they were: outbound first, then the
    /// destination's verdict. The tables may forget them afterwards.
    pub fn release(&mut self, wanted: &HashMap<String, Wanted>) {
        let gone: Vec<String> = self
            .enrolled
            .iter()
            .filter(|(uid, e)| {
                e.moved || !wanted.get(*uid).is_some_and(|wanted| wanted.is_as_enrolled(&e.wanted))
            })
            .map(|(u, _)| u.clone())
            .collect();
        // What reaches them is judged no more before what they open is vouched for no more: they may be each other's callers.
        for pod in gone.iter().filter_map(|uid| self.enrolled.get(uid)) {
            report(&pod.wanted.name, "sk_lookup link", self.kernel.detach_pod(pod.cookie));
        }
        for uid in gone {
            let Some(pod) = self.enrolled.remove(&uid) else { continue };
            report(&pod.wanted.name, "pods entry", self.kernel.maps.remove_pod(pod.cookie));
            report(&pod.wanted.name, "source guard", self.kernel.unguard_pod(pod.cookie));
            self.sockets.remove(pod.cookie);
            self.olders.forget(pod.cookie);
            tracing::info!(pod = pod.wanted.name, "left the mesh");
            self.leaving.retain(|_, stop| !stop.is_cancelled());
            self.leaving.insert(pod.cookie, pod.stop.clone());
            tokio::spawn(async move {
                tokio::time::sleep(LEAVE_GRACE).await;
                pod.stop.cancel();
            });
        }
    }

    /// Opens listeners and fetches certificates for pods that are new; those that cannot be found yet stay pending.
    pub async fn prepare(&mut self, wanted: &HashMap<String, Wanted>) {
        self.pending.retain(|uid, _| wanted.contains_key(uid) && !self.enrolled.contains_key(uid));
        for (uid, enrolled) in &mut self.enrolled {
            if let Some(pod) = wanted.get(uid) {
                enrolled.relabel(pod);
            }
        }
        let new: Vec<&Wanted> = wanted.values().filter(|pod| !self.enrolled.contains_key(&pod.uid)).collect();
        if new.is_empty() {
            return;
        }
        let cgroups = Cgroups::read(&self.cgroup_root).map_err(|e| format!("reading cgroups: {e}"));
        let deadline = tokio::time::Instant::now() + CERTIFICATE_WAIT;
        for pod in new {
            let opened = match &cgroups {
                Ok(cgroups) => self.open(pod, cgroups, deadline).await,
                Err(reason) => Err(reason.clone()),
            };
            match opened {
                Ok(enrolled) => {
                    self.pending.remove(&pod.uid);
                    self.enrolled.insert(pod.uid.clone(), enrolled);
                }
                Err(reason) => {
                    let known = self.pending.insert(pod.uid.clone(), (pod.name.clone(), reason.clone()));
                    if known.is_none_or(|(_, old)| old != reason) {
                        tracing::warn!(pod = pod.name, reason, "cannot enrol yet");
                    }
                }
            }
        }
    }

    /// `deadline`: for its certificate.
    async fn open(
        &mut self,
        pod: &Wanted,
        cgroups: &Cgroups,
        deadline: tokio::time::Instant,
    ) -> Result<Enrolled, String> {
        let found =
            cgroups.find(&pod.uid, None).map_err(|e| format!("reading its network namespace: {e}"))?;
        let found = found.ok_or("no process of it runs on this node yet")?;
        let (netns, home) = (found.file, found.home);
        let cookie =
            crate::sys::netns_cookie(&netns).map_err(|e| format!("reading its netns cookie: {e}"))?;
        if let Err(reason) = self.certificate(pod, deadline).await {
            // What an earlier agent has put in force must not fall back behind what it was, for as long as the CA takes.
            if !self.kernel.inherits(cookie) {
                return Err(reason);
            }
            tracing::warn!(pod = pod.name, reason, "stays in the mesh; its tunnels fail until then");
        }
        if let Some(stop) = self.leaving.remove(&cookie) {
            // It comes back at once: its old listeners must make room first.
            stop.cancel();
            tokio::time::sleep(RETURN_PAUSE).await;
        }
        let listeners = proxy::open(&netns, self.proxy.config.threads)
            .map_err(|e| format!("opening listeners in it: {e}"))?;
        let netns: Arc<OwnedFd> = Arc::new(netns.into());
        self.sockets.add(cookie, &*netns).map_err(|e| format!("opening a netlink socket in it: {e}"))?;
        let stop = CancellationToken::new();
        let baggage = Baggage::from(pod.baggage.clone());
        let proxy = PodProxy {
            netns: netns.clone(),
            netns_cookie: cookie,
            identity: pod.identity.clone(),
            ips: pod.addresses.clone(),
            name: pod.name.clone(),
            baggage: baggage.clone(),
        };
        let service = Service::Waiting(Box::new((proxy, listeners)));
        let unguarded = self.guard(pod, &netns, cookie);
        Ok(Enrolled {
            wanted: pod.clone(),
            netns,
            cookie,
            home,
            moved: false,
            written: None,
            unguarded,
            baggage,
            stop,
            service,
        })
    }

    /// Waits for the pod's certificate.
    async fn certificate(&self, pod: &Wanted, deadline: tokio::time::Instant) -> Result<(), String> {
        // Asked for even when the deadline has passed: it is there the next time.
        match tokio::time::timeout_at(deadline, self.proxy.certs.get(&pod.identity)).await {
            Ok(got) => got.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err(format!("waiting for the CA's certificate for {}", pod.identity)),
        }
    }

    /// Keeps the pod from sending under addresses that are not its own; why it cannot, or empty. It is enrolled either way: what
    /// it claims to be is never believed, only policies by address could be misled, and only for plaintext.
    fn guard(&self, pod: &Wanted, netns: &OwnedFd, cookie: u64) -> String {
        if !self.source_guard {
            return "no source guard: --source-guard=off".to_owned();
        }
        let (ip4, ip6) = both_families(&pod.addresses);
        let guarded =
            node_end(netns.as_fd(), &pod.addresses).map_err(|error| error.to_string()).and_then(|index| {
                self.kernel.guard_pod(cookie, index, Guard { ip4, ip6 }).map_err(|error| error.to_string())
            });
        let Err(reason) = guarded else { return String::new() };
        tracing::warn!(pod = pod.name, reason, "no source guard on its interface");
        format!("no source guard: {reason}")
    }

    /// UIDs of the pods whose listeners and certificates are in place.
    pub fn serving(&self) -> HashSet<String> {
        self.enrolled.keys().cloned().collect()
    }

    /// Puts the kernel's decisions in force for each serving pod, by the number of its identity. The tables already name
    /// them as local.
    ///
    /// What pods open is decided, and vouched for, before anything that reaches them is: of two pods that join together (or are
    /// taken over from an agent with another layout) the one must not refuse what the other opened a moment before.
    pub async fn enforce(&mut self, numbers: &HashMap<SpiffeId, u32>) {
        let mut joining = Vec::new();
        for (uid, pod) in &mut self.enrolled {
            let Some(identity) = numbers.get(&pod.wanted.identity) else { continue };
            if pod.written == Some(*identity) {
                continue;
            }
            let service = std::mem::replace(&mut pod.service, Service::Ended);
            let (service, started) = service.start(&self.proxy, &pod.stop);
            pod.service = service;
            if let Err(error) = started {
                tracing::error!(pod = pod.wanted.name, %error, "cannot serve its tunnels");
            }
            match put(&self.kernel, pod, *identity) {
                Ok(()) if pod.written.replace(*identity).is_none() => joining.push(uid.clone()),
                Ok(()) => {}
                Err(reason) => postpone(&mut self.pending, uid, pod, reason),
            }
        }
        if joining.is_empty() {
            return;
        }
        tokio::time::sleep(IN_FLIGHT).await;
        for uid in joining {
            let Some(pod) = self.enrolled.get_mut(&uid) else { continue };
            if let Err(error) = self.kernel.attach_pod(pod.cookie, pod.netns.as_fd()) {
                pod.written = None;
                postpone(&mut self.pending, &uid, pod, error.to_string());
                continue;
            }
            self.pending.remove(&uid);
            tracing::info!(pod = pod.wanted.name, identity = %pod.wanted.identity, "joined the mesh");
            self.olders.begin(pod.cookie, &pod.wanted.addresses);
        }
    }

    /// The netns cookie and name of each pod whose listeners and certificate are in place.
    pub(super) fn names(&self) -> impl Iterator<Item = (u64, &str)> {
        self.enrolled.values().map(|pod| (pod.cookie, pod.wanted.name.as_str()))
    }

    /// The pods' sockets, for whoever must end one.
    pub fn sockets(&self) -> Arc<PodSockets> {
        self.sockets.clone()
    }

    /// Removes what a predecessor left for pods that no longer exist. What it has in force for a pod that cannot be enrolled
    /// yet stays: without it anybody may reach the pod. Returns whether there was no such pod.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn sweep(&self) -> io::Result<bool> {
        let mut live: HashSet<u64> = self.enrolled.values().map(|pod| pod.cookie).collect();
        let pending: HashSet<_> = self.pending.values().map(|(name, _)| cut(name)).collect();
        let left = self.kernel.maps.pods().into_iter().filter(|(cookie, _)| !live.contains(cookie));
        let (spared, gone): (Vec<_>, Vec<_>) = left.partition(|(_, pod)| pending.contains(&pod.name));
        for (cookie, _) in gone {
            self.kernel.maps.remove_pod(cookie)?;
        }
        live.extend(spared.iter().map(|(cookie, _)| *cookie));
        self.kernel.sweep_pods(&|cookie| live.contains(&cookie))?;
        Ok(spared.is_empty())
    }

    /// Takes no new tunnels; what it returns is done when the open ones have ended or their time is up. The pods stay
    /// enrolled: what the kernel decides goes on, and new tunnels fail until the next agent.
    pub fn drain(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let mut ends = Vec::new();
        for pod in self.enrolled.values_mut() {
            pod.stop.cancel();
            match std::mem::replace(&mut pod.service, Service::Ended) {
                Service::Serving(task) => ends.push((pod.wanted.name.clone(), task)),
                Service::Waiting(_) | Service::Ended => {}
            }
        }
        async move {
            for (pod, task) in ends {
                if let Err(error) = task.await {
                    tracing::error!(pod, %error, "the task that served it failed");
                }
            }
        }
    }

    /// Whether something waits for another try.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// To be tried again.
fn postpone(pending: &mut BTreeMap<String, (String, String)>, uid: &str, pod: &Enrolled, reason: String) {
    tracing::error!(pod = pod.wanted.name, reason, "cannot enforce; trying again");
    pending.insert(uid.to_owned(), (pod.wanted.name.clone(), reason));
}

/// Writes the pod's entry: what it opens is decided.
fn put(kernel: &Kernel, pod: &Enrolled, identity: u32) -> Result<(), String> {
    let (ip4, ip6) = both_families(&pod.wanted.addresses);
    let entry = Pod { identity, ip4, ip6, name: cut(&pod.wanted.name) };
    kernel.maps.put_pod(pod.cookie, entry).map_err(|e| e.to_string())
}

/// The IPv4 and the IPv6 address; all zeros where there is none.
fn both_families(addresses: &[IpAddr]) -> (Ip, Ip) {
    let family =
        |v4: bool| addresses.iter().find(|a| a.is_ipv4() == v4).map_or(Ip::UNSPECIFIED, |a| Ip::from(*a));
    (family(true), family(false))
}

fn report<E: std::fmt::Display>(pod: &str, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(pod, what, %error, "cannot be removed");
    }
}
