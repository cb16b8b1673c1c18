//! Connections that a pod had before it joined the mesh. No hook has seen them begin, so no policy has judged them: the programs
//! keep nothing with their sockets, and that is how they are told. They are left alone, counted and listed, or ended after a
//! grace period (`--end-older-connections`).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use culvert_common::{HBONE_PORT, OUTBOUND_PORT};
use serde::Serialize;

use super::Pods;
use super::conntrack::forget_ended;
use super::dump::OpenSocket;

/// How often they are looked at while there are any.
const LOOK: Duration = Duration::from_secs(1);
/// A handshake that began before the pod joined may end after the first look.
const FIRST_LOOKS: u32 = 3;

/// One such connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OlderConnection {
    /// Who opened it, as far as the listeners of today tell.
    pub client: SocketAddr,
    /// Who accepted it.
    pub server: SocketAddr,
    /// Whether the pod is the server.
    pub inbound: bool,
    /// SO_COOKIE of the pod's socket.
    #[serde(skip)]
    cookie: u64,
}

/// Those of all pods, by netns cookie.
pub(super) struct Olders {
    pods: HashMap<u64, Older>,
    due: Instant,
}

/// Those of one pod.
struct Older {
    /// When it joined, or was taken over from an earlier agent.
    joined: Instant,
    own: Vec<IpAddr>,
    looks: u32,
    connections: Vec<OlderConnection>,
}

impl Olders {
    pub(super) fn new() -> Self {
        Self { pods: HashMap::new(), due: Instant::now() }
    }

    /// A pod with these addresses has joined: it is looked at soon.
    pub(super) fn begin(&mut self, cookie: u64, own: &[IpAddr]) {
        let older = Older { joined: Instant::now(), own: own.to_vec(), looks: 0, connections: Vec::new() };
        self.pods.insert(cookie, older);
        self.due = Instant::now();
    }

    /// A pod has left.
    pub(super) fn forget(&mut self, cookie: u64) {
        self.pods.remove(&cookie);
    }

    /// What a pod has, at the last look.
    pub(super) fn of(&self, cookie: u64) -> &[OlderConnection] {
        self.pods.get(&cookie).map_or(&[], |older| &older.connections)
    }
}

impl Older {
    fn is_interesting(&self) -> bool {
        self.looks < FIRST_LOOKS || !self.connections.is_empty()
    }
}

impl Pods {
    /// When connections from before the enrolment should be looked at again; `None` when there are none.
    pub fn older_due(&self) -> Option<Instant> {
        self.olders.pods.values().any(Older::is_interesting).then_some(self.olders.due)
    }

    /// Looks which connections from before the enrolment are still open. Of pods that joined longer ago than `grace` those
    /// that `concern` the mesh are ended, and returned with the pod's cookie.
    pub fn look_at_older(
        &mut self,
        grace: Option<Duration>,
        concerns: impl Fn(&OlderConnection) -> bool,
    ) -> Vec<(u64, OlderConnection)> {
        self.olders.due = Instant::now() + LOOK;
        let names: HashMap<u64, String> =
            self.names().map(|(cookie, name)| (cookie, name.to_owned())).collect();
        let mut ended = Vec::new();
        let mut translated = HashSet::new();
        for (cookie, older) in self.olders.pods.iter_mut().filter(|(_, older)| older.is_interesting()) {
            let Some(pod) = names.get(cookie) else { continue };
            let found = self.kernel.socket_storage().and_then(|map| self.sockets.open(*cookie, map.as_fd()));
            let found = match found {
                Ok(sockets) => connections(&sockets, &older.own),
                Err(error) => {
                    tracing::warn!(pod, %error, "its connections from before it joined cannot be listed");
                    older.looks = FIRST_LOOKS;
                    continue;
                }
            };
            if older.looks == 0 && !found.is_empty() {
                tracing::info!(
                    pod,
                    count = found.len(),
                    "has connections from before, which no policy has judged"
                );
            }
            if older.looks < FIRST_LOOKS || found.len() != older.connections.len() {
                translated.extend(&older.own);
            }
            older.looks += 1;
            older.connections = found;
            if grace.is_none_or(|grace| older.joined.elapsed() < grace) {
                continue;
            }
            for connection in older.connections.iter().filter(|connection| concerns(connection)) {
                let OlderConnection { client, server, inbound, cookie: socket } = *connection;
                let (local, remote) = if inbound { (server, client) } else { (client, server) };
                match self.sockets.destroy(*cookie, socket, local, remote) {
                    Ok(true) => ended.push((*cookie, *connection)),
                    Ok(false) => {}
                    Err(error) => tracing::error!(pod, %error, "a connection from before cannot be ended"),
                }
            }
        }
        forget_translations(&translated);
        ended
    }
}

