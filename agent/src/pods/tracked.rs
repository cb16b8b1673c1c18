//! Open connections into the pods: ended when policy refuses them, or when a change of policy could not find them.

use std::collections::{HashMap, HashSet};
use std::io;

use culvert_common::{Connection, Decision, Reason, SocketKind, Tuple};

use super::Pods;
use super::dump::OpenSocket;

/// A connection that was ended, and why.
pub type Ended = (Tuple, Connection, Decision);

impl Pods {
    /// Ends the open connections that `judge` refuses now: (client, server, client's identity) → verdict. What goes through
    /// the agent is the proxy's business. Returns those that were ended, with the verdict.
    pub fn end_refused(&self, judge: impl Fn(&Tuple, u32) -> Decision) -> Vec<Ended> {
        let names: HashMap<u64, &str> = self.names().collect();
        let connections = self.kernel.maps.connections().unwrap_or_else(|error| {
            tracing::error!(%error, "open connections cannot be held against policy");
            Vec::new()
        });
        let mut ended = Vec::new();
        for (tuple, connection) in connections {
            let Some(pod) = names.get(&connection.netns) else { continue };
            let decision = judge(&tuple, connection.identity);
            if !decision.allowed() && self.end(pod, &tuple, &connection) {
                ended.push((tuple, connection, decision));
            }
        }
        ended
    }

    fn end(&self, pod: &str, tuple: &Tuple, connection: &Connection) -> bool {
        let (client, server) = (tuple.source().into(), tuple.destination().into());
        self.sockets.destroy(connection.netns, connection.socket, server, client).unwrap_or_else(|error| {
            tracing::error!(pod, %error, "a connection that must not go on cannot be ended");
            false
        })
    }

    /// Compares the pods' sockets with the map `connections`: ends connections that are not in it, for a change of policy
    /// would not find them, and removes entries whose sockets are gone. Returns those that were ended.
    ///
    /// # Errors
    ///
    /// What the kernel said; pods that could be looked at have been.
    pub fn compare_connections(&self) -> io::Result<Vec<Ended>> {
        let storage = self.kernel.socket_storage()?;
        let begun = u64::try_from(crate::sys::since_boot().as_nanos()).unwrap_or(u64::MAX);
        let mut open = Vec::new();
        for (netns, pod) in self.names() {
            open.push((netns, pod, self.sockets.open(netns, std::os::fd::AsFd::as_fd(&storage))?));
        }
        // After the sockets: an entry is there before anybody can see that its socket should have one.
        let entries = self.kernel.maps.connections()?;
        let tracked: HashSet<u64> = entries.iter().map(|(_, connection)| connection.socket).collect();
        let mut ended = Vec::new();
        for (netns, pod, sockets) in &open {
            for socket in sockets.iter().filter(|socket| !tracked.contains(&socket.cookie)) {
                let Some((tuple, connection)) = inbound(*netns, socket) else { continue };
                if self.end(pod, &tuple, &connection) {
                    ended.push((tuple, connection, Decision::refuse(Reason::KernelState)));
                }
            }
        }
        let pods: HashSet<u64> = open.iter().map(|(netns, ..)| *netns).collect();
        let alive: HashSet<u64> = open.iter().flat_map(|(.., sockets)| sockets).map(|s| s.cookie).collect();
        for (tuple, connection) in entries {
            let seen = pods.contains(&connection.netns) && connection.opened_ns < begun;
            if seen && !alive.contains(&connection.socket) {
                self.kernel.maps.remove_connection(&tuple)?;
            }
        }
        Ok(ended)
    }
}

/// A socket that `connections` should know, as it would.
fn inbound(netns: u64, socket: &OpenSocket) -> Option<(Tuple, Connection)> {
    let state = socket.state.filter(|state| state.kind == SocketKind::Inbound as u32)?;
    let connection = Connection {
        opened_ns: state.opened_ns,
        netns,
        socket: socket.cookie,
        identity: state.source,
        reserved: 0,
    };
    Some((Tuple::new(socket.remote, socket.local), connection))
}
