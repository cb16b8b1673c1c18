//! Values of Services and Namespaces that have no effect are worth a line in the log, once for each.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{Note, Snapshot};

/// Follows the snapshots for as long as there are any.
pub(super) async fn follow(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut told: HashSet<Note> = HashSet::new();
    loop {
        let services = snapshots.borrow_and_update().mesh.services.clone();
        let notes: HashSet<Note> = services.iter().flat_map(|service| service.choice.notes.clone()).collect();
        for note in notes.difference(&told) {
            tracing::warn!("{note}");
        }
        told = notes;
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}
