//! Who talks to whom: flow records, summed up by pair.
//!
//! A record is what one end of a connection tells. When both ends are on the node (or the records of two nodes are read together)
//! a connection is told of twice, opened and closed: it is counted once. What became of it is the worst that either end tells.

mod node;
mod track;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

pub use node::{By, Kind, Node};

use super::flows::{End, FlowRecord, Word};
use track::{Change, Tracks};

/// Ports, addresses and services of a pair that are kept by name.
const NAMED: usize = 32;
/// Seconds of a pair's past that rates can be asked for.
pub const REMEMBERED: i64 = 60;

/// Who, to whom, by which path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The client.
    pub from: Node,
    /// The server.
    pub to: Node,
    /// `direct`, `tunnel` or `passthrough`.
    pub path: Word,
}

/// Why a connection was refused or cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Why {
    /// As the record has it.
    pub reason: Word,
    /// `namespace/name`, or empty.
    pub policy: String,
}

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    at: i64,
    opened: u64,
    refused: u64,
    bytes: u64,
}

/// Per second, over some seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Connections opened.
    pub opened: f64,
    /// Connections refused.
    pub refused: f64,
    /// Both ways. Those of a direct connection all in the second of its end.
    pub bytes: f64,
}

/// What is known of a pair.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    /// Connections that were let in, each counted once.
    pub connections: u64,
    /// Of these, those whose end has not been seen.
    pub open: u64,
    /// Of these, those that nobody accepted, or that broke.
    pub failed: u64,
    /// Of these, those that were ended because policy changed.
    pub cut: BTreeMap<Why, u64>,
    /// Connections that were not let in.
    pub refused: BTreeMap<Why, u64>,
    /// From client to server. Of direct connections and those in plaintext known at their end only.
    pub bytes_sent: u64,
    /// From server to client.
    pub bytes_received: u64,
    /// Of the server.
    pub ports: BTreeSet<u16>,
    /// What was asked for, where that was a service, as `namespace/name`.
    pub services: BTreeSet<String>,
    /// Of a client that is no workload.
    pub clients: BTreeSet<IpAddr>,
    /// Of a server that is no workload.
    pub servers: BTreeSet<IpAddr>,
    /// Milliseconds since 1970 of the first record.
    pub first: i64,
    /// Of the last one.
    pub last: i64,
    past: VecDeque<Second>,
}

impl Pair {
    /// Of all reasons.
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Per second, in the `seconds` (1 to [`REMEMBERED`]) until `now` (milliseconds since 1970).
    pub fn rates(&self, now: i64, seconds: i64) -> Rates {
        let seconds = seconds.clamp(1, REMEMBERED);
        let until = now.div_euclid(1000);
        let counted = self.past.iter().filter(|second| second.at > until - seconds && second.at <= until);
        let mut sum = Second::default();
        for second in counted {
            sum.opened += second.opened;
            sum.refused += second.refused;
            sum.bytes += second.bytes;
        }
        let per_second = |count: u64| count as f64 / seconds as f64;
        Rates {
            opened: per_second(sum.opened),
            refused: per_second(sum.refused),
            bytes: per_second(sum.bytes),
        }
    }

    /// The second of this time, or of the newest when it is older than that: clocks of nodes differ a little.
    fn second(&mut self, time: i64) -> Option<&mut Second> {
        let at = time.div_euclid(1000);
        if self.past.back().is_none_or(|newest| newest.at < at) {
            self.past.push_back(Second { at, ..Second::default() });
            while self.past.front().is_some_and(|oldest| oldest.at <= at - REMEMBERED) {
                self.past.pop_front();
            }
        }
        self.past.back_mut()
    }

    fn apply(&mut self, change: Change, time: i64) {
        match change {
            Change::Opened => {
                self.connections += 1;
                self.open += 1;
                self.second(time).into_iter().for_each(|second| second.opened += 1);
            }
            // It had been open before anybody looked.
            Change::Found { open } => {
                self.connections += 1;
                self.open += u64::from(open);
            }
            Change::Ended => self.open = self.open.saturating_sub(1),
            Change::TakenBack => self.connections = self.connections.saturating_sub(1),
            Change::Failed => self.failed += 1,
            Change::NotFailed => self.failed = self.failed.saturating_sub(1),
            Change::Cut(why) => *self.cut.entry(why).or_default() += 1,
            Change::Refused(why) => {
                *self.refused.entry(why).or_default() += 1;
                self.second(time).into_iter().for_each(|second| second.refused += 1);
            }
            Change::Explained { before, after } => {
                if let Some(count) = self.refused.get_mut(&before) {
                    *count = count.saturating_sub(1);
                }
                self.refused.retain(|_, count| *count > 0);
                *self.refused.entry(after).or_default() += 1;
            }
            Change::Bytes { sent, received } => {
                self.bytes_sent += sent;
                self.bytes_received += received;
                self.second(time).into_iter().for_each(|second| second.bytes += sent + received);
            }
        }
    }