/// What pods with these addresses had, and has ended, must not stand in the way of what begins now.
fn forget_translations(addresses: &HashSet<IpAddr>) {
    if addresses.is_empty() {
        return;
    }
    match forget_ended(addresses) {
        Ok(0) => {}
        Ok(count) => tracing::debug!(count, "translations of ended connections forgotten"),
        Err(error) => tracing::debug!(%error, "the node's connection tracking cannot be asked"),
    }
}

/// The connections among `sockets` that leave or enter the pod, that are not the mesh's own, and that no hook has seen begin.
fn connections(sockets: &[OpenSocket], own: &[IpAddr]) -> Vec<OlderConnection> {
    let listening: HashSet<u16> = sockets.iter().filter(|s| s.listens).map(|s| s.local.port()).collect();
    let inside = |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
    let mesh = |end: SocketAddr| end.port() == HBONE_PORT || end.port() == OUTBOUND_PORT;
    let mut found = Vec::new();
    for socket in sockets.iter().filter(|s| !s.listens && s.state.is_none()) {
        let (local, remote) = (socket.local.into(), socket.remote.into());
        let (local, remote): (SocketAddr, SocketAddr) = (local, remote);
        if inside(remote.ip()) || mesh(local) || mesh(remote) {
            continue;
        }
        let inbound = listening.contains(&local.port());
        let (client, server) = if inbound { (remote, local) } else { (local, remote) };
        found.push(OlderConnection { client, server, inbound, cookie: socket.cookie });
    }
    found
}

#[cfg(test)]
mod tests {
    use culvert_common::SocketState;

    use super::*;

    fn socket(cookie: u64, local: &str, remote: &str) -> OpenSocket {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap().into();
        OpenSocket { cookie, local: end(local), remote: end(remote), listens: false, state: None }
    }

    #[test]
    fn what_no_hook_has_seen_is_older() {
        let own: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap()];
        let seen: SocketState = bytemuck::Zeroable::zeroed();
        let sockets = [
            OpenSocket { listens: true, ..socket(0, "0.0.0.0:80", "0.0.0.0:0") },
            socket(1, "10.0.0.5:80", "10.0.0.9:4000"),
            socket(2, "10.0.0.5:5555", "10.0.0.9:80"),
            socket(3, "127.0.0.1:80", "127.0.0.1:4001"),
            socket(4, "10.0.0.5:80", "10.0.0.5:4002"),
            socket(5, "10.0.0.5:15008", "10.0.0.9:4003"),
            OpenSocket { state: Some(seen), ..socket(6, "10.0.0.5:80", "10.0.0.9:4004") },
        ];
        let found = connections(&sockets, &own);
        assert_eq!(found.iter().map(|c| c.cookie).collect::<Vec<_>>(), [1, 2]);
        assert!(found[0].inbound && !found[1].inbound);
        assert_eq!(found[0].client, "10.0.0.9:4000".parse().unwrap());
        assert_eq!(found[1].client, "10.0.0.5:5555".parse().unwrap());
    }
}
