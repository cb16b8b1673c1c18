//! What ended of late: for the segments that come after it, and for why it ended.

use std::collections::{HashMap, VecDeque};

use culvert_common::{FlowEvent, Hook, Tuple};

use crate::telemetry::traffic::Event;

/// Ends of connections that are remembered for what comes after them.
const REMEMBERED: usize = 4096;
/// A segment that is so late is a connection of its own.
const LATE_NS: u64 = 2_000_000_000;

/// What ended of late, by the events of the programs.
#[derive(Default)]
pub(super) struct Ends {
    order: VecDeque<(Tuple, u64)>,
    latest: HashMap<Tuple, u64>,
    cut: HashMap<Tuple, String>,
}

impl Ends {
    /// The line about the end of this connection is to say why.
    pub(super) fn cut(&mut self, tuple: Tuple, error: String) {
        if self.cut.len() >= REMEMBERED {
            self.cut.clear();
        }
        self.cut.insert(tuple, error);
    }

    /// The error of what happened, mostly none. `None`: it did not happen, for to sk_lookup a late segment of a connection that
    /// has ended looks like one that begins.
    pub(super) fn follow(&mut self, event: &FlowEvent, happened: Event) -> Option<String> {
        match happened {
            Event::Closed { .. } => {
                if self.order.len() >= REMEMBERED
                    && let Some((tuple, time)) = self.order.pop_front()
                    && self.latest.get(&tuple) == Some(&time)
                {
                    self.latest.remove(&tuple);
                }
                self.order.push_back((event.tuple, event.time_ns));
                self.latest.insert(event.tuple, event.time_ns);
            }
            Event::Refused(_) if event.hook == Hook::Admit as u32 => {
                let closed = self.latest.get(&event.tuple);
                if closed.is_some_and(|time| event.time_ns.saturating_sub(*time) < LATE_NS) {
                    return None;
                }
            }
            _ => {}
        }
        if event.hook != Hook::CloseAccepted as u32 {
            return Some(String::new());
        }
        Some(self.cut.remove(&event.tuple).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use culvert_common::{Decision, Reason, UNKNOWN_IDENTITY};

    use super::*;
    use crate::telemetry::labels::Flags;

    fn event(hook: Hook, port: u16, time_ns: u64) -> FlowEvent {
        let end = |text: &str, port: u16| SocketAddr::new(text.parse().unwrap(), port);
        let tuple = Tuple::new(end("10.0.0.1", port).into(), end("10.0.0.2", 80).into());
        let connection = culvert_common::Connection {
            opened_ns: 0,
            netns: 1,
            socket: 0,
            identity: UNKNOWN_IDENTITY,
            reserved: 0,
        };
        let decision = Decision::refuse(Reason::StrictPlaintext);
        FlowEvent { hook: hook as u32, time_ns, ..crate::app::mesh::ended(tuple, connection, decision) }
    }

    #[test]
    fn a_late_segment_is_no_connection_and_a_cut_one_says_why_once() {
        let mut ends = Ends::default();
        let closed = Event::Closed { from_client: 0, from_server: 0 };
        let refused = Event::Refused(Flags::Deny);
        ends.cut(event(Hook::Destroy, 1, 0).tuple, "policy changed".to_owned());
        let close = event(Hook::CloseAccepted, 1, 1000);
        assert_eq!(ends.follow(&close, closed).as_deref(), Some("policy changed"));
        assert_eq!(ends.follow(&close, closed).as_deref(), Some(""));
        let syn = |port, time| event(Hook::Admit, port, time);
        assert_eq!(ends.follow(&syn(1, 2000), refused), None);
        assert_eq!(ends.follow(&syn(2, 2000), refused).as_deref(), Some(""));
        assert_eq!(ends.follow(&syn(1, 1000 + LATE_NS), refused).as_deref(), Some(""));
        for port in 10..=REMEMBERED as u16 + 10 {
            ends.follow(&event(Hook::CloseAccepted, port, 1000), closed);
        }
        assert_eq!(ends.follow(&syn(1, 2000), refused).as_deref(), Some(""), "it has been forgotten");
        assert!(ends.latest.len() <= REMEMBERED && ends.order.len() <= REMEMBERED);
    }
}
