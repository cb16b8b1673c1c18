//! One certificate per identity, renewed before it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Ca, CaError, Compliance, PublicChain, Revocations, SpiffeId, WorkloadCert};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(150);
/// How often the files of a CA in this process are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// However short-lived the certificates, the CA is not asked more often than this.
const SHORTEST_ROTATION: Duration = Duration::from_millis(100);

/// Why there is no certificate for an identity.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertError {
    /// The CA did not sign.
    #[error("no certificate for {identity}: {}", chain(.source.as_ref()))]
    Ca {
        /// For whom.
        identity: SpiffeId,
        /// Why not.
        source: Arc<CaError>,
    },
    /// What the CA signed cannot be used.
    #[error("no certificate for {identity}: {source}")]
    Tls {
        /// For whom.
        identity: SpiffeId,
        /// Why not.
        source: rustls::Error,
    },
    /// The key could not be made.
    #[error("no key for {identity}: {problem}")]
    Key {
        /// For whom.
        identity: SpiffeId,
        /// Why not.
        problem: String,
    },
    /// The store dropped the identity meanwhile.
    #[error("no certificate for {0}: the agent no longer serves it")]
    Dropped(SpiffeId),
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {}", chain(cause)))
}

/// One line of `culvert certificates` and of the dump.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CertInfo {
    /// Whose.
    pub identity: SpiffeId,
    /// `Available` and in use, `Initializing` when the CA has not answered yet, or `Unavailable`, as [`CertInfo::error`] says:
    /// istioctl's words.
    pub status: &'static str,
    /// Whether it is now between its two times.
    pub valid: bool,
    /// Serial number, hexadecimal; empty while there is none.
    pub serial: String,
    /// RFC 3339; empty while there is none.
    pub not_before: String,
    /// RFC 3339; empty while there is none.
    pub not_after: String,
    /// Pods (leases) that use it.
    pub users: usize,
    /// Why the last attempt to get or renew it failed; empty when it did not.
    pub error: String,
}

/// Whom a mesh's certificates accept, besides the peers of their own trust domain that its roots vouch for.
#[derive(Clone, Debug, Default)]
pub struct PeerRules {
    /// Further trust domains that clients may come from.
    pub aliases: Vec<String>,
    /// Certificates that are no longer accepted.
    pub revocations: Revocations,
    /// What TLS leaves out.
    pub compliance: Compliance,
}

/// Certificates by identity. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct CertStore {
    inner: Arc<Inner>,
}

struct Inner {
    ca: Arc<Ca>,
    rules: Arc<PeerRules>,
    /// Counts up when all certificates are to be signed anew.
    renew: watch::Sender<u64>,
    entries: Mutex<HashMap<SpiffeId, Entry>>,
    /// Ends every rotation when the last clone goes.
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

struct Entry {
    state: watch::Receiver<State>,
    leases: usize,
    stop: CancellationToken,
}

#[derive(Clone, Default)]
struct State {
    current: Option<Arc<WorkloadCert>>,
    error: Option<CertError>,
}

/// Keeps an identity's certificate fetched and fresh while it lives: one per pod.
#[must_use = "the certificate is dropped with its last lease"]
pub struct CertLease {
    store: CertStore,
    identity: SpiffeId,
}

impl CertStore {
    /// A store that asks `ca`. Lives in a tokio runtime: [`CertStore::get`] and [`CertStore::lease`] spawn tasks.
    pub fn new(ca: Ca) -> Self {
        Self::with_rules(ca, PeerRules::default())
    }

