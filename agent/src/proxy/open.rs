//! The tunnels that are open now, for whoever asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Counters, TunnelFlow};

/// One of them.
#[derive(Debug)]
pub struct OpenTunnel {
    /// As it was reported when it opened.
    pub flow: TunnelFlow,
    /// When that was.
    pub opened: SystemTime,
    /// From client to server, so far.
    pub bytes_sent: AtomicU64,
    /// From server to client, so far.
    pub bytes_received: AtomicU64,
}

/// All of them, by a number of no meaning.
#[derive(Debug, Default)]
pub struct OpenTunnels {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<OpenTunnel>>>,
}

impl OpenTunnels {
    /// Those that are open at this moment, in no order.
    pub fn list(&self) -> Vec<Arc<OpenTunnel>> {
        self.lock().values().cloned().collect()
    }

    /// One more, until the entry is dropped.
    pub(super) fn enter(&self, flow: TunnelFlow) -> OpenEntry<'_> {
        let tunnel = Arc::new(OpenTunnel {
            flow,
            opened: SystemTime::now(),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, tunnel.clone());
        OpenEntry { all: self, number, tunnel }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenTunnel>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tunnel's place among the open ones.
pub(super) struct OpenEntry<'a> {
    all: &'a OpenTunnels,
    number: u64,
    pub(super) tunnel: Arc<OpenTunnel>,
}

impl Drop for OpenEntry<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
    }
}

/// Bytes of one direction: of all tunnels, and of one.
#[derive(Clone, Copy)]
pub(super) struct Count<'a> {
    pub(super) all: &'a AtomicU64,
    pub(super) own: &'a AtomicU64,
}

impl Count<'_> {
    pub(super) fn add(self, n: u64) {
        Counters::add(self.all, n);
        Counters::add(self.own, n);
    }

    pub(super) fn own(self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }
}
