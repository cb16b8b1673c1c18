//! One pod's proxy: its accept loops, and the end of its connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::habits::Habits;
use super::ports::LocalPorts;
use super::{PodListeners, Shared, inbound, outbound};
use crate::identity::SpiffeId;

/// A pod of this node, as the proxy needs it.
#[derive(Clone, Debug)]
pub struct PodProxy {
    /// Its network namespace.
    pub netns: Arc<OwnedFd>,
    /// The namespace's cookie, from [`crate::sys::netns_cookie`].
    pub netns_cookie: u64,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses, at most one of each family counts.
    pub ips: Vec<IpAddr>,
    /// `namespace/name`, for logs.
    pub name: String,
    /// What its tunnels tell of it.
    pub baggage: Baggage,
}

/// Value of the `baggage` header of a pod's tunnels; none is sent when empty. It follows from labels, which may change while
/// the pod is served: clones share it.
#[derive(Clone, Debug, Default)]
pub struct Baggage(Arc<RwLock<String>>);

impl Baggage {
    /// The value now.
    pub fn get(&self) -> String {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tunnels that are opened from now on have this one.
    pub fn set(&self, value: String) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl From<String> for Baggage {
    fn from(value: String) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }
}

impl PodProxy {
    /// The pod's own address of the family that `peer` has.
    pub(super) fn ip_like(&self, peer: IpAddr) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv4() == peer.is_ipv4())
    }
}

/// A pod being served.
pub(super) struct Pod {
    pub(super) info: PodProxy,
    pub(super) shared: Arc<Shared>,
    /// Everything spawned for the pod; the pod is done when it is empty.
    pub(super) tasks: TaskTracker,
    /// Stop accepting; let what is open end.
    pub(super) stop: CancellationToken,
    /// The drain deadline passed: reset what is still open.
    pub(super) kill: CancellationToken,
    /// Local ends of connections to the app that are being opened: their original source is stored under them.
    pub(super) opening: Mutex<std::collections::HashSet<SocketAddr>>,
    /// For those connections.
    pub(super) ports: LocalPorts,
    /// How soon its apps say something, by the port that they connect to, and by their own.
    pub(super) clients: Habits,
    pub(super) servers: Habits,
}

/// Serves a pod until `stop`; then accepts no more, sends GOAWAY on its HBONE connections, and resets what is still open
/// after [`super::ProxyConfig::drain`]. The task ends when the last connection has.
///
/// Each of `listeners` is served by another thread ([`super::ProxyConfig::threads`]).
///
/// Keeps the certificate of the pod's identity fresh meanwhile. To have the pod ready before it is enrolled, await
/// `shared.certs.get(&identity)` too. Fails when the listeners cannot be registered with a runtime.
pub fn serve_pod(
    pod: PodProxy,
    listeners: Vec<PodListeners>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    let lease = shared.certs.lease(&pod.identity);
    let drain = shared.config.drain;
    let pod = Arc::new(Pod {
        ports: LocalPorts::of(&*pod.netns),
        info: pod,
        shared,
        tasks: TaskTracker::new(),
        stop,
        kill: CancellationToken::new(),
        opening: Mutex::default(),
        clients: Habits::default(),
        servers: Habits::default(),
    });
    let runtimes = pod.shared.workers.runtimes();
    for (set, runtime) in listeners.into_iter().zip(runtimes.iter().cycle()) {
        accept(&pod, set, runtime)?;
    }
    Ok(tokio::spawn(async move {
        pod.stop.cancelled().await;
        pod.tasks.close();
        if tokio::time::timeout(drain, pod.tasks.wait()).await.is_err() {
            tracing::debug!(pod = pod.info.name, connections = pod.tasks.len(), "drain deadline: resetting");
            pod.kill.cancel();
            pod.tasks.wait().await;
        }
        pod.shared.pool.forget_pod(pod.info.netns_cookie);
        drop(lease);
    }))
}

fn accept(pod: &Arc<Pod>, listeners: PodListeners, runtime: &Handle) -> io::Result<()> {
    let _entered = runtime.enter();
    for listener in listeners.outbound {
        pod.tasks.spawn(outbound::run(pod.clone(), TcpListener::from_std(listener)?));
    }
    for listener in listeners.inbound {
        pod.tasks.spawn(inbound::run(pod.clone(), TcpListener::from_std(listener)?));
    }
    Ok(())
}
