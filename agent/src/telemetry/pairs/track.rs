//! Which records are about the same connection.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::{Key, Why};
use crate::telemetry::flows::FlowRecord;

/// For so long (milliseconds) after its end a connection is known: the other end may tell later, and to the kernel a late segment
/// looks like a connection that begins.
const LINGER_MS: i64 = 2_000;
/// Connections that are known at once.
const MOST: usize = 1 << 20;

/// What a record means for its pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A new connection.
    Opened,
    /// A connection that was there before, and may have ended with this record.
    Found { open: bool },
    /// One that was open is not any more.
    Ended,
    /// One that the source let go was no connection after all: the destination refused it.
    TakenBack,
    /// Nobody accepted it, or it broke.
    Failed,
    /// It did not fail: policy cut it.
    NotFailed,
    /// Policy changed, and it was ended.
    Cut(Why),
    /// It was not let in.
    Refused(Why),
    /// The other end knows better why.
    Explained { before: Why, after: Why },
    /// More bytes than were counted before.
    Bytes { sent: u64, received: u64 },
}

type Ends = (SocketAddr, SocketAddr);

/// Which ends told of something.
#[derive(Clone, Copy, Debug, Default)]
struct Sides {
    source: bool,
    destination: bool,
}

impl Sides {
    fn of(&mut self, record: &FlowRecord) -> &mut bool {
        if record.side == "destination" { &mut self.destination } else { &mut self.source }
    }

    fn has(mut self, record: &FlowRecord) -> bool {
        *self.of(record)
    }
}

#[derive(Debug)]
struct Track {
    key: Key,
    opened: Sides,
    closed: Sides,
    is_open: bool,
    refused: Option<Why>,
    failed: bool,
    cut: bool,
    /// Not told of, but found open: the record of its opening may still come.
    found: bool,
    sent: u64,
    received: u64,
    time: i64,
    /// Tells apart those that had these ends one after the other.
    number: u64,
}

/// The connections that are open, and those that ended of late.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    known: HashMap<Ends, Track>,
    /// In the order of their ends.
    ended: VecDeque<(i64, Ends, u64)>,
    next: u64,
}

fn ends(record: &FlowRecord) -> Ends {
    let end = |end: &crate::telemetry::flows::End| SocketAddr::new(end.address, end.port);
    (end(&record.source), end(&record.destination))
}

fn why(record: &FlowRecord) -> Why {
    Why { reason: record.reason, policy: record.policy.clone() }
}

impl Tracks {
    /// The pair that this record belongs to, when it is about a connection that is known.
    pub(super) fn key(&self, record: &FlowRecord, time: i64) -> Option<Key> {
        let track = self.known.get(&ends(record))?;
        let same = match record.stage {
            "opened" | "refused" => track.is_told_of(record, time),
            _ => track.is_ending(record, time),
        };
        same.then(|| track.key.clone())
    }

    /// What the record changes at its pair, which is `key`.
    pub(super) fn follow(&mut self, record: &FlowRecord, time: i64, key: Key) -> Vec<Change> {
        self.prune(time);
        match record.stage {
            "opened" => self.open(record, time, key),
            "refused" => self.refuse(record, time, key),
            _ => self.end(record, time, key),
        }
    }

    /// What it changes that this connection is open, with so many bytes.
    pub(super) fn find(&mut self, record: &FlowRecord, time: i64, key: &Key) -> Vec<Change> {
        let mut changes = Vec::new();
        let known = self.known.get(&ends(record)).is_some_and(|track| track.is_open);
        if !known {
            if self.known.contains_key(&ends(record)) {
                // It has ended while the answer was on its way.
                return changes;
            }
            self.begin(record, time, key.clone()).found = true;
            changes.push(Change::Found { open: true });
        }
        let Some(track) = self.known.get_mut(&ends(record)) else { return changes };
        *track.opened.of(record) = true;
        if known {
            changes.extend(track.bytes(record));
        } else {
            // What it carried before is of no second that anybody looks at.
            (track.sent, track.received) = (record.bytes_sent, record.bytes_received);
        }
        changes
    }

    fn open(&mut self, record: &FlowRecord, time: i64, key: Key) -> Vec<Change> {
        let mut changes = Vec::new();
        if let Some(track) = self.known.get_mut(&ends(record)) {
            if track.is_told_of(record, time) {
                *track.opened.of(record) = true;
                return changes;
            }
            // Its end was not told.
            changes.extend(track.is_open.then_some(Change::Ended));
        }
        self.begin(record, time, key);
        changes.push(Change::Opened);
        changes
    }