    /// A store whose certificates accept peers by these rules.
    pub fn with_rules(ca: Ca, rules: PeerRules) -> Self {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let ca = Arc::new(ca);
        let renew = watch::Sender::new(0);
        tokio::spawn(watch_roots(ca.clone(), renew.clone(), stop.clone()));
        let inner = Inner {
            ca,
            renew,
            rules: Arc::new(rules),
            entries: Mutex::default(),
            stop,
            _stop_on_drop: guard,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The certificate of `identity`, fetched when there is none yet; those who ask meanwhile share the one request.
    ///
    /// A certificate that cannot be renewed is given out until it ends. While the CA fails, this fails at once with
    /// the CA's answer to the last attempt; attempts go on in the background.
    pub async fn get(&self, identity: &SpiffeId) -> Result<Arc<WorkloadCert>, CertError> {
        let mut state = self.state(identity, 0);
        let now = SystemTime::now();
        let known = |state: &State| {
            let valid = state.current.as_ref().filter(|cert| cert.not_after() > now);
            valid.cloned().map(Ok).or_else(|| state.error.clone().map(Err))
        };
        let state = state
            .wait_for(|state| known(state).is_some())
            .await
            .map_err(|_| CertError::Dropped(identity.clone()))?;
        known(&state).unwrap_or_else(|| Err(CertError::Dropped(identity.clone())))
    }

    /// Fetches the certificate in the background and keeps it fresh until the lease (and every other one of the same
    /// identity) is dropped. An identity without lease is dropped when its certificate is half through.
    pub fn lease(&self, identity: &SpiffeId) -> CertLease {
        self.state(identity, 1);
        CertLease { store: self.clone(), identity: identity.clone() }
    }

    /// What the store holds, by identity.
    pub fn list(&self) -> Vec<CertInfo> {
        let now = SystemTime::now();
        let mut list: Vec<CertInfo> = self
            .entries()
            .iter()
            .map(|(identity, entry)| {
                let state = entry.state.borrow();
                let cert = state.current.as_ref();
                CertInfo {
                    identity: identity.clone(),
                    status: match (cert.is_some(), state.error.is_some()) {
                        (true, _) => "Available",
                        (false, false) => "Initializing",
                        (false, true) => "Unavailable",
                    },
                    valid: cert.is_some_and(|c| (c.not_before()..c.not_after()).contains(&now)),
                    serial: cert.map_or_else(String::new, |c| c.serial().to_owned()),
                    not_before: cert.map_or_else(String::new, |c| text(c.not_before())),
                    not_after: cert.map_or_else(String::new, |c| text(c.not_after())),
                    users: entry.leases,
                    error: state.error.as_ref().map_or_else(String::new, ToString::to_string),
                }
            })
            .collect();
        list.sort_by(|a, b| a.identity.cmp(&b.identity));
        list
    }

    /// The certificates behind [`CertStore::list`], by identity; those that have none are left out.
    pub fn chains(&self) -> HashMap<SpiffeId, PublicChain> {
        let chain = |entry: &Entry| entry.state.borrow().current.as_ref().map(|cert| cert.public().clone());
        self.entries().iter().filter_map(|(id, entry)| Some((id.clone(), chain(entry)?))).collect()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SpiffeId, Entry>> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, identity: &SpiffeId, leases: usize) -> watch::Receiver<State> {
        let mut entries = self.entries();
        let entry = entries.entry(identity.clone()).or_insert_with(|| {
            let (sender, state) = watch::channel(State::default());
            let stop = self.inner.stop.child_token();
            let rotation = Rotation {
                ca: self.inner.ca.clone(),
                rules: self.inner.rules.clone(),
                renew: self.inner.renew.subscribe(),
                store: Arc::downgrade(&self.inner),
                identity: identity.clone(),
                sender,
            };
            let stopped = stop.clone();
            tokio::spawn(async move { stopped.run_until_cancelled(rotation.run()).await });
            Entry { state, leases: 0, stop }
        });
        entry.leases += leases;
        entry.state.clone()
    }
}

impl Drop for CertLease {
    fn drop(&mut self) {
        let mut entries = self.store.entries();
        if let Some(entry) = entries.get_mut(&self.identity) {
            entry.leases = entry.leases.saturating_sub(1);
            if entry.leases == 0
                && let Some(entry) = entries.remove(&self.identity)
            {
                entry.stop.cancel();
            }
        }
    }
}

/// RFC 3339.
fn text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |t| t.to_string())
}

/// Other roots must not wait for half of a certificate's life.
async fn watch_roots(ca: Arc<Ca>, renew: watch::Sender<u64>, stop: CancellationToken) {
    let look = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if ca.refresh() {
                renew.send_modify(|count| *count += 1);
            }
        }
    };
    stop.run_until_cancelled(look).await;
}

/// The task behind one identity.
struct Rotation {
    ca: Arc<Ca>,
    rules: Arc<PeerRules>,
    renew: watch::Receiver<u64>,
    store: std::sync::Weak<Inner>,
    identity: SpiffeId,
    sender: watch::Sender<State>,
}

