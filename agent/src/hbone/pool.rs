//! Open HBONE connections, shared by the tunnels between the same two ends.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, StatusCode};
use tokio::time::timeout;

use super::client::{self, Opened, explain_h2};
use super::{HboneConfig, OpenError, Outbox, REASON_HEADER};
use crate::identity::{CertStore, Expected, Proof, SpiffeId};

/// Why a connection ends whose peer is on a revocation list.
pub(crate) const REVOKED: &str = "the peer's certificate has been revoked";

/// The two ends of a connection.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Whose certificate is shown.
    pub source: SpiffeId,
    /// The pod's own address, of the family of `address`.
    pub source_ip: IpAddr,
    /// The pod's network namespace.
    pub netns: Arc<OwnedFd>,
    /// The namespace's cookie.
    pub netns_cookie: u64,
    /// Who must answer.
    pub expected: Expected,
    /// The HBONE listener.
    pub address: SocketAddr,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    source: SpiffeId,
    source_ip: IpAddr,
    netns_cookie: u64,
    expected: Expected,
    address: SocketAddr,
}

/// A CONNECT that was answered with 200. The connection counts it until it is dropped.
pub struct Tunnel {
    /// To the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub recv: RecvStream,
    /// What waits to be sent to the peer, of all tunnels.
    pub outbox: Outbox,
    /// Its share of the connection.
    pub(crate) slot: Slot,
}

/// How often a tunnel that was turned away on a connection of its own is tried again.
const TURNED_AWAY: u32 = 3;

/// A request that led to no tunnel.
struct Failed {
    error: OpenError,
    /// The peer says, by GOAWAY, that it has not looked at it (RFC 9113, 6.8).
    unseen: bool,
    /// Bytes of the app have gone to the peer, and what it did with them is not known.
    ambiguous: bool,
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        Self { error, unseen: false, ambiguous: false }
    }
}

/// What the app has said before its tunnel is open. Asked when the request is about to leave; must answer the same when it is asked
/// again, and may have more.
pub type FirstBytes<'a> = dyn FnMut() -> Bytes + Send + 'a;

/// Open connections by source and destination. Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    certs: CertStore,
    config: HboneConfig,
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
    opened: AtomicU64,
}

#[derive(Default)]
struct Entry {
    connections: Mutex<Vec<Arc<Connection>>>,
    /// Held by whoever opens a connection; the number of attempts so far and how the last one failed.
    connecting: tokio::sync::Mutex<()>,
    attempts: AtomicU64,
    failure: Mutex<Option<OpenError>>,
}

struct Connection {
    send: SendRequest<Bytes>,
    outbox: Outbox,
    tunnels: AtomicUsize,
    dead: AtomicBool,
    idle_since: Mutex<Instant>,
    /// Our certificate's end: the connection outlives it, but takes no more tunnels.
    not_after: SystemTime,
    /// Why it was ended from here, when it was.
    end: OnceLock<&'static str>,
}

/// One tunnel's share of a connection.
pub(crate) struct Slot(Arc<Connection>);

