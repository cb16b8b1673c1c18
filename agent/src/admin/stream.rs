//! Flow records as a body that goes on for as long as somebody reads it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::json;
use tokio::sync::mpsc;

use super::View;
use super::query::Query;
use crate::telemetry::filter::FlowFilter;
use crate::telemetry::flows::CAPACITY;

/// Records that are rendered at once: the log of flows is never held up for longer than it takes to copy so many.
const PAGE: usize = 512;
/// Pages that wait for a slow reader, besides what its socket holds.
const AHEAD: usize = 2;

/// The parameters of `/flows`.
pub(super) const PARAMETERS: [&str; 9] =
    ["since", "follow", "last", "from", "to", "verdict", "policy", "after", "open"];

/// Of what is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    All,
    Tunnels,
}

/// What a reader asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Only after this number; `None`: all that is kept.
    since: Option<u64>,
    /// Go on with new records.
    follow: bool,
    /// Of what is kept, only so many.
    last: Option<usize>,
    /// Not the log: what is open now.
    open: Option<Open>,
    filter: FlowFilter,
}

impl Wanted {
    /// From the address.
    pub(super) fn read(query: Option<&str>) -> Result<Self, String> {
        let query = Query::parse(query, &PARAMETERS)?;
        let mut filter = FlowFilter {
            from: query.get("from").map(str::parse).transpose()?,
            to: query.get("to").map(str::parse).transpose()?,
            policy: query.get("policy").map(str::to_owned),
            ..FlowFilter::default()
        };
        if let Some(text) = query.get("after") {
            let after = text
                .parse()
                .map_err(|_| format!("after={text:?} is not a time: write it as RFC 3339 does"))?;
            filter.after = Some(after);
        }
        if let Some(words) = query.get("verdict") {
            filter = filter.with_verdicts(words)?;
        }
        let open = match (query.get("open"), query.get("follow")) {
            (None, _) => None,
            (Some("all"), None) => Some(Open::All),
            (Some("tunnel"), None) => Some(Open::Tunnels),
            (Some(_), Some(_)) => {
                return Err("what is open cannot be followed: leave open or follow out".to_owned());
            }
            (Some(what), None) => return Err(format!("open={what:?}: write all or tunnel")),
        };
        Ok(Self {
            since: query.number("since")?.filter(|since| *since > 0),
            follow: query.get("follow").is_some(),
            last: query.number("last")?.map(|last| usize::try_from(last).unwrap_or(usize::MAX)),
            open,
            filter,
        })
    }

    /// Whether what is open is asked for, and not the log.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }
}

/// What is open now, a record a line.
pub(super) fn open(view: &dyn View, wanted: &Wanted) -> Result<String, String> {
    let records = view.open(wanted.open == Some(Open::Tunnels))?;
    Ok(records.iter().filter(|record| wanted.filter.wants(record)).filter_map(line).collect())
}

/// JSON objects, one a line: records, and `{"lost": N, "reason": …}` where some are missing.
pub(super) struct Records(mpsc::Receiver<Bytes>);

impl Body for Records {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// Starts to send what is wanted.
pub(super) fn records(view: Arc<dyn View>, wanted: Wanted) -> Records {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        // Fails when the reader has gone, which ends it.
        let _ = send(&*view, &wanted, &sender).await;
    });
    Records(receiver)
}

async fn send(
    view: &dyn View,
    wanted: &Wanted,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), mpsc::error::SendError<Bytes>> {
    let log = view.flow_log();
    let mut newest = log.newest();
    let mut lost_before = view.events_lost();
    let kept_until = log.last();
    let mut seen = wanted.since.unwrap_or_else(|| log.before_oldest());
    let mut last = wanted.last.map(|most| (most, VecDeque::new()));
    loop {
        newest.mark_unchanged();
        let page = log.page(seen, PAGE, &*view.names());
        let is_all = page.records.len() < PAGE;
        let lost = view.events_lost().saturating_sub(lost_before);
        lost_before += lost;
        let mut lines = Vec::new();
        lines.extend(missing(page.lost, &format!("read too slowly: the agent keeps {CAPACITY} records")));
        lines.extend(missing(lost, "the agent read the kernel's events too slowly"));
        let found = page.records.iter().filter(|record| wanted.filter.wants(record)).filter_map(line);
        seen = page.last;
        match &mut last {
            None => lines.extend(found),
            Some((most, held)) => {
                held.extend(found);
                held.drain(..held.len().saturating_sub(*most));
            }
        }
        if seen >= kept_until
            && let Some((_, held)) = last.take()
        {
            lines.extend(held);
        }
        if !lines.is_empty() {
            sender.send(Bytes::from(lines.concat())).await?;
        }
        if !wanted.follow && seen >= kept_until {
            return Ok(());
        }
        if !is_all {
            // Others have a turn between pages nobody wants a line of.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return Ok(()) },
            () = sender.closed() => return Ok(()),
        }
    }
}

fn missing(lost: u64, reason: &str) -> Option<String> {
    (lost > 0).then(|| format!("{}\n", json!({"lost": lost, "reason": reason})))
}

fn line(record: &impl serde::Serialize) -> Option<String> {
    serde_json::to_string(record)
        .inspect_err(|error| tracing::error!(%error, "a flow record cannot be written as JSON"))
        .map(|line| line + "\n")
        .ok()
}
