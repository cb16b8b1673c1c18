//! What becomes of every connection, told once each: as a flow record, in the metrics and in the access log.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_common::{Decision, FlowEvent, Hook, Path, Reason, Tuple, Verdict};
use tokio::sync::watch;

use super::book::{Book, Known, Pair, Proven};
use super::ends::Ends;
use crate::hbone::REVOKED;
use crate::model::Snapshot;
use crate::proxy::{Side, Stage, TunnelFlow};
use crate::telemetry::access::{AccessLog, End, Line};
use crate::telemetry::flows::FlowLog;
use crate::telemetry::labels::{Flags, Labels, Reporter};
use crate::telemetry::traffic::{Event, Place, Refusal, Traffic};

/// Where everything about connections is told.
pub(super) struct Observer {
    flows: Arc<FlowLog>,
    traffic: Traffic,
    access: AccessLog,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    book: Mutex<Book>,
    ends: Mutex<Ends>,
    events: AtomicU64,
}

/// One connection at one end, when it opens or ends.
struct Seen {
    reporter: Reporter,
    event: Event,
    client: SocketAddr,
    /// The pod, or what a waypoint was asked for.
    server: SocketAddr,
    requested: SocketAddr,
    /// The HBONE listener of a tunnel.
    hop: Option<SocketAddr>,
    source: String,
    destination: String,
    /// It goes, or was to go, by HBONE.
    tunnel: bool,
    duration: Duration,
    error: String,
}

