//! Who is connected to a pod, and how much of its agent one address may have.
//!
//! Whoever can reach the pod can begin a handshake: when too many are going on, the oldest of the address that has most
//! of them ends, so that a peer who finishes its own is not kept waiting by peers that do not.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Handshakes that are going on.
    pub(super) handshakes: usize,
    /// Connections from one address, with those whose handshake is going on.
    pub(super) per_peer: usize,
    /// Connections from all addresses.
    pub(super) per_pod: usize,
}

pub(super) struct Guests {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: HashMap<IpAddr, Peer>,
    connections: usize,
    handshakes: usize,
    next: u64,
}

#[derive(Default)]
struct Peer {
    connections: usize,
    /// The oldest first.
    handshakes: VecDeque<(u64, CancellationToken)>,
}

/// One connection's place; free again when dropped.
pub(super) struct Guest {
    guests: Arc<Guests>,
    ip: IpAddr,
    number: u64,
    hurry: CancellationToken,
}

impl Guests {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `ip` whose handshake begins.
    ///
    /// # Errors
    ///
    /// There is none left for that address, or none at all.
    pub(super) fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Guest, String> {
        let mut state = self.lock();
        let Limits { handshakes, per_peer, per_pod } = self.limits;
        if state.connections >= per_pod {
            return Err(format!("the pod has {per_pod} HBONE connections already"));
        }
        if state.peers.get(&ip).is_some_and(|peer| peer.connections >= per_peer) {
            return Err(format!("{ip} has {per_peer} HBONE connections to the pod already"));
        }
        if state.handshakes >= handshakes {
            state.end_a_handshake();
        }
        let (number, hurry) = (state.next, CancellationToken::new());
        state.next += 1;
        state.connections += 1;
        state.handshakes += 1;
        let peer = state.peers.entry(ip).or_default();
        peer.connections += 1;
        peer.handshakes.push_back((number, hurry.clone()));
        Ok(Guest { guests: self.clone(), ip, number, hurry })
    }
}

impl State {
    /// The oldest of the address that has most; among equals the oldest of all.
    fn end_a_handshake(&mut self) {
        let oldest = |peer: &Peer| peer.handshakes.front().map_or(u64::MAX, |(number, _)| *number);
        let greediest = self
            .peers
            .values_mut()
            .max_by_key(|peer| (peer.handshakes.len(), std::cmp::Reverse(oldest(peer))));
        if let Some((_, hurry)) = greediest.and_then(|peer| peer.handshakes.pop_front()) {
            self.handshakes -= 1;
            hurry.cancel();
        }
    }

    fn end_of_handshake(&mut self, ip: IpAddr, number: u64) {
        let Some(peer) = self.peers.get_mut(&ip) else { return };
        let before = peer.handshakes.len();
        peer.handshakes.retain(|(other, _)| *other != number);
        self.handshakes -= before - peer.handshakes.len();
    }
}

impl Guest {
    /// Ends when the handshake must make room for another.
    pub(super) async fn hurried(&self) {
        self.hurry.cancelled().await;
    }

    /// The handshake is over.
    pub(super) fn arrived(&self) {
        self.guests.lock().end_of_handshake(self.ip, self.number);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut state = self.guests.lock();
        state.end_of_handshake(self.ip, self.number);
        state.connections -= 1;
        if let Some(peer) = state.peers.get_mut(&self.ip) {
            peer.connections -= 1;
            if peer.connections == 0 {
                state.peers.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn the_greediest_address_makes_room() {
        let guests = Guests::new(Limits { handshakes: 4, per_peer: 9, per_pod: 9 });
        let honest = guests.admit(ip(1)).unwrap();
        let greedy: Vec<_> = (0..3).map(|_| guests.admit(ip(2)).unwrap()).collect();
        let late = guests.admit(ip(3)).unwrap();
        let hurried: Vec<_> = greedy.iter().map(|guest| guest.hurry.is_cancelled()).collect();
        assert_eq!(hurried, [true, false, false], "its oldest");
        assert!(!honest.hurry.is_cancelled() && !late.hurry.is_cancelled());
        honest.arrived();
        let _fifth = guests.admit(ip(2)).unwrap();
        assert!(!greedy[1].hurry.is_cancelled(), "a finished handshake is no handshake");
    }

    #[test]
    fn places_are_counted_by_address_and_free_again() {
        let guests = Guests::new(Limits { handshakes: 9, per_peer: 2, per_pod: 3 });
        let first = guests.admit(ip(1)).unwrap();
        let _second = guests.admit(ip(1)).unwrap();
        first.arrived();
        assert!(guests.admit(ip(1)).is_err_and(|text| text.starts_with("10.0.0.1 has 2")));
        let third = guests.admit(ip(2)).unwrap();
        assert!(guests.admit(ip(3)).is_err_and(|text| text.starts_with("the pod has 3")));
        drop((first, third));
        assert!(guests.admit(ip(1)).is_ok());
        let state = guests.lock();
        assert_eq!((state.connections, state.handshakes, state.peers.len()), (1, 1, 1));
    }
}
