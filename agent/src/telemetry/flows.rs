//! Flow records: every verdict, opening and end of a connection of the mesh, in one form whoever reports it.

mod known;
mod line;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use culvert_common::{FlowEvent, Hook, Path, Reason, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::proxy::{Side, Stage, TunnelFlow};

/// One of a few words.
pub type Word = &'static str;

/// How many records are kept for `culvert flows`.
pub const CAPACITY: usize = 1 << 16;

/// Names for the numbers and addresses in an event.
pub trait Names {
    /// `namespace/name` of the pod with this address.
    fn workload(&self, ip: IpAddr) -> Option<String>;
    /// `namespace/name` of what the pod with this address is a part of: a Deployment, CronJob or Job, else itself.
    fn owner(&self, ip: IpAddr) -> Option<String>;
    /// `namespace/name` of the service with this virtual address.
    fn service(&self, vip: IpAddr) -> Option<String>;
    /// The SPIFFE id behind an identity number.
    fn identity(&self, id: u32) -> Option<String>;
    /// `namespace/name` of the policy behind an index.
    fn policy(&self, index: u32) -> Option<String>;
    /// What AUDIT and dry-run policies say, behind a note's number.
    fn note(&self, id: u32) -> Option<String>;
}

/// One end of a connection.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct End {
    /// The pod's address.
    pub address: IpAddr,
    /// The port; 0 at the source of a connection that was refused before it had one.
    pub port: u16,
    /// `namespace/name`, empty when no pod of the mesh has the address.
    pub workload: String,
    /// `namespace/name` of the Deployment, CronJob or Job that the pod is a part of, else its own; empty as `workload`.
    #[serde(default)]
    pub owner: String,
    /// SPIFFE id, empty when none was proven.
    pub identity: String,
}

/// What the app asked for.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Requested {
    /// A virtual address or a pod's.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// `namespace/name` of the service, empty when it is not one.
    pub service: String,
}

/// One record, as `culvert flows -o json` prints it, and as it is read again.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct FlowRecord {
    /// Counts up from 1 on this agent.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// The node that reports.
    pub node: String,
    /// `opened`, `refused`, `closed`, or `ended`: a change of policy cut an open connection.
    #[serde(deserialize_with = "known::stage")]
    pub stage: Word,
    /// `allowed` or `refused`.
    #[serde(deserialize_with = "known::verdict")]
    pub verdict: Word,
    /// `direct`, `tunnel` or `passthrough`.
    #[serde(deserialize_with = "known::path")]
    pub path: Word,
    /// `source` or `destination`: the end of the connection that reports.
    #[serde(deserialize_with = "known::side")]
    pub side: Word,
    /// [`Reason::as_str`].
    #[serde(deserialize_with = "known::reason")]
    pub reason: Word,
    /// `namespace/name` of the policy that decided, or empty.
    pub policy: String,
    /// What AUDIT and dry-run policies say beside the verdict, or empty.
    pub note: String,
    /// What went wrong, or empty.
    pub error: String,
    /// The client.
    pub source: End,
    /// The server: the chosen backend.
    pub destination: End,
    /// What the client asked for.
    pub requested: Requested,
    /// Bytes from client to server, at the end.
    pub bytes_sent: u64,
    /// Bytes from server to client, at the end.
    pub bytes_received: u64,
    /// Since the connection began, at its end.
    pub duration_ms: u64,
}

#[derive(Clone)]
enum Kept {
    Kernel(FlowEvent),
    Tunnel(Timestamp, Box<TunnelFlow>),
}

struct Ring {
    next: u64,
    kept: VecDeque<Kept>,
}

impl Ring {
    /// The number after which everything is kept.
    fn before_oldest(&self) -> u64 {
        self.next - 1 - self.kept.len() as u64
    }

    /// What follows number `after`, with its numbers.
    fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Kept)> {
        let before = self.before_oldest();
        let skipped = after.saturating_sub(before).min(self.kept.len() as u64);
        (before + skipped + 1..).zip(self.kept.range(usize::try_from(skipped).unwrap_or(usize::MAX)..))
    }
}

/// The last [`CAPACITY`] flows. Recording is cheap; names are looked up when somebody reads.
pub struct FlowLog {
    node: String,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    boot: SystemTime,
}

/// Some records in a row.
pub struct Page {
    /// Oldest first.
    pub records: Vec<FlowRecord>,
    /// Number of the last one; the one that was asked for when there are none.
    pub last: u64,
    /// How many before them are no longer kept.
    pub lost: u64,
}