impl Observer {
    /// Tells `flows`, counts, and logs what `access` says.
    pub(super) fn new(
        flows: Arc<FlowLog>,
        access: AccessLog,
        series: usize,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Self {
        let book = Mutex::new(Book::new(snapshots.borrow().clone()));
        let (traffic, events) = (Traffic::new(series), AtomicU64::new(0));
        Self { flows, traffic, access, snapshots, book, ends: Mutex::default(), events }
    }

    /// The counters.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Events of the programs that were read.
    pub(super) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// What a program reported.
    pub(super) fn kernel(&self, event: FlowEvent) {
        self.events.fetch_add(1, Ordering::Relaxed);
        // Otherwise the verdict on it has been told.
        if event.hook != Hook::Accepted as u32 || event.reason != Reason::Judged as u32 {
            self.flows.kernel(event);
        }
        let refused = event.verdict == Verdict::Refused as u32;
        let happened = match event.hook {
            h if h == Hook::Accepted as u32 => Event::Opened,
            h if h == Hook::Failed as u32 => Event::Failed,
            h if h == Hook::Close as u32 || h == Hook::CloseAccepted as u32 => {
                Event::Closed { from_client: event.bytes_sent, from_server: event.bytes_received }
            }
            // A tunnel without a way is told by the agent's listener; what was led away is nobody's any more.
            h if h == Hook::Sockops as u32
                && (event.path == Path::Tunnel as u32 || event.reason == Reason::Diverted as u32) =>
            {
                return;
            }
            h if h == Hook::Sockops as u32 && !refused => Event::Opened,
            // The SYN may come again: who accepts it tells.
            _ if !refused => return,
            _ => Event::Refused(Flags::of(reason(&event))),
        };
        let error = lock(&self.ends).follow(&event, happened);
        let Some(error) = error else { return };
        let snapshot = self.snapshots.borrow().clone();
        if refused {
            self.refuse(&snapshot, reporter(&event), "refused", decision(&event));
        }
        let pair = pair(&event);
        if !self.is_logged(happened, !error.is_empty()) && self.count_again(&snapshot, &pair, happened) {
            return;
        }
        self.tell_of(&snapshot, pair, seen(&event, happened, error, &snapshot));
    }

    /// Counts without a name where the pair has been counted before.
    fn count_again(&self, snapshot: &Arc<Snapshot>, pair: &Pair, happened: Event) -> bool {
        let mut book = lock(&self.book);
        book.turn_to(snapshot);
        book.place(pair).is_some_and(|place| self.traffic.count_again(place, happened))
    }

    /// Whether there is a line about this in the access log.
    fn is_logged(&self, happened: Event, failed: bool) -> bool {
        let failed = failed || !matches!(happened, Event::Closed { .. });
        happened != Event::Opened && self.access.wants(failed)
    }

    /// An open connection is about to be cut: the line about its end is to say why.
    pub(super) fn cut(&self, tuple: Tuple, decision: Decision, snapshot: &Snapshot) {
        let text = said(decision.reason, decision.policy, snapshot);
        lock(&self.ends).cut(tuple, text);
    }

    /// An open connection was cut. `heard`: the programs tell of its end too.
    pub(super) fn ended(&self, event: FlowEvent, heard: bool) {
        self.flows.kernel(event);
        let snapshot = self.snapshots.borrow().clone();
        self.refuse(&snapshot, reporter(&event), "ended", decision(&event));
        if !heard {
            let closed = Event::Closed { from_client: 0, from_server: 0 };
            let error = said(reason(&event), event.policy, &snapshot);
            if self.is_logged(closed, true) {
                self.log(&snapshot, &seen(&event, closed, error, &snapshot));
            }
        }
    }

    /// What the proxy reported.
    pub(super) fn tunnel(&self, flow: TunnelFlow) {
        let reporter = match flow.side {
            Side::Source => Reporter::Source,
            Side::Destination => Reporter::Destination,
        };
        let (event, duration) = match flow.stage {
            Stage::Opened => (Event::Opened, Duration::ZERO),
            Stage::Refused => (Event::Refused(flags(&flow)), Duration::ZERO),
            Stage::Closed { bytes_sent, bytes_received, duration } => {
                (Event::Closed { from_client: bytes_sent, from_server: bytes_received }, duration)
            }
        };
        let snapshot = self.snapshots.borrow().clone();
        if !flow.decision.allowed() {
            let stage = if flow.stage == Stage::Refused { "refused" } else { "ended" };
            self.refuse(&snapshot, reporter, stage, flow.decision);
        }
        let pair = pair_of(&flow, reporter);
        let failed = !flow.error.is_empty() || !flow.decision.allowed();
        if !self.is_logged(event, failed) && self.count_again(&snapshot, &pair, event) {
            self.flows.tunnel(flow);
            return;
        }
        let text = |id: &Option<_>| id.as_ref().map_or_else(String::new, ToString::to_string);
        let mut error = flow.error.clone();
        if !flow.decision.allowed() {
            let text = said(flow.decision.reason, flow.decision.policy, &snapshot);
            error = match snapshot.policy_name(flow.decision.policy) {
                _ if error.is_empty() => text,
                Some(policy) => format!("{error} [{policy}]"),
                None => error,
            };
        }
        let seen = Seen {
            reporter,
            event,
            client: flow.client,
            server: flow.target,
            requested: flow.requested,
            hop: flow.hop,
            source: text(&flow.source),
            destination: text(&flow.destination),
            tunnel: true,
            duration,
            error,
        };
        self.flows.tunnel(flow);
        self.tell_of(&snapshot, pair, seen);
    }

    /// Tells, and keeps in mind where this pair is counted.
    fn tell_of(&self, snapshot: &Arc<Snapshot>, pair: Pair, seen: Seen) {
        if let Some(place) = self.tell(snapshot, seen) {
            lock(&self.book).remember(snapshot, pair, place);
        }
    }

    fn refuse(&self, snapshot: &Snapshot, reporter: Reporter, stage: &'static str, decision: Decision) {
        let policy = snapshot.policy_name(decision.policy).unwrap_or_default().to_owned();
        self.traffic.refuse(Refusal { reporter, stage, reason: decision.reason.as_str(), policy });
    }

    fn tell(&self, snapshot: &Arc<Snapshot>, seen: Seen) -> Option<Place> {
        if self.is_logged(seen.event, !seen.error.is_empty()) {
            self.log(snapshot, &seen);
        }
        let mut book = lock(&self.book);
        book.turn_to(snapshot);
        let (source, destination) = ends(&mut book, &seen);
        let service = service(&mut book, &seen);
        drop(book);
        let principal = |proven: String, known: String| if proven.is_empty() { known } else { proven };
        let labels = Labels {
            reporter: seen.reporter,
            source: source.peer,
            source_principal: seen.source,
            destination: destination.peer,
            destination_principal: principal(seen.destination, destination.principal),
            service,
            encrypted: seen.tunnel,
        };
        self.traffic.count(labels, seen.event)
    }

    /// To be asked first: [`Self::is_logged`].
    fn log(&self, snapshot: &Arc<Snapshot>, seen: &Seen) {
        let mut book = lock(&self.book);
        book.turn_to(snapshot);
        let (source, destination) = ends(&mut book, seen);
        let service = service(&mut book, seen);
        drop(book);
        // As in ztunnel, who speaks in plaintext has no identity, and asks for none.
        let proven = !seen.source.is_empty();
        let end = |known: Known, identity: &str| End {
            workload: known.name,
            namespace: known.namespace,
            identity: match identity {
                _ if !proven => String::new(),
                "" => known.principal,
                identity => identity.to_owned(),
            },
        };
        let (from_client, from_server) = match seen.event {
            Event::Closed { from_client, from_server } => (from_client, from_server),
            _ => (0, 0),
        };
        let (sent, received) = match seen.reporter {
            Reporter::Source => (from_client, from_server),
            Reporter::Destination => (from_server, from_client),
        };
        let line = Line {
            reporter: seen.reporter,
            client: seen.client,
            server: seen.hop.unwrap_or(seen.server),
            hbone: seen.hop.map(|_| seen.server),
            source: end(source, &seen.source),
            destination: end(destination, &seen.destination),
            service: if service.host == "unknown" { String::new() } else { service.host.clone() },
            sent,
            received,
            duration: seen.duration,
            error: seen.error.clone(),
        };
        line.log();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ends(book: &mut Book, seen: &Seen) -> (Known, Known) {
    let server = seen.hop.unwrap_or(seen.server);
    (book.workload(seen.client.ip()), book.workload(server.ip()))
}

fn service(book: &mut Book, seen: &Seen) -> Arc<crate::telemetry::labels::ServiceName> {
    match seen.reporter {
        Reporter::Source => book.service(seen.requested.ip()),
        Reporter::Destination => book.service_behind(seen.server),
    }
}

fn reason(event: &FlowEvent) -> Reason {
    Reason::from_u32(event.reason).unwrap_or(Reason::NoPolicyState)
}

fn decision(event: &FlowEvent) -> Decision {
    Decision { verdict: Verdict::Refused, reason: reason(event), policy: event.policy, note: event.note }
}

fn reporter(event: &FlowEvent) -> Reporter {
    if event.is_at_destination() { Reporter::Destination } else { Reporter::Source }
}

fn pair(event: &FlowEvent) -> Pair {
    let (source, destination, path) = (event.source, event.destination, event.path);
    let server = event.tuple.destination().into();
    between(
        reporter(event),
        (SocketAddr::from(event.tuple.source()).ip(), server, None),
        event.requested.into(),
        Proven::Numbers { source, destination, path },
    )
}

fn pair_of(flow: &TunnelFlow, reporter: Reporter) -> Pair {
    let proven = Proven::Ids { source: flow.source.clone(), destination: flow.destination.clone() };
    let ends = (flow.client.ip(), flow.target, flow.hop.map(|hop| hop.ip()));
    between(reporter, ends, flow.requested, proven)
}

/// Leaves out what the labels do not follow from, so that connections share a pair.
fn between(
    reporter: Reporter,
    (client, mut server, hop): (IpAddr, SocketAddr, Option<IpAddr>),
    requested: SocketAddr,
    proven: Proven,
) -> Pair {
    let requested = (reporter == Reporter::Source).then_some(requested.ip());
    if requested.is_some() {
        server.set_port(0);
    }
    Pair { reporter, client, server, hop, requested, proven }
}

/// A refusal in words, with the policy.
fn said(reason: Reason, policy: u32, snapshot: &Snapshot) -> String {
    match snapshot.policy_name(policy) {
        Some(policy) => format!("{} [{policy}]", reason.as_str()),
        None => reason.as_str().to_owned(),
    }
}

fn seen(event: &FlowEvent, happened: Event, error: String, snapshot: &Snapshot) -> Seen {
    let identity = |id: u32| snapshot.identity_text(id).unwrap_or_default().to_owned();
    let error = match happened {
        Event::Refused(_) => said(reason(event), event.policy, snapshot),
        Event::Failed => "the server did not accept the connection".to_owned(),
        _ => error,
    };
    Seen {
        reporter: reporter(event),
        event: happened,
        client: event.tuple.source().into(),
        server: event.tuple.destination().into(),
        requested: event.requested.into(),
        hop: None,
        source: identity(event.source),
        destination: identity(event.destination),
        tunnel: event.path == Path::Tunnel as u32,
        duration: Duration::from_nanos(event.duration_ns),
        error,
    }
}

fn flags(flow: &TunnelFlow) -> Flags {
    match flow.decision.reason {
        _ if flow.error.contains(REVOKED) => Flags::CertRevoked,
        // The handshake: nobody has said who it is.
        Reason::TunnelFailed if flow.side == Side::Destination && flow.source.is_none() => Flags::TlsFailure,
        reason => Flags::of(reason),
    }
}