impl Slot {
    /// Why the connection was ended from here, when it was.
    pub(crate) fn end(&self) -> Option<&'static str> {
        self.0.end.get().copied()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.tunnels.fetch_sub(1, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// An empty pool whose connections show certificates from `certs`.
    pub fn new(certs: CertStore, config: HboneConfig) -> Self {
        let (entries, opened) = Default::default();
        Self { inner: Arc::new(Inner { certs, config, entries, opened }) }
    }

    /// Connections opened so far.
    pub fn opened(&self) -> u64 {
        self.inner.opened.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        let entries = lock(&self.inner.entries);
        entries.values().map(|entry| lock(&entry.connections).len()).sum()
    }

    /// [`Pool::open_with`] without first bytes.
    ///
    /// # Errors
    ///
    /// [`OpenError`]
    pub async fn open(&self, destination: &Destination, request: &Request<()>) -> Result<Tunnel, OpenError> {
        self.open_with(destination, request, &mut Bytes::new).await
    }

    /// Sends `request`, a CONNECT, to `destination` and waits for the answer. What `first` has goes right behind it, and not a
    /// round trip later: the peer hands it on when it has connected (RFC 9113, 8.5).
    ///
    /// Takes a connection that has room; opens one when there is none, once for all who ask meanwhile. A tunnel on a
    /// connection that turns out to be broken is tried once more on a new one, as long as no byte of the app can have
    /// arrived. So is one that the peer turned away unseen, by GOAWAY, for it may have been overtaken on its way.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; [`OpenError::Lost`] when bytes of the app may have arrived.
    pub async fn open_with(
        &self,
        destination: &Destination,
        request: &Request<()>,
        first: &mut FirstBytes<'_>,
    ) -> Result<Tunnel, OpenError> {
        let mut left = TURNED_AWAY;
        loop {
            let (slot, fresh) = self.slot(destination).await?;
            match self.request(slot, destination.address, request, first).await {
                Err(Failed { error: OpenError::Broken { address, problem }, ambiguous: true, .. }) => {
                    return Err(OpenError::Lost { address, problem });
                }
                Err(Failed { error: OpenError::Broken { problem, .. }, unseen, .. })
                    if !fresh || (unseen && left > 0) =>
                {
                    left -= u32::from(fresh);
                    tracing::debug!(address = %destination.address, problem, "pooled connection is broken");
                }
                result => return result.map_err(|failed| failed.error),
            }
        }
    }

    /// Lets go of the connections of a pod that is no longer served: each closes when its last tunnel has ended. They
    /// would keep the pod's network namespace alive.
    pub fn forget_pod(&self, netns_cookie: u64) {
        lock(&self.inner.entries).retain(|key, entry| {
            let other = key.netns_cookie != netns_cookie;
            if !other {
                lock(&entry.connections).clear();
            }
            other
        });
    }

    async fn request(
        &self,
        slot: Slot,
        address: SocketAddr,
        request: &Request<()>,
        first: &mut FirstBytes<'_>,
    ) -> Result<Tunnel, Failed> {
        let mut sent = false;
        let answer = async {
            let mut send = slot.0.send.clone().ready().await?;
            let (response, mut send) = send.send_request(request.clone(), false)?;
            let first = first();
            if !first.is_empty() {
                sent = true;
                send.send_data(first, false)?;
            }
            Ok::<_, h2::Error>((response.await?, send))
        };
        let limit = self.inner.config.response_timeout;
        let answer = timeout(limit, answer).await;
        let broken = |problem: String| {
            slot.0.dead.store(true, Ordering::Relaxed);
            OpenError::Broken { address, problem }
        };
        let (response, send) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let turned_away = error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
                let unseen =
                    error.is_remote() && error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
                let ambiguous = sent && !unseen && !turned_away;
                return Err(Failed { error: broken(explain_h2(&error)), unseen, ambiguous });
            }
            Err(_) => {
                let error = broken(format!("no answer to CONNECT within {limit:?}"));
                return Err(Failed { error, unseen: false, ambiguous: sent });
            }
        };
        if response.status() == StatusCode::OK {
            let outbox = slot.0.outbox.clone();
            return Ok(Tunnel { send, recv: response.into_body(), outbox, slot });
        }
        let reason = response.headers().get(REASON_HEADER).and_then(|value| value.to_str().ok());
        Err(OpenError::Refused {
            address,
            status: response.status(),
            reason: reason.unwrap_or_default().to_owned(),
        }
        .into())
    }

    /// A share of a connection, and whether it was opened for this call.
    async fn slot(&self, destination: &Destination) -> Result<(Slot, bool), OpenError> {
        let key = Key {
            source: destination.source.clone(),
            source_ip: destination.source_ip,
            netns_cookie: destination.netns_cookie,
            expected: destination.expected.clone(),
            address: destination.address,
        };
        let entry = lock(&self.inner.entries).entry(key.clone()).or_default().clone();
        let limit = self.inner.config.client_streams;
        if let Some(slot) = entry.take(limit) {
            return Ok((slot, false));
        }
        let attempts = entry.attempts.load(Ordering::Acquire);
        let _connecting = entry.connecting.lock().await;
        if let Some(slot) = entry.take(limit) {
            return Ok((slot, false));
        }
        // An attempt that ended while we waited speaks for us too: many callers must not fail one after the other.
        if entry.attempts.load(Ordering::Acquire) != attempts
            && let Some(error) = lock(&entry.failure).clone()
        {
            return Err(error);
        }
        // Boxed: most tunnels find a connection, and none is to carry the room for opening one along.
        let result = Box::pin(self.connect(destination)).await;
        *lock(&entry.failure) = result.as_ref().err().cloned();
        entry.attempts.fetch_add(1, Ordering::Release);
        match result {
            Ok((opened, not_after)) => Ok((self.add(&entry, key, opened, not_after), true)),
            Err(error) => {
                self.inner.forget(&key);
                Err(error)
            }
        }
    }

    async fn connect(&self, destination: &Destination) -> Result<(Opened, SystemTime), OpenError> {
        let cert = self.inner.certs.get(&destination.source).await?;
        let opened = client::connect(destination, &cert, &self.inner.config).await?;
        self.inner.opened.fetch_add(1, Ordering::Relaxed);
        Ok((opened, cert.not_after()))
    }

    fn add(&self, entry: &Arc<Entry>, key: Key, opened: Opened, not_after: SystemTime) -> Slot {
        let connection = Arc::new(Connection {
            send: opened.send,
            outbox: Outbox::new(self.inner.config.outbox),
            tunnels: AtomicUsize::new(1),
            dead: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
            not_after,
            end: OnceLock::new(),
        });
        lock(&entry.connections).push(connection.clone());
        let driver = Driver {
            pool: Arc::downgrade(&self.inner),
            entry: Arc::downgrade(entry),
            key,
            connection: Arc::downgrade(&connection),
            config: self.inner.config.clone(),
            proof: opened.proof,
        };
        tokio::spawn(driver.run(opened.connection));
        Slot(connection)
    }
}

