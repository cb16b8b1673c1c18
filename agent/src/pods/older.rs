//! Connections that a pod had before it joined the mesh. No hook has seen them begin, so no policy has judged them. They are
//! left alone, counted and listed, or ended after a grace period (`--end-older-connections`).

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use culvert_common::{HBONE_PORT, OUTBOUND_PORT};
use serde::Serialize;

use super::diag::{Diag, Found};

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

/// Those of one pod.
#[derive(Debug)]
pub(super) struct Older {
    joined: SystemTime,
    connections: Vec<OlderConnection>,
    /// Remembers them for the agents to come.
    file: PathBuf,
}

impl Older {
    /// Of a pod that joins now: what was open `before` the first decision, and what else was accepted in between and is
    /// not `tracked`.
    pub(super) fn of_new(
        file: PathBuf,
        own: &[IpAddr],
        before: &[Found],
        after: &[Found],
        tracked: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) -> Self {
        let seen: HashSet<u64> = before.iter().map(|found| found.cookie).collect();
        let connections = connections(after, own)
            .filter(|c| seen.contains(&c.cookie) || (c.inbound && !tracked(c.client, c.server)))
            .collect();
        let older = Self { joined: SystemTime::now(), connections, file };
        older.remember();
        older
    }

    /// Of a pod that an earlier agent has enrolled: what that one remembered and is still open.
    pub(super) fn of_known(file: PathBuf, own: &[IpAddr], now: &[Found]) -> Self {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let seen: HashSet<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        // The file is written once, when the pod joins.
        let joined =
            fs::metadata(&file).and_then(|meta| meta.modified()).unwrap_or_else(|_| SystemTime::now());
        let connections = connections(now, own).filter(|c| seen.contains(&c.cookie)).collect();
        Self { joined, connections, file }
    }

    /// How long ago the pod joined.
    pub(super) fn age(&self) -> Duration {
        self.joined.elapsed().unwrap_or_default()
    }

    pub(super) fn connections(&self) -> &[OlderConnection] {
        &self.connections
    }

    /// Drops those that have ended.
    pub(super) fn refresh(&mut self, diag: &Diag) -> io::Result<()> {
        let open: HashSet<u64> = diag.sockets()?.iter().map(|found| found.cookie).collect();
        self.connections.retain(|connection| open.contains(&connection.cookie));
        if self.connections.is_empty() {
            self.forget();
        }
        Ok(())
    }

    /// Ends those that `concern` the mesh; they are gone with the next look. Returns them.
    pub(super) fn end(
        &self,
        diag: &Diag,
        concerns: impl Fn(&OlderConnection) -> bool,
    ) -> io::Result<Vec<OlderConnection>> {
        let mut ended = Vec::new();
        for connection in self.connections.iter().filter(|connection| concerns(connection)) {
            let OlderConnection { client, server, inbound, cookie } = *connection;
            let (local, remote) = if inbound { (server, client) } else { (client, server) };
            if diag.destroy(cookie, local, remote)? {
                ended.push(*connection);
            }
        }
        Ok(ended)
    }

    /// The pod leaves.
    pub(super) fn forget(&self) {
        let _ = fs::remove_file(&self.file); // what stays names cookies that nobody has any more
    }

    fn remember(&self) {
        let write = || {
            if self.connections.is_empty() {
                return Ok(());
            }
            let mut file = fs::File::create(&self.file)?;
            self.connections.iter().try_for_each(|c| writeln!(file, "{}", c.cookie))
        };
        if let Err(error) = write() {
            let file = self.file.display().to_string();
            tracing::warn!(file, %error, "connections from before a pod joined are forgotten at the next start");
        }
    }
}

/// Where an instance remembers them.
pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("older")
}

/// The connections among `sockets` that leave or enter the pod and are not the mesh's own.
fn connections<'a>(sockets: &'a [Found], own: &'a [IpAddr]) -> impl Iterator<Item = OlderConnection> + 'a {
    let listening: HashSet<u16> = sockets.iter().filter(|s| s.listens).map(|s| s.local.port()).collect();
    let inside = |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
    let mesh = |end: SocketAddr| end.port() == HBONE_PORT || end.port() == OUTBOUND_PORT;
    let between = sockets
        .iter()
        .filter(move |s| !s.listens && !inside(s.remote.ip()) && !mesh(s.local) && !mesh(s.remote));
    between.map(move |s| {
        let inbound = listening.contains(&s.local.port());
        let (client, server) = if inbound { (s.remote, s.local) } else { (s.local, s.remote) };
        OlderConnection { client, server, inbound, cookie: s.cookie }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(cookie: u64, local: &str, remote: &str) -> Found {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        Found { cookie, local, remote, listens: false }
    }

    fn listener(port: u16) -> Found {
        let local = SocketAddr::new([0; 4].into(), port);
        Found { cookie: 0, local, remote: SocketAddr::new([0; 4].into(), 0), listens: true }
    }

    #[test]
    fn what_no_hook_has_seen_is_older() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("7");
        let own: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap()];
        let before = [
            listener(80),
            listener(15008),
            socket(1, "10.0.0.5:80", "10.0.0.9:4000"),
            socket(2, "10.0.0.5:5555", "10.0.0.9:80"),
            socket(3, "127.0.0.1:80", "127.0.0.1:4001"),
            socket(4, "10.0.0.5:80", "10.0.0.5:4002"),
            socket(5, "10.0.0.5:15008", "10.0.0.9:4003"),
        ];
        let mut after = before.to_vec();
        after.push(socket(6, "10.0.0.5:80", "10.0.0.9:4004")); // accepted in between, untracked
        after.push(socket(7, "10.0.0.5:80", "10.0.0.9:4005")); // accepted in between, tracked
        after.push(socket(8, "10.0.0.5:5556", "10.0.0.9:80")); // opened in between: judged
        let tracked = |client: SocketAddr, _| client.port() == 4005;
        let older = Older::of_new(file.clone(), &own, &before, &after, tracked);
        let cookies = |older: &Older| older.connections().iter().map(|c| c.cookie).collect::<Vec<_>>();
        assert_eq!(cookies(&older), [1, 2, 6]);
        assert!(older.connections()[0].inbound && !older.connections()[1].inbound);
        assert_eq!(older.connections()[0].client, "10.0.0.9:4000".parse().unwrap());
        let next = Older::of_known(file.clone(), &own, &after[3..]);
        assert_eq!(cookies(&next), [2, 6], "the next agent knows those that are still open");
        older.forget();
        assert!(!file.exists());
        assert!(Older::of_known(file, &own, &after).connections().is_empty());
    }
}