    fn refuse(&mut self, record: &FlowRecord, time: i64, key: Key) -> Vec<Change> {
        if record.source.port == 0 {
            // connect() refused it before it had a port: nobody else tells of it.
            return vec![Change::Refused(why(record))];
        }
        let mut changes = Vec::new();
        let same = self.known.get(&ends(record)).is_some_and(|track| track.is_told_of(record, time));
        if same && let Some(track) = self.known.get_mut(&ends(record)) {
            *track.opened.of(record) = true;
            let after = why(record);
            match track.refused.clone() {
                Some(before) if before.policy.is_empty() && !after.policy.is_empty() => {
                    track.refused = Some(after.clone());
                    return vec![Change::Explained { before, after }];
                }
                Some(_) => return changes,
                // A segment that came late.
                None if !track.is_open => return changes,
                None => {}
            }
            track.is_open = false;
            track.refused = Some(after.clone());
            changes.extend([Change::Ended, Change::TakenBack, Change::Refused(after)]);
        } else {
            let open = self.known.get(&ends(record)).is_some_and(|track| track.is_open);
            changes.extend(open.then_some(Change::Ended));
            let track = self.begin(record, time, key);
            track.is_open = false;
            track.refused = Some(why(record));
            changes.push(Change::Refused(why(record)));
        }
        self.linger(ends(record), time);
        changes
    }

    fn end(&mut self, record: &FlowRecord, time: i64, key: Key) -> Vec<Change> {
        let mut changes = Vec::new();
        let same = self.known.get(&ends(record)).is_some_and(|track| track.is_ending(record, time));
        if !same {
            self.begin(record, time, key).is_open = false;
            changes.push(Change::Found { open: false });
        }
        let Some(track) = self.known.get_mut(&ends(record)) else { return changes };
        changes.extend(std::mem::take(&mut track.is_open).then_some(Change::Ended));
        changes.extend(track.bytes(record));
        changes.extend(track.fate(record));
        if record.stage == "closed" {
            *track.closed.of(record) = true;
        }
        self.linger(ends(record), time);
        changes
    }

    /// More than this can only mean that ends go untold.
    pub(super) fn is_full(&self) -> bool {
        self.known.len() >= MOST
    }

    fn begin(&mut self, record: &FlowRecord, time: i64, key: Key) -> &mut Track {
        self.next += 1;
        let mut opened = Sides::default();
        *opened.of(record) = true;
        let track = Track {
            key,
            opened,
            closed: Sides::default(),
            is_open: true,
            refused: None,
            failed: false,
            cut: false,
            found: false,
            sent: 0,
            received: 0,
            time,
            number: self.next,
        };
        self.known.entry(ends(record)).insert_entry(track).into_mut()
    }

    fn linger(&mut self, ends: Ends, time: i64) {
        if let Some(track) = self.known.get_mut(&ends) {
            track.time = time;
            self.ended.push_back((time, ends, track.number));
        }
    }

    fn prune(&mut self, time: i64) {
        while let Some((ended, ends, number)) = self.ended.front().copied() {
            if ended >= time - LINGER_MS {
                return;
            }
            self.ended.pop_front();
            // Its last record counts, and only while nobody else has its ends.
            let over = |track: &Track| track.number == number && !track.is_open && track.time <= ended;
            if self.known.get(&ends).is_some_and(over) {
                self.known.remove(&ends);
            }
        }
    }
}

impl Track {
    /// Whether a record of an opening or a refusal is about this connection: the other end's, or the same again, for a SYN may be
    /// sent again.
    fn is_told_of(&self, record: &FlowRecord, time: i64) -> bool {
        let here = self.opened.has(record);
        let recent = time - self.time <= LINGER_MS;
        let segment = record.side == "destination" && record.path != "tunnel";
        match (self.is_open, here) {
            (true, false) => true,
            (true, true) => (segment || (self.found && recent)) && record.stage == "opened",
            (false, false) => recent,
            (false, true) => recent && segment && self.refused.is_none(),
        }
    }

    /// Whether a record of an end is about this connection.
    fn is_ending(&self, record: &FlowRecord, time: i64) -> bool {
        let told = record.stage == "closed" && self.closed.has(record);
        self.is_open || (!told && time - self.time <= LINGER_MS)
    }

    /// Beyond those that were counted.
    fn bytes(&mut self, record: &FlowRecord) -> Option<Change> {
        let sent = record.bytes_sent.saturating_sub(self.sent);
        let received = record.bytes_received.saturating_sub(self.received);
        self.sent += sent;
        self.received += received;
        (sent + received > 0).then_some(Change::Bytes { sent, received })
    }

    /// How it ended, once.
    fn fate(&mut self, record: &FlowRecord) -> Vec<Change> {
        if self.refused.is_some() {
            return Vec::new();
        }
        if record.verdict == "refused" {
            let mut changes: Vec<_> =
                std::mem::take(&mut self.failed).then_some(Change::NotFailed).into_iter().collect();
            if !std::mem::replace(&mut self.cut, true) {
                changes.push(Change::Cut(why(record)));
            }
            return changes;
        }
        if record.error.is_empty() || self.failed || self.cut {
            return Vec::new();
        }
        self.failed = true;
        vec![Change::Failed]
    }
}