impl FlowLog {
    /// An empty log of `node`.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            ring: Mutex::new(Ring { next: 1, kept: VecDeque::new() }),
            newest: watch::Sender::new(0),
            boot: crate::sys::boot_time(),
        }
    }

    /// Keeps what a program reported.
    pub fn kernel(&self, event: FlowEvent) -> u64 {
        self.keep(Kept::Kernel(event))
    }

    /// Keeps what the proxy reported.
    pub fn tunnel(&self, flow: TunnelFlow) -> u64 {
        self.keep(Kept::Tunnel(Timestamp::now(), Box::new(flow)))
    }

    fn keep(&self, kept: Kept) -> u64 {
        let mut ring = self.lock();
        let seq = ring.next;
        ring.next += 1;
        if ring.kept.len() == CAPACITY {
            ring.kept.pop_front();
        }
        ring.kept.push_back(kept);
        drop(ring);
        // Who subscribes later reads the log first.
        if self.newest.receiver_count() > 0 {
            self.newest.send_modify(|newest| *newest = seq.max(*newest));
        }
        seq
    }

    /// Number of the newest record, 0 when there is none.
    pub fn last(&self) -> u64 {
        self.lock().next - 1
    }

    /// Changes with every record.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// The number after which everything is kept.
    pub fn before_oldest(&self) -> u64 {
        self.lock().before_oldest()
    }

    /// The first records after number `after`, at most `most`; the log is not held up while their names are looked up.
    pub fn page(&self, after: u64, most: usize, names: &dyn Names) -> Page {
        let (kept, before_oldest): (Vec<_>, u64) = {
            let ring = self.lock();
            let kept = ring.after(after).take(most).map(|(n, kept)| (n, kept.clone())).collect();
            (kept, ring.before_oldest())
        };
        let render = |(n, kept): &(u64, Kept)| self.render(*n, kept, names);
        Page {
            last: kept.last().map_or(after, |(n, _)| *n),
            lost: before_oldest.saturating_sub(after),
            records: kept.iter().map(render).collect(),
        }
    }

    /// The records after number `seq`, oldest first.
    pub fn since(&self, seq: u64, names: &dyn Names) -> Vec<FlowRecord> {
        let ring = self.lock();
        ring.after(seq).map(|(n, kept)| self.render(n, kept, names)).collect()
    }

    fn render(&self, seq: u64, kept: &Kept, names: &dyn Names) -> FlowRecord {
        let (time, mut record) = match kept {
            Kept::Kernel(event) => (self.time(event), from_kernel(event, names)),
            Kept::Tunnel(time, flow) => (*time, from_tunnel(flow, names)),
        };
        record.seq = seq;
        record.time = time.to_string();
        record.node.clone_from(&self.node);
        record
    }

    fn time(&self, event: &FlowEvent) -> Timestamp {
        let time = self.boot.checked_add(Duration::from_nanos(event.time_ns));
        time.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn from_kernel(event: &FlowEvent, names: &dyn Names) -> FlowRecord {
    let allowed = event.verdict == Verdict::Allowed as u32;
    let source: SocketAddr = event.tuple.source().into();
    let destination: SocketAddr = event.tuple.destination().into();
    let requested: SocketAddr = event.requested.into();
    FlowRecord {
        seq: 0,
        time: String::new(),
        node: String::new(),
        stage: match event.hook {
            h if h == Hook::Close as u32 || h == Hook::CloseAccepted as u32 || h == Hook::Failed as u32 => {
                "closed"
            }
            h if h == Hook::Destroy as u32 || h == Hook::DestroyAtSource as u32 => "ended",
            _ if allowed => "opened",
            _ => "refused",
        },
        verdict: verdict(allowed),
        path: path(event.path),
        side: if event.is_at_destination() { "destination" } else { "source" },
        reason: Reason::from_u32(event.reason).map_or("unknown", Reason::as_str),
        policy: names.policy(event.policy).unwrap_or_default(),
        note: names.note(event.note).unwrap_or_default(),
        error: match event.hook {
            h if h == Hook::Failed as u32 => "the server did not accept the connection".to_owned(),
            _ => String::new(),
        },
        source: end(source, names.identity(event.source), names),
        destination: end(destination, names.identity(event.destination), names),
        requested: asked(requested, names),
        bytes_sent: event.bytes_sent,
        bytes_received: event.bytes_received,
        duration_ms: event.duration_ns / 1_000_000,
    }
}

/// What the proxy reported, without number, time and node.
pub(crate) fn from_tunnel(flow: &TunnelFlow, names: &dyn Names) -> FlowRecord {
    let (stage, bytes_sent, bytes_received, duration) = match flow.stage {
        Stage::Opened => ("opened", 0, 0, Duration::ZERO),
        Stage::Refused => ("refused", 0, 0, Duration::ZERO),
        Stage::Closed { bytes_sent, bytes_received, duration } => {
            ("closed", bytes_sent, bytes_received, duration)
        }
    };
    FlowRecord {
        seq: 0,
        time: String::new(),
        node: String::new(),
        stage,
        verdict: verdict(flow.decision.allowed()),
        path: path(Path::Tunnel as u32),
        side: match flow.side {
            Side::Source => "source",
            Side::Destination => "destination",
        },
        reason: flow.decision.reason.as_str(),
        policy: names.policy(flow.decision.policy).unwrap_or_default(),
        note: names.note(flow.decision.note).unwrap_or_default(),
        error: flow.error.clone(),
        source: end(flow.client, flow.source.as_ref().map(ToString::to_string), names),
        destination: end(flow.target, flow.destination.as_ref().map(ToString::to_string), names),
        requested: asked(flow.requested, names),
        bytes_sent,
        bytes_received,
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    }
}

fn verdict(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "refused" }
}

fn path(number: u32) -> &'static str {
    match number {
        n if n == Path::Direct as u32 => "direct",
        n if n == Path::Tunnel as u32 => "tunnel",
        _ => "passthrough",
    }
}

fn end(addr: SocketAddr, identity: Option<String>, names: &dyn Names) -> End {
    End {
        address: addr.ip(),
        port: addr.port(),
        workload: names.workload(addr.ip()).unwrap_or_default(),
        owner: names.owner(addr.ip()).unwrap_or_default(),
        identity: identity.unwrap_or_default(),
    }
}

fn asked(addr: SocketAddr, names: &dyn Names) -> Requested {
    Requested { address: addr.ip(), port: addr.port(), service: names.service(addr.ip()).unwrap_or_default() }
}
