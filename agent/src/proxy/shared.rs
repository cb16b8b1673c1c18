//! What the proxies of all pods share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert_common::{HBONE_PORT, OUTBOUND_PORT};
use http::Request;
use tokio::sync::watch;

use super::workers::{self, Workers};
use super::{Mesh, OpenTunnels};
use crate::hbone::{Destination, FirstBytes, HboneConfig, OpenError, Pool, Tunnel};
use crate::identity::CertStore;

/// The proxy's settings. [`ProxyConfig::default`] is what a mesh runs with; tests choose other ports.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where HBONE peers listen. Default 15008.
    pub hbone_port: u16,
    /// Ports of the mesh itself, never a tunnel's destination. Default 15001, 15006, 15008.
    pub reserved_ports: Vec<u16>,
    /// For the connection to the app. Default 10 s.
    pub connect_timeout: Duration,
    /// TLS and HTTP/2 handshakes that may be going on at once, per pod. Default 256; one more ends the oldest of the address
    /// that has most.
    pub handshakes: usize,
    /// HBONE connections that one address may have to a pod. Default 128: room for 12,800 tunnels of a peer that puts 100 on
    /// each, as Culvert and ztunnel do.
    pub connections_per_peer: usize,
    /// HBONE connections to a pod from all addresses. Default 8192.
    pub connections_per_pod: usize,
    /// What open connections have to end by themselves when a pod is no longer served. Default 5 s, as ztunnel.
    pub drain: Duration,
    /// Threads that carry tunnels, with their own listeners and HBONE connections. Default 0: the runtime that serves a pod does.
    pub threads: usize,
    /// How long such a thread waits without sleeping for what is about to come. Default 0: it sleeps at once.
    pub busy_poll: Duration,
    /// Windows, limits and timeouts of HBONE.
    pub hbone: HboneConfig,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            hbone_port: HBONE_PORT,
            reserved_ports: vec![OUTBOUND_PORT, 15006, HBONE_PORT],
            connect_timeout: Duration::from_secs(10),
            handshakes: 256,
            connections_per_peer: 128,
            connections_per_pod: 8192,
            drain: Duration::from_secs(5),
            threads: 0,
            busy_poll: Duration::ZERO,
            hbone: HboneConfig::default(),
        }
    }
}

/// What the proxies of all pods of a node share.
pub struct Shared {
    /// The rest of the agent.
    pub mesh: Arc<dyn Mesh>,
    /// The certificates of this node's workloads.
    pub certs: CertStore,
    /// Open HBONE connections to other workloads.
    pub pool: Pools,
    /// What is counted.
    pub counters: Counters,
    /// What is open.
    pub open: OpenTunnels,
    /// The settings.
    pub config: ProxyConfig,
    pub(super) workers: Workers,
    policy: watch::Sender<u64>,
}

impl Shared {
    /// Puts the parts together. Lives in a tokio runtime, as [`CertStore`] does.
    ///
    /// # Errors
    ///
    /// Its threads cannot be started.
    pub fn new(mesh: Arc<dyn Mesh>, certs: CertStore, config: ProxyConfig) -> io::Result<Arc<Self>> {
        let pool = Pools::new(config.threads, &certs, &config.hbone);
        let workers = Workers::start(config.threads, config.busy_poll)?;
        let counters = Counters::default();
        Ok(Arc::new(Self {
            mesh,
            certs,
            pool,
            counters,
            open: OpenTunnels::default(),
            config,
            workers,
            policy: watch::Sender::new(0),
        }))
    }

    /// Makes every open inbound tunnel ask [`Mesh::decide`] again; those now refused are reset. To be called when
    /// policy has changed.
    pub fn policy_changed(&self) {
        self.policy.send_modify(|version| *version += 1);
    }

    pub(super) fn watch_policy(&self) -> watch::Receiver<u64> {
        self.policy.subscribe()
    }
}

/// A pool for each thread that carries tunnels.
pub struct Pools(Vec<Pool>);

impl Pools {
    fn new(threads: usize, certs: &CertStore, config: &HboneConfig) -> Self {
        Self((0..threads.max(1)).map(|_| Pool::new(certs.clone(), config.clone())).collect())
    }

    /// [`Pool::open`], of the calling thread's pool.
    ///
    /// # Errors
    ///
    /// As that one.
    pub async fn open(&self, destination: &Destination, request: &Request<()>) -> Result<Tunnel, OpenError> {
        self.own().open(destination, request).await
    }

    /// [`Pool::open_with`], of the calling thread's pool.
    ///
    /// # Errors
    ///
    /// As that one.
    pub async fn open_with(
        &self,
        destination: &Destination,
        request: &Request<()>,
        first: &mut FirstBytes<'_>,
    ) -> Result<Tunnel, OpenError> {
        self.own().open_with(destination, request, first).await
    }

    fn own(&self) -> &Pool {
        &self.0[workers::index() % self.0.len()]
    }

    /// Connections opened so far.
    pub fn opened(&self) -> u64 {
        self.0.iter().map(Pool::opened).sum()
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.iter().map(Pool::connections).sum()
    }

    /// [`Pool::forget_pod`], of all.
    pub(super) fn forget_pod(&self, netns_cookie: u64) {
        self.0.iter().for_each(|pool| pool.forget_pod(netns_cookie));
    }
}

/// Counters of the userspace path, for `/metrics`. A node whose traffic is all direct leaves them at 0.
#[derive(Debug, Default)]
pub struct Counters {
    /// Tunnels open now whose client is a pod of this node.
    pub outbound_open: AtomicU64,
    /// Tunnels open now whose server is a pod of this node.
    pub inbound_open: AtomicU64,
    /// Tunnels ever opened by pods of this node.
    pub outbound_opened: AtomicU64,
    /// Tunnels ever opened to pods of this node.
    pub inbound_opened: AtomicU64,
    /// Connections refused or failed, both sides.
    pub refused: AtomicU64,
    /// Bytes from client to server, both sides.
    pub bytes_sent: AtomicU64,
    /// Bytes from server to client, both sides.
    pub bytes_received: AtomicU64,
    /// TLS or HTTP/2 handshakes of peers that failed.
    pub handshakes_failed: AtomicU64,
    /// HBONE connections of peers that were turned away because their address or the pod has its share.
    pub inbound_turned_away: AtomicU64,
    /// HBONE connections that were ended because the peer broke HTTP/2's rules or a limit.
    pub inbound_abused: AtomicU64,
    /// HBONE connections open now, accepted from other workloads.
    pub inbound_connections: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts one open thing until the guard goes.
    pub(super) fn open(counter: &AtomicU64) -> OpenGuard<'_> {
        counter.fetch_add(1, Ordering::Relaxed);
        OpenGuard(counter)
    }
}

pub(super) struct OpenGuard<'a>(&'a AtomicU64);

impl Drop for OpenGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