impl Entry {
    fn take(&self, limit: usize) -> Option<Slot> {
        let now = SystemTime::now();
        let mut connections = lock(&self.connections);
        connections.retain(|c| !c.dead.load(Ordering::Relaxed) && c.not_after > now);
        let room = |c: &&Arc<Connection>| {
            c.tunnels.load(Ordering::Acquire) < limit.min(c.send.current_max_send_streams()).max(1)
        };
        let connection = connections.iter().find(room)?;
        connection.tunnels.fetch_add(1, Ordering::Relaxed);
        Some(Slot(connection.clone()))
    }
}

impl Inner {
    /// Drops the entry of `key` when it has no connection and nobody is about to open one.
    fn forget(&self, key: &Key) {
        let mut entries = lock(&self.entries);
        let unused = entries.get(key).is_some_and(|entry| {
            // This map's reference and at most the caller's: those who wait for a connection hold one each.
            Arc::strong_count(entry) <= 2 && lock(&entry.connections).is_empty()
        });
        if unused {
            entries.remove(key);
        }
    }
}

/// The task that polls a connection until it ends.
struct Driver {
    pool: Weak<Inner>,
    entry: Weak<Entry>,
    key: Key,
    /// Weak: a connection with neither pool entry nor tunnel closes itself.
    connection: Weak<Connection>,
    config: HboneConfig,
    proof: Proof,
}

impl Driver {
    async fn run(
        self,
        mut h2: h2::client::Connection<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, Bytes>,
    ) {
        let pings = self.config.watch_pings(h2.ping_pong());
        let mut pings = std::pin::pin!(pings);
        let mut idle = tokio::time::interval(self.config.idle / 4);
        let end = loop {
            tokio::select! {
                result = &mut h2 => break result.map_or_else(|error| error.to_string(), |()| String::new()),
                problem = &mut pings => break problem,
                () = self.proof.revoked() => {
                    if let Some(connection) = self.connection.upgrade() {
                        let _ = connection.end.set(REVOKED);
                    }
                    break REVOKED.to_owned();
                }
                _ = idle.tick() => self.retire_idle(),
            }
        };
        if !end.is_empty() {
            tracing::debug!(address = %self.key.address, peer = %self.key.expected, end, "HBONE connection ended");
        }
        if let Some(connection) = self.connection.upgrade() {
            connection.dead.store(true, Ordering::Relaxed);
        }
        self.remove(|connection| connection.dead.load(Ordering::Relaxed));
    }

    fn retire_idle(&self) {
        let Some(own) = self.connection.upgrade() else { return };
        self.remove(|connection| {
            std::ptr::eq(connection, &*own)
                && connection.tunnels.load(Ordering::Acquire) == 0
                && lock(&connection.idle_since).elapsed() >= self.config.idle
        });
    }

    fn remove(&self, unwanted: impl Fn(&Connection) -> bool) {
        let Some(entry) = self.entry.upgrade() else { return };
        lock(&entry.connections).retain(|connection| !unwanted(connection));
        if let Some(pool) = self.pool.upgrade() {
            pool.forget(&self.key);
        }
    }
}
