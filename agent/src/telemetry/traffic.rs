//! Istio's TCP metrics: connections and bytes, by who speaks to whom.
//!
//! The number of series is bounded. One that nobody has counted in for [`IDLE`] and that has no open connection is forgotten when
//! room is wanted, and begins at 0 when it comes back. Without room, what is new is counted in series whose names are `overflow`:
//! sums stay exact.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::exposition::Exposition;
use super::labels::{Escaped, Flags, Labels, Reporter};

/// How long a series without open connections is kept for certain.
pub const IDLE: Duration = Duration::from_secs(600);
/// A series whose connections never end (the event of an end may be lost) is kept that long.
const LONGEST: Duration = Duration::from_secs(86_400);
/// How often room is looked for, at most.
const LOOK: Duration = Duration::from_secs(1);

/// What happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It began.
    Opened,
    /// It was refused before it began to open: it counts as opened, closed and failed, as with ztunnel.
    Refused(Flags),
    /// It began and came to nothing.
    Failed,
    /// It ended.
    Closed {
        /// Bytes from client to server.
        from_client: u64,
        /// Bytes from server to client.
        from_server: u64,
    },
}

/// Why a connection was refused or ended, for `culvert_refusals_total`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Refusal {
    /// Who says so.
    pub reporter: Reporter,
    /// `refused`, or `ended`: an open connection was cut.
    pub stage: &'static str,
    /// [`culvert_common::Reason::as_str`].
    pub reason: &'static str,
    /// `namespace/name`, or empty.
    pub policy: String,
}

#[derive(Clone, Copy)]
struct Series {
    opened: u64,
    /// By flags: closed and failed.
    ends: [(u64, u64); FLAGS.len()],
    from_client: u64,
    from_server: u64,
    last: Instant,
}

const FLAGS: [Flags; 5] = [Flags::None, Flags::Deny, Flags::Connect, Flags::TlsFailure, Flags::CertRevoked];

impl Series {
    fn new(now: Instant) -> Self {
        Self { opened: 0, ends: [(0, 0); FLAGS.len()], from_client: 0, from_server: 0, last: now }
    }

    fn add(&mut self, event: Event, now: Instant) {
        self.last = now;
        match event {
            Event::Opened => self.opened += 1,
            Event::Refused(flags) => {
                self.opened += 1;
                self.end(flags, true);
            }
            Event::Failed => self.end(Flags::Connect, true),
            Event::Closed { from_client, from_server } => {
                self.end(Flags::None, false);
                self.from_client += from_client;
                self.from_server += from_server;
            }
        }
    }

    fn end(&mut self, flags: Flags, failed: bool) {
        let place = FLAGS.iter().position(|known| *known == flags);
        if let Some((closed, failures)) = place.and_then(|n| self.ends.get_mut(n)) {
            *closed += 1;
            *failures += u64::from(failed);
        }
    }

    fn may_go(&self, now: Instant) -> bool {
        let closed: u64 = self.ends.iter().map(|(closed, _)| closed).sum();
        let keep = if self.opened > closed { LONGEST } else { IDLE };
        now.duration_since(self.last) >= keep
    }
}

/// Where a set of labels is counted, for those who count there often.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    index: usize,
    /// Places are good until something is forgotten.
    forgotten: u64,
}

struct Inner {
    /// Their places in `series`.
    places: HashMap<Labels, usize>,
    series: Vec<Series>,
    overflow: HashMap<Labels, Series>,
    refusals: HashMap<Refusal, u64>,
    forgotten: u64,
    overflowed: u64,
    looked: Option<Instant>,
}

/// The counters.
pub struct Traffic {
    limit: usize,
    inner: Mutex<Inner>,
}

