//! Flow records for those who sum them up: from a running agent, or as `culvert flows -o json` wrote them.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::Deserialize;

use super::args::{SocketArgs, WantedArgs};
use super::{client, flows};
use crate::admin::query;
use crate::telemetry::filter::FlowFilter;
use crate::telemetry::flows::FlowRecord;
use crate::telemetry::pairs::Pairs;

/// A line of `culvert flows -o json`.
pub(super) enum Line {
    Record(Box<FlowRecord>),
    /// So many are missing.
    Lost(u64),
}

#[derive(Deserialize)]
struct Lost {
    lost: u64,
}

/// Reads a line.
///
/// # Errors
///
/// It is neither a record nor the count of those that are missing.
pub(super) fn read(text: &str) -> Result<Line, serde_json::Error> {
    match serde_json::from_str(text) {
        Ok(record) => Ok(Line::Record(Box::new(record))),
        Err(error) => serde_json::from_str(text).map(|Lost { lost }| Line::Lost(lost)).map_err(|_| error),
    }
}

/// Adds what the agent keeps, and is wanted.
///
/// # Errors
///
/// No agent, or what it says cannot be read.
pub(super) async fn from_agent(pairs: &mut Pairs, socket: &SocketArgs, wanted: &WantedArgs) -> Result<()> {
    let socket = client::socket(socket.instance.as_deref())?;
    let address = query::address("/flows", flows::parameters(wanted, false, Timestamp::now())?);
    let mut lines = client::Lines::open(&socket, &address).await?;
    while let Some(batch) = lines.next().await? {
        batch.iter().try_for_each(|text| add(pairs, text)).context("the agent's flow records")?;
    }
    Ok(())
}

/// Adds one line.
///
/// # Errors
///
/// As [`read`], and times that are none.
pub(super) fn add(pairs: &mut Pairs, text: &str) -> Result<()> {
    match read(text)? {
        Line::Record(record) => pairs.add(&record)?,
        Line::Lost(count) => pairs.lose(count),
    }
    Ok(())
}

/// Adds what is wanted of these files, as one: in the order of time.
///
/// # Errors
///
/// A file cannot be read, or a line of it is no record; both are named.
pub(super) fn from_files(pairs: &mut Pairs, files: &[PathBuf], wanted: &WantedArgs) -> Result<()> {
    let filter = filter(wanted, Timestamp::now())?;
    let mut records = Vec::new();
    for file in files {
        let (name, text) = contents(file)?;
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place =
                || format!("{name}:{}: no flow record: write them with `culvert flows -o json`", n + 1);
            match read(line).with_context(place)? {
                Line::Lost(count) => pairs.lose(count),
                Line::Record(record) => {
                    let time: Timestamp = record.time.parse().with_context(place)?;
                    if filter.wants(&record) {
                        records.push((time, record));
                    }
                }
            }
        }
    }
    // Stable: what one node tells at one time stays in its order.
    records.sort_by_key(|(time, _)| *time);
    let last = wanted.last.map_or(usize::MAX, |last| usize::try_from(last).unwrap_or(usize::MAX));
    for (_, record) in records.iter().skip(records.len().saturating_sub(last)) {
        pairs.add(record)?;
    }
    Ok(())
}

fn contents(file: &Path) -> Result<(String, String)> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(("standard input".to_owned(), text));
    }
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| name.clone())?;
    Ok((name, text))
}

fn filter(wanted: &WantedArgs, now: Timestamp) -> Result<FlowFilter> {
    let filter = FlowFilter {
        from: wanted.from.clone(),
        to: wanted.to.clone(),
        policy: wanted.policy.clone(),
        after: wanted.since.as_deref().map(|when| flows::moment(when, now)).transpose()?,
        ..FlowFilter::default()
    };
    if wanted.verdict.is_empty() {
        return Ok(filter);
    }
    match filter.with_verdicts(&wanted.verdict.join(",")) {
        Ok(filter) => Ok(filter),
        Err(error) => bail!(error),
    }
}
