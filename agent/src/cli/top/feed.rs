//! Flow records as they come, and what is open.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use crate::admin::query;
use crate::cli::args::{SocketArgs, WantedArgs};
use crate::cli::source::{self, Line};
use crate::cli::{client, flows};
use crate::telemetry::pairs::{By, Pairs};

/// How far back the first look goes, and how long a pair without anything new stays, in milliseconds.
const KEPT_MS: i64 = 60_000;

/// A running agent, summed up.
pub(super) struct Feed {
    pub(super) pairs: Pairs,
    lines: client::Lines,
    socket: PathBuf,
    wanted: WantedArgs,
    follow: bool,
    kept: i64,
    /// What is open is to be asked for anew: at the start, and when records are missing.
    is_stale: bool,
}

impl Feed {
    /// Asks the agent for what it keeps, and with `follow` for what comes.
    pub(super) async fn open(socket: &SocketArgs, wanted: &WantedArgs, by: By, follow: bool) -> Result<Self> {
        let socket = client::socket(socket.instance.as_deref())?;
        let now = Timestamp::now();
        let mut wanted = wanted.clone();
        let mut kept = KEPT_MS;
        match wanted.since.as_deref() {
            Some(when) => kept = kept.max(now.as_millisecond() - flows::moment(when, now)?.as_millisecond()),
            None if wanted.last.is_none() => wanted.since = Some("60s".to_owned()),
            None => {}
        }
        let address = query::address("/flows", flows::parameters(&wanted, follow, now)?);
        let lines = client::Lines::open(&socket, &address).await?;
        Ok(Self { pairs: Pairs::new(by), lines, socket, wanted, follow, kept, is_stale: true })
    }

    /// The next lines; `None` when there are no more.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<String>>> {
        let lines = self.lines.next().await?;
        if lines.is_none() && self.follow {
            bail!("the agent stopped: no more flows");
        }
        Ok(lines)
    }

    /// Counts them.
    pub(super) fn take(&mut self, lines: &[String]) -> Result<()> {
        for text in lines {
            match source::read(text).context("the agent's flow records")? {
                Line::Record(record) => self.pairs.add(&record).context("the agent's flow records")?,
                Line::Lost(count) => {
                    self.pairs.lose(count);
                    self.is_stale = true;
                }
            }
        }
        Ok(())
    }

    /// Asks what is open: of tunnels each time, for their bytes.
    pub(super) async fn look(&mut self) -> Result<()> {
        let all = std::mem::take(&mut self.is_stale);
        let wanted = WantedArgs { last: None, since: None, ..self.wanted.clone() };
        let mut parameters = flows::parameters(&wanted, false, Timestamp::now())?;
        parameters.push(("open", if all { "all" } else { "tunnel" }.to_owned()));
        let text = client::get(&self.socket, &query::address("/flows", parameters)).await?;
        let now = Timestamp::now().as_millisecond();
        if all && self.pairs.lost() > 0 {
            self.pairs.forget_open();
        }
        for line in text.lines() {
            if let Line::Record(record) = source::read(line).context("the agent's open connections")? {
                self.pairs.is_open(&record, now);
            }
        }
        self.pairs.forget_before(now - self.kept);
        Ok(())
    }
}