impl Traffic {
    /// Room for `limit` sets of labels, and for as many kinds of refusals.
    pub fn new(limit: usize) -> Self {
        let inner = Inner {
            places: HashMap::new(),
            series: Vec::new(),
            overflow: HashMap::new(),
            refusals: HashMap::new(),
            forgotten: 0,
            overflowed: 0,
            looked: None,
        };
        Self { limit, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `event`; returns where, unless that is under `overflow`.
    pub fn count(&self, labels: Labels, event: Event) -> Option<Place> {
        self.count_at(labels, event, Instant::now())
    }

    fn count_at(&self, labels: Labels, event: Event, now: Instant) -> Option<Place> {
        let mut inner = self.lock();
        let mut index = inner.places.get(&labels).copied();
        if index.is_none() && inner.series.len() >= self.limit {
            inner.make_room(now);
        }
        if index.is_none() && inner.series.len() < self.limit {
            let next = inner.series.len();
            inner.places.insert(labels.clone(), next);
            inner.series.push(Series::new(now));
            index = Some(next);
        }
        let Some(index) = index else {
            inner.overflowed += 1;
            inner.overflow.entry(labels.overflow()).or_insert_with(|| Series::new(now)).add(event, now);
            return None;
        };
        inner.series.get_mut(index)?.add(event, now);
        Some(Place { index, forgotten: inner.forgotten })
    }

    /// Counts `event` where its labels were counted before. Returns whether the place is still theirs; if not, nothing was counted.
    pub fn count_again(&self, place: Place, event: Event) -> bool {
        let mut inner = self.lock();
        if inner.forgotten != place.forgotten {
            return false;
        }
        let series = inner.series.get_mut(place.index);
        series.map(|series| series.add(event, Instant::now())).is_some()
    }

    /// Counts a refusal.
    pub fn refuse(&self, mut refusal: Refusal) {
        let mut inner = self.lock();
        if inner.refusals.len() >= self.limit && !inner.refusals.contains_key(&refusal) {
            refusal.policy = "overflow".to_owned();
        }
        *inner.refusals.entry(refusal).or_default() += 1;
    }

    /// The text of all series.
    pub fn render(&self, out: &mut Exposition) {
        self.lock().render(out, self.limit);
    }
}

/// A value of a series, and the flags it belongs to; `None`: not shown.
type Value = fn(&Series, usize) -> Option<u64>;

/// The families: name, help, and what is shown for each of [`FLAGS`].
const FAMILIES: [(&str, &str, Value); 5] = [
    ("istio_tcp_connections_opened_total", "TCP connections opened.", |s, flags| {
        (flags == 0 && s.opened > 0).then_some(s.opened)
    }),
    (
        "istio_tcp_connections_closed_total",
        "TCP connections that ended, refused and failed ones among them.",
        |s, flags| s.ends.get(flags).map(|(closed, _)| *closed).filter(|n| *n > 0 || flags == 0),
    ),
    (
        "istio_tcp_connections_failed_total",
        "TCP connections that were refused or could not be opened.",
        |s, flags| s.ends.get(flags).map(|(_, failed)| *failed).filter(|n| *n > 0),
    ),
    ("istio_tcp_sent_bytes_total", "Bytes that servers sent to clients, as connections end.", |s, flags| {
        (flags == 0).then_some(s.from_server)
    }),
    (
        "istio_tcp_received_bytes_total",
        "Bytes that servers received from clients, as connections end.",
        |s, flags| (flags == 0).then_some(s.from_client),
    ),
];

impl Inner {
    /// Forgets what has been idle for long.
    fn make_room(&mut self, now: Instant) {
        if self.looked.is_some_and(|before| now.duration_since(before) < LOOK) {
            return;
        }
        self.looked = Some(now);
        let before = self.series.len();
        let mut kept = Vec::new();
        self.places.retain(|_, place| {
            let stays = self.series.get(*place).filter(|series| !series.may_go(now));
            *place = kept.len();
            kept.extend(stays);
            stays.is_some()
        });
        self.series = kept;
        self.forgotten += (before - self.series.len()) as u64;
    }

    fn render(&self, out: &mut Exposition, limit: usize) {
        let mut rows: Vec<(String, &Series)> = Vec::new();
        let placed =
            self.places.iter().filter_map(|(labels, place)| Some((labels, self.series.get(*place)?)));
        for (labels, series) in placed.chain(&self.overflow) {
            let mut text = String::new();
            if labels.write(&mut text).is_ok() {
                rows.push((text, series));
            }
        }
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, help, value) in FAMILIES {
            out.family(name, "counter", help);
            for (labels, series) in &rows {
                for (n, flags) in FLAGS.iter().enumerate() {
                    if let Some(value) = value(series, n) {
                        let flags = flags.as_str();
                        let _ = writeln!(out, "{name}{{{labels},response_flags=\"{flags}\"}} {value}");
                    }
                }
            }
        }
        self.render_refusals(out);
        let single = [
            (
                "culvert_metrics_series",
                "gauge",
                "Sets of labels of istio_tcp_* now.",
                self.series.len() as u64,
            ),
            ("culvert_metrics_series_max", "gauge", "Sets of labels of istio_tcp_* at most.", limit as u64),
            (
                "culvert_metrics_series_forgotten_total",
                "counter",
                "Idle sets of labels that were forgotten for others.",
                self.forgotten,
            ),
            (
                "culvert_metrics_overflow_total",
                "counter",
                "Events counted under `overflow`, for want of room for their labels.",
                self.overflowed,
            ),
        ];
        for (name, kind, help, value) in single {
            out.family(name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
    }

    fn render_refusals(&self, out: &mut Exposition) {
        let name = "culvert_refusals_total";
        out.family(name, "counter", "Connections refused, and open ones ended, by reason and policy.");
        let mut rows: Vec<_> = self.refusals.iter().collect();
        rows.sort_by_key(|(refusal, _)| {
            (refusal.reporter.as_str(), refusal.stage, refusal.reason, &refusal.policy)
        });
        for (Refusal { reporter, stage, reason, policy }, count) in rows {
            let (reporter, policy) = (reporter.as_str(), Escaped(policy));
            let _ = writeln!(
                out,
                "{name}{{reporter=\"{reporter}\",stage=\"{stage}\",reason=\"{reason}\",policy=\"{policy}\"}} {count}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exposition::Format;
    use crate::telemetry::labels::{Peer, ServiceName};

    fn labels(principal: &str) -> Labels {
        Labels {
            reporter: Reporter::Source,
            source: Peer::unknown(),
            source_principal: principal.to_owned(),
            destination: Peer::unknown(),
            destination_principal: String::new(),
            service: ServiceName::unknown(),
            encrypted: false,
        }
    }

    fn value(text: &str, family: &str, has: &[&str]) -> u64 {
        let lines = text.lines().filter(|l| l.starts_with(&format!("{family}{{")));
        let lines = lines.filter(|l| has.iter().all(|part| l.contains(part)));
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn text(traffic: &Traffic) -> String {
        let mut out = Exposition::new(Format::Prometheus);
        traffic.render(&mut out);
        out.finish()
    }

    #[test]
    fn a_refusal_is_opened_closed_and_failed_and_bytes_are_the_servers() {
        let traffic = Traffic::new(10);
        traffic.count(labels("a"), Event::Opened);
        traffic.count(labels("a"), Event::Closed { from_client: 3, from_server: 5 });
        traffic.count(labels("a"), Event::Refused(Flags::Deny));
        traffic.count(labels("a"), Event::Opened);
        traffic.count(labels("a"), Event::Failed);
        let text = text(&traffic);
        assert_eq!(value(&text, "istio_tcp_connections_opened_total", &["response_flags=\"-\""]), 3);
        for (flags, closed, failed) in [("-", 1, 0), ("DENY", 1, 1), ("CONNECT", 1, 1)] {
            let flags = format!("response_flags=\"{flags}\"");
            assert_eq!(value(&text, "istio_tcp_connections_closed_total", &[&flags]), closed);
            assert_eq!(value(&text, "istio_tcp_connections_failed_total", &[&flags]), failed);
        }
        assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &[]), 5);
        assert_eq!(value(&text, "istio_tcp_received_bytes_total", &[]), 3);
    }

    #[test]
    fn what_has_no_room_is_counted_together_and_idle_series_make_room() {
        let traffic = Traffic::new(2);
        let begun = Instant::now();
        traffic.count_at(labels("idle"), Event::Refused(Flags::Deny), begun);
        traffic.count_at(labels("open"), Event::Opened, begun);
        for principal in ["c", "d"] {
            traffic.count_at(labels(principal), Event::Opened, begun + LOOK);
        }
        let full = text(&traffic);
        assert_eq!(value(&full, "istio_tcp_connections_opened_total", &["source_principal=\"overflow\""]), 2);
        assert_eq!(value(&full, "istio_tcp_connections_opened_total", &[]), 4);
        assert!(full.contains("\nculvert_metrics_overflow_total 2\n"));
        traffic.count_at(labels("e"), Event::Opened, begun + IDLE + LOOK);
        let later = text(&traffic);
        assert!(!later.contains("\"idle\"") && later.contains("\"open\"") && later.contains("\"e\""));
        assert!(later.contains("\nculvert_metrics_series_forgotten_total 1\n"));
        assert!(later.contains("\nculvert_metrics_series 2\n"));
    }

    #[test]
    fn values_are_escaped() {
        let traffic = Traffic::new(2);
        traffic.count(labels("a\"b\\c\nd"), Event::Opened);
        assert!(text(&traffic).contains(r#"source_principal="a\"b\\c\nd","#));
    }
}
