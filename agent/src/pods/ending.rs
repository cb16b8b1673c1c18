//! Open connections that have to end: policy refuses them now, or no policy has ever judged them.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use culvert_common::{Connection, Decision, Tuple};

use super::diag::Diag;
use super::enroll::{Enrolled, Pods};
use super::older::OlderConnection;

/// How often connections from before the enrolment are looked at.
const OLDER_LOOK: Duration = Duration::from_secs(1);

impl Pods {
    /// Ends the open connections that `judge` refuses now: (client, server, client's identity) → verdict. What goes through
    /// the agent is the proxy's business. Returns those that were ended, with the verdict.
    pub fn end_refused(&self, judge: impl Fn(&Tuple, u32) -> Decision) -> Vec<(Tuple, Connection, Decision)> {
        let pods: HashMap<u64, &Enrolled> = self.enrolled.values().map(|pod| (pod.cookie, pod)).collect();
        let mut ended = Vec::new();
        let mut diags: HashMap<u64, io::Result<Diag>> = HashMap::new();
        for (tuple, connection) in self.kernel.maps.connections() {
            let Some(pod) = pods.get(&connection.netns) else { continue };
            let decision = judge(&tuple, connection.identity);
            if decision.allowed() {
                continue;
            }
            let diag = diags.entry(pod.cookie).or_insert_with(|| Diag::open(&*pod.netns));
            let (local, remote) = (tuple.destination().into(), tuple.source().into());
            let done = match diag {
                Ok(diag) => diag.destroy(connection.socket, local, remote).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match done {
                Ok(true) => ended.push((tuple, connection, decision)),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(
                        pod = pod.wanted.name,
                        error,
                        "a connection that policy now refuses cannot be ended"
                    );
                }
            }
        }
        ended
    }

    /// When connections from before the enrolment should be looked at again; `None` when there are none.
    pub fn older_due(&self) -> Option<Instant> {
        let some = |pod: &Enrolled| pod.older.as_ref().is_some_and(|older| !older.connections().is_empty());
        self.enrolled.values().any(some).then(|| self.looked + OLDER_LOOK)
    }

    /// Looks which connections from before the enrolment are still open. Of pods that joined longer ago than `grace` those
    /// that `concern` the mesh are ended, and returned with the pod's cookie.
    pub fn look_at_older(
        &mut self,
        grace: Option<Duration>,
        concerns: impl Fn(&OlderConnection) -> bool,
    ) -> Vec<(u64, OlderConnection)> {
        self.looked = Instant::now();
        let mut ended = Vec::new();
        for pod in self.enrolled.values_mut() {
            let Some(older) = pod.older.as_mut().filter(|older| !older.connections().is_empty()) else {
                continue;
            };
            let due = grace.is_some_and(|grace| older.age() >= grace);
            let looked = Diag::open(&*pod.netns).and_then(|diag| {
                let gone = if due { older.end(&diag, &concerns)? } else { Vec::new() };
                older.refresh(&diag).map(|()| gone)
            });
            match looked {
                Ok(gone) => ended.extend(gone.into_iter().map(|connection| (pod.cookie, connection))),
                Err(error) => {
                    tracing::error!(pod = pod.wanted.name, %error, "cannot look at its connections from before");
                }
            }
        }
        ended
    }
}