impl Rotation {
    async fn run(mut self) {
        let mut retry = FIRST_RETRY;
        let mut failing = false;
        loop {
            let wait = match self.fetch().await {
                Ok(cert) => {
                    retry = FIRST_RETRY;
                    if std::mem::take(&mut failing) {
                        tracing::info!(identity = %self.identity, "the certificate is renewed again");
                    }
                    let wait = until_rotation(&cert, SystemTime::now(), rand::random());
                    tracing::debug!(identity = %self.identity, serial = cert.serial(), ?wait, "got a certificate");
                    self.sender.send_replace(State { current: Some(Arc::new(cert)), error: None });
                    wait
                }
                Err(error) => {
                    failing = true;
                    let wait = self.pause(retry);
                    self.say(&error, wait);
                    self.sender.send_modify(|state| state.error = Some(error));
                    retry = (retry * 2).min(LAST_RETRY);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The sender lives as long as the store, which stops this task.
                Ok(()) = self.renew.changed() => {}
            }
            if self.drop_unused() {
                return;
            }
        }
    }

    /// How long to wait after a failure: as time goes by less often, but often enough that a certificate in use does not end in
    /// between.
    fn pause(&self, retry: Duration) -> Duration {
        let end = self.sender.borrow().current.as_ref().map(|cert| cert.not_after());
        let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok());
        let most = left.map_or(LAST_RETRY, |left| (left / 10).max(FIRST_RETRY));
        retry.min(most).mul_f64(rand::random_range(0.8..1.2))
    }

    fn say(&self, error: &CertError, retry_in: Duration) {
        let state = self.sender.borrow();
        let valid = state.current.as_ref().filter(|cert| cert.not_after() > SystemTime::now());
        match valid {
            Some(cert) => tracing::warn!(
                %error, ?retry_in, valid_until = text(cert.not_after()),
                "cannot renew a certificate; the one before stays in use"
            ),
            None => tracing::warn!(%error, ?retry_in, "cannot get a certificate"),
        }
    }

    async fn fetch(&self) -> Result<WorkloadCert, CertError> {
        let identity = || self.identity.clone();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| CertError::Key { identity: identity(), problem: error.to_string() })?;
        let signed = self
            .ca
            .sign(&self.identity, &key)
            .await
            .map_err(|source| CertError::Ca { identity: identity(), source: Arc::new(source) })?;
        WorkloadCert::new(identity(), &key, signed, &self.rules)
            .map_err(|source| CertError::Tls { identity: identity(), source })
    }

    fn drop_unused(&self) -> bool {
        let Some(store) = self.store.upgrade() else { return true };
        let mut entries = store.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = entries.get(&self.identity).is_none_or(|entry| entry.leases == 0);
        if unused {
            entries.remove(&self.identity);
        }
        unused
    }
}

/// Half of what is left, give or take a tenth of it, so that a node's certificates do not all renew at once.
/// `random` is uniform in 0..1.
fn until_rotation(cert: &WorkloadCert, now: SystemTime, random: f64) -> Duration {
    let left = cert.not_after().duration_since(now).unwrap_or_default();
    left.mul_f64(0.45 + 0.1 * random).max(SHORTEST_ROTATION)
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT_TTL, EmbeddedCa};
    use super::*;

    fn store(ttl: Duration) -> (CertStore, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (CertStore::new(Ca::Embedded(EmbeddedCa::open(dir.path(), ttl).unwrap())), dir)
    }

    fn id() -> SpiffeId {
        SpiffeId::new("cluster.local", "test", "default")
    }

    #[tokio::test]
    async fn those_who_ask_at_once_get_one_certificate() {
        let (store, _dir) = store(DEFAULT_TTL);
        let (id, other) = (id(), SpiffeId::new("cluster.local", "test", "other"));
        let (a, b, c) = tokio::join!(store.get(&id), store.get(&id), store.get(&other));
        assert_eq!(a.unwrap().serial(), b.unwrap().serial());
        c.unwrap();
        assert_eq!(store.list().len(), 2);
    }

    #[tokio::test]
    async fn a_certificate_is_renewed_while_leased_and_dropped_after() {
        let (store, _dir) = store(Duration::from_secs(2));
        let lease = store.lease(&id());
        let first = store.get(&id()).await.unwrap().serial().to_owned();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
        while store.get(&id()).await.unwrap().serial() == first {
            assert!(tokio::time::Instant::now() < deadline, "not renewed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(lease);
        assert!(store.list().is_empty());
    }
}