    fn describe(&mut self, record: &FlowRecord) {
        keep(&mut self.ports, record.destination.port);
        if !record.requested.service.is_empty() {
            keep(&mut self.services, record.requested.service.clone());
        }
        if record.source.workload.is_empty() {
            keep(&mut self.clients, record.source.address);
        }
        if record.destination.workload.is_empty() {
            keep(&mut self.servers, record.destination.address);
        }
    }
}

fn keep<T: Ord>(set: &mut BTreeSet<T>, item: T) {
    if set.len() < NAMED {
        set.insert(item);
    }
}

/// All pairs of the records so far.
#[derive(Debug)]
pub struct Pairs {
    by: By,
    pairs: BTreeMap<Key, Pair>,
    tracks: Tracks,
    /// Who proved which identity, for the records that do not say.
    identities: HashMap<IpAddr, String>,
    records: u64,
    lost: u64,
    first: Option<i64>,
    last: Option<i64>,
}

impl Pairs {
    /// None yet.
    pub fn new(by: By) -> Self {
        Self {
            by,
            pairs: BTreeMap::new(),
            tracks: Tracks::default(),
            identities: HashMap::new(),
            records: 0,
            lost: 0,
            first: None,
            last: None,
        }
    }

    /// One more record, in their order.
    ///
    /// # Errors
    ///
    /// Its time cannot be read.
    pub fn add(&mut self, record: &FlowRecord) -> Result<(), jiff::Error> {
        let time = record.time.parse::<Timestamp>()?.as_millisecond();
        self.records += 1;
        self.first = Some(self.first.map_or(time, |first| first.min(time)));
        self.last = Some(self.last.map_or(time, |last| last.max(time)));
        if self.tracks.is_full() {
            self.forget_open();
        }
        // The end of a connection does not tell everything again.
        let key = self.tracks.key(record, time).unwrap_or_else(|| self.key(record));
        let Self { tracks, pairs, .. } = self;
        let pair =
            pairs.entry(key.clone()).or_insert_with(|| Pair { first: time, last: time, ..Pair::default() });
        pair.first = pair.first.min(time);
        pair.last = pair.last.max(time);
        pair.describe(record);
        for change in tracks.follow(record, time, key) {
            pair.apply(change, time);
        }
        Ok(())
    }

    /// A connection that is open, with its bytes so far, at `now` (milliseconds since 1970): it was there before, or carries more
    /// than when it was last told.
    pub fn is_open(&mut self, record: &FlowRecord, now: i64) {
        let key = self.tracks.key(record, now).unwrap_or_else(|| self.key(record));
        let changes = self.tracks.find(record, now, &key);
        if changes.is_empty() {
            return;
        }
        let pair = self.pairs.entry(key).or_insert_with(|| Pair { first: now, last: now, ..Pair::default() });
        pair.last = pair.last.max(now);
        pair.describe(record);
        for change in changes {
            pair.apply(change, now);
        }
    }

    /// Some records are missing here.
    pub fn lose(&mut self, count: u64) {
        self.lost += count;
    }

    /// Forgets which connections are open: [`Pairs::is_open`] is to tell.
    pub fn forget_open(&mut self) {
        self.tracks = Tracks::default();
        self.pairs.values_mut().for_each(|pair| pair.open = 0);
    }

    /// Forgets pairs that have nothing open, and of which nothing was heard since `time`.
    pub fn forget_before(&mut self, time: i64) {
        self.pairs.retain(|_, pair| pair.open > 0 || pair.last >= time);
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Pair)> {
        self.pairs.iter()
    }

    /// By what they are grouped.
    pub fn by(&self) -> By {
        self.by
    }

    /// How many records there were.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// How many are known to be missing.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The times of the first and the last record, in milliseconds since 1970.
    pub fn span(&self) -> Option<(i64, i64)> {
        self.first.zip(self.last)
    }

    fn key(&mut self, record: &FlowRecord) -> Key {
        let requested = &record.requested;
        // A waypoint is asked for the service itself.
        let service = (requested.address == record.destination.address).then_some(requested.service.as_str());
        let from = self.identity(&record.source);
        let to = self.identity(&record.destination);
        Key {
            from: Node::of(&record.source, &from, None, self.by, Kind::Clients),
            to: Node::of(&record.destination, &to, service, self.by, Kind::Servers),
            path: record.path,
        }
    }

    /// Kept only where it is asked for.
    fn identity(&mut self, end: &End) -> String {
        if self.by != By::ServiceAccount {
            return String::new();
        }
        if end.identity.is_empty() {
            return self.identities.get(&end.address).cloned().unwrap_or_default();
        }
        if self.identities.get(&end.address) != Some(&end.identity) {
            self.identities.insert(end.address, end.identity.clone());
        }
        end.identity.clone()
    }
}

#[cfg(test)]
mod tests;
