//! What the kernel reports: told to the observer, and what it cannot end by itself is ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_common::{Counter, FlowEvent, Hook, Path};
use tokio::sync::watch;

use super::observe::Observer;
use super::view::State;
use crate::bpf::{EventStream, Kernel};
use crate::model::Snapshot;
use crate::pods::PodSockets;

/// How long to wait after events could not be read.
const AGAIN: Duration = Duration::from_secs(1);
/// How long events wait for the first names at most.
const FIRST_NAMES: Duration = Duration::from_secs(5);

/// Connections that no entry of `connections` stands for: how many the programs counted, and how many were dealt with. An
/// event may be lost, and the two then differ.
#[derive(Default)]
pub(super) struct Untracked {
    dealt_with: AtomicU64,
}

impl Untracked {
    /// As if all that happened before had been dealt with.
    pub(super) fn new(kernel: &Kernel) -> Self {
        Self { dealt_with: AtomicU64::new(kernel.maps.counter(Counter::Untracked)) }
    }

    /// How many are left.
    pub(super) fn left(&self, kernel: &Kernel) -> u64 {
        kernel.maps.counter(Counter::Untracked).saturating_sub(self.dealt_with.load(Ordering::Relaxed))
    }

    /// They have been looked for among all sockets.
    pub(super) fn settle(&self, number: u64) {
        self.dealt_with.fetch_add(number, Ordering::Relaxed);
    }
}

/// Reads events for as long as the process lives.
pub(super) fn read(
    kernel: &Arc<Kernel>,
    observer: Arc<Observer>,
    mut names: watch::Receiver<Arc<Snapshot>>,
    sockets: Arc<PodSockets>,
    untracked: Arc<Untracked>,
    status: watch::Sender<State>,
) -> Result<()> {
    let mut events = EventStream::open(kernel).context("opening the event ring")?;
    tokio::spawn(async move {
        // What happened while no agent ran is told by its names, if they are known soon.
        let _ = tokio::time::timeout(FIRST_NAMES, names.changed()).await;
        let mut ear = Ear::new(status);
        loop {
            let result = events.read(|mut event| {
                if event.hook == Hook::Untracked as u32 {
                    end(&mut event, &sockets, &untracked);
                } else if event.socket != 0 {
                    give_up(&event, &sockets);
                }
                observer.kernel(event);
            });
            let pause = ear.heard(result.await).unwrap_or(GATHER);
            tokio::time::sleep(pause).await;
        }
    });
    Ok(())
}

/// Events gather for so long before they are read again: the kernel wakes the agent for the first one only, not once or more for
/// each connection. The ring holds some 25,000.
const GATHER: Duration = Duration::from_millis(10);

/// Whether events can be read. Flow records and the ends of connections without room depend on it.
struct Ear {
    status: watch::Sender<State>,
    deaf: bool,
}

impl Ear {
    fn new(status: watch::Sender<State>) -> Self {
        Self { status, deaf: false }
    }

    /// Tells of a change; returns how long to wait before the next try.
    fn heard(&mut self, result: io::Result<()>) -> Option<Duration> {
        let error = result.err();
        if error.is_some() != self.deaf {
            self.deaf = error.is_some();
            match &error {
                Some(error) => {
                    tracing::error!(%error, "the event ring cannot be read: flows are lost; trying again")
                }
                None => tracing::info!("the event ring is read again"),
            }
            self.status.send_modify(|state| state.deaf = error.as_ref().map(ToString::to_string));
        }
        error.map(|_| AGAIN)
    }
}

/// Destroys the connection that the programs could not keep in sight; the event becomes the record of that.
fn end(event: &mut FlowEvent, sockets: &PodSockets, untracked: &Untracked) {
    let (client, server) = (event.tuple.source().into(), event.tuple.destination().into());
    match sockets.destroy(event.netns, event.socket, server, client) {
        Ok(_) => untracked.settle(1),
        // It is found again among all sockets.
        Err(error) => {
            tracing::warn!(%client, %server, %error, "a connection without an entry cannot be ended yet")
        }
    }
    event.hook = Hook::Destroy as u32;
}

/// Destroys a socket whose connection the programs keep from opening: its app need not wait for a timeout.
fn give_up(event: &FlowEvent, sockets: &PodSockets) {
    // Tunnels lead to the agent's listener, which ends them.
    if event.path != Path::Direct as u32 {
        return;
    }
    let (client, server) = (event.tuple.source().into(), event.tuple.destination().into());
    if let Err(error) = sockets.destroy(event.netns, event.socket, client, server) {
        tracing::debug!(%client, %server, %error, "a connection that cannot open is left to its timeout");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_hears_nothing_says_so_until_it_hears_again() {
        let (status, state) = watch::channel(State::default());
        let mut ear = Ear::new(status);
        assert_eq!(ear.heard(Ok(())), None);
        for _ in 0..2 {
            assert_eq!(ear.heard(Err(io::Error::from_raw_os_error(9))), Some(AGAIN));
            assert!(state.borrow().deaf.as_ref().is_some_and(|why| why.contains("Bad file descriptor")));
        }
        assert_eq!(ear.heard(Ok(())), None);
        assert_eq!(state.borrow().deaf, None);
    }
}
