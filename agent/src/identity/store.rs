//! Certificates in memory, one per identity: fetched once, renewed at half life, swapped without closing a connection.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rand::RngExt;
use serde::Serialize;
use tokio::sync::Mutex as AsyncMutex;

use super::{Ca, Certified, SpiffeId};

/// How often due renewals are looked for; also the rest after a failed one.
const TICK: Duration = Duration::from_secs(1);
/// Longest rest between failed renewals.
const MAX_BACKOFF: Duration = Duration::from_secs(150);

struct Slot {
    current: Arc<Certified>,
    renew_at: SystemTime,
    failures: u32,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct CertStore {
    inner: Arc<Inner>,
}

struct Inner {
    ca: Ca,
    ttl: Duration,
    slots: Mutex<HashMap<SpiffeId, Slot>>,
    /// One request to the CA at a time for each identity that has nothing yet.
    fetching: AsyncMutex<()>,
}

/// A line of `culvert certificates`.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateRow {
    /// SPIFFE id.
    pub identity: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
}

impl CertStore {
    /// An empty store; `ttl` is the lifetime asked for. Starts the task that renews.
    pub fn new(ca: Ca, ttl: Duration) -> Self {
        let inner = Inner { ca, ttl, slots: Mutex::default(), fetching: AsyncMutex::default() };
        let store = Self { inner: Arc::new(inner) };
        let weak = Arc::downgrade(&store.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                let Some(inner) = weak.upgrade() else { return };
                inner.renew_due().await;
            }
        });
        store
    }

    /// Makes sure that there is a valid certificate for `id`.
    ///
    /// # Errors
    ///
    /// What the CA or the certificate failed with.
    pub async fn ensure(&self, id: &SpiffeId) -> Result<(), String> {
        self.certificate(id).await.map(drop)
    }

    /// The certificate of `id`, fetched when there is none.
    ///
    /// # Errors
    ///
    /// What the CA or the certificate failed with.
    pub async fn certificate(&self, id: &SpiffeId) -> Result<Arc<Certified>, String> {
        if let Some(current) = self.inner.valid(id) {
            return Ok(current);
        }
        let _one = self.inner.fetching.lock().await;
        if let Some(current) = self.inner.valid(id) {
            return Ok(current);
        }
        self.inner.fetch(id).await
    }

    /// Forgets certificates of identities that no local pod has any more.
    pub fn retain(&self, used: &HashSet<SpiffeId>) {
        self.inner.lock().retain(|id, _| used.contains(id));
    }

    /// For the CLI.
    pub fn rows(&self) -> Vec<CertificateRow> {
        let time = |t: SystemTime| jiff::Timestamp::try_from(t).map(|t| t.to_string()).unwrap_or_default();
        let row = |slot: &Slot| CertificateRow {
            identity: slot.current.id().to_string(),
            serial: slot.current.serial.clone(),
            not_before: time(slot.current.not_before),
            not_after: time(slot.current.not_after),
        };
        let mut rows: Vec<_> = self.inner.lock().values().map(row).collect();
        rows.sort_by(|a, b| a.identity.cmp(&b.identity));
        rows
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn valid(&self, id: &SpiffeId) -> Option<Arc<Certified>> {
        let slots = self.lock();
        let slot = slots.get(id)?;
        (slot.current.not_after > SystemTime::now()).then(|| slot.current.clone())
    }

    async fn fetch(&self, id: &SpiffeId) -> Result<Arc<Certified>, String> {
        let issued = self.ca.issue(id, self.ttl).await.map_err(|e| e.to_string())?;
        let certified = Arc::new(Certified::new(id.clone(), issued).map_err(|e| e.to_string())?);
        let slot = Slot { renew_at: half_life(&certified), current: certified.clone(), failures: 0 };
        self.lock().insert(id.clone(), slot);
        Ok(certified)
    }

    async fn renew_due(&self) {
        let now = SystemTime::now();
        let due: Vec<SpiffeId> =
            self.lock().iter().filter(|(_, slot)| slot.renew_at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            match self.fetch(&id).await {
                Ok(_) => tracing::info!(identity = %id, "renewed certificate"),
                Err(error) => self.put_off(&id, &error),
            }
        }
    }

    /// The old certificate stays while it is valid.
    fn put_off(&self, id: &SpiffeId, error: &str) {
        if let Some(slot) = self.lock().get_mut(id) {
            slot.failures += 1;
            let rest = TICK.saturating_mul(1 << slot.failures.min(8)).min(MAX_BACKOFF);
            slot.renew_at = SystemTime::now() + rest;
            tracing::warn!(identity = %id, error, ?rest, "cannot renew certificate; the old one stays while it is valid");
        }
    }
}

/// Half of the lifetime, give or take a tenth, so that identities do not renew all at once.
fn half_life(certified: &Certified) -> SystemTime {
    let now = SystemTime::now();
    let left = certified.not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(rand::rng().random_range(0.45..0.55))
}
