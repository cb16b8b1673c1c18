//! What a run found: every sample, and what they add up to. This is the JSON of `--json`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::cost::Memory;
use super::load::{Latency, Outcome};
use super::machine::Machine;
use super::plan::{Family, Leg, Workload};
use super::stats::Spread;

/// Of the JSON; another one is not read.
pub(crate) const FORMAT: u32 = 1;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) format: u32,
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) duration_ms: u64,
    /// Enrolled pods beside the measured ones, and policies.
    pub(crate) pods: u32,
    pub(crate) policies: u32,
    /// The name of `--peer`.
    pub(crate) peer: Option<String>,
    pub(crate) samples: Vec<Sample>,
    /// Of both agents together: when they were ready, and at the end.
    pub(crate) agents: [Memory; 2],
    /// What was wrong.
    pub(crate) problems: Vec<String>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// From 1.
    pub(crate) round: u32,
    pub(crate) family: Family,
    pub(crate) workload: Workload,
    pub(crate) leg: Leg,
    /// In the workload's unit.
    pub(crate) value: f64,
    /// Milliseconds of the second connection ([`Workload::First`]).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) second: Option<f64>,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) latency: Option<Latency>,
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) failures: u64,
    /// Processor seconds of the leg's processes meanwhile: of both agents, or of the peer.
    pub(crate) processor: f64,
    /// Of the leg's processes with the connections open ([`Workload::Idle`]).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) memory: Option<Memory>,
}

impl Sample {
    /// Nothing yet.
    pub(crate) fn empty(round: u32, family: Family, workload: Workload, leg: Leg) -> Self {
        Self {
            round,
            family,
            workload,
            leg,
            value: 0.0,
            second: None,
            latency: None,
            connections: 0,
            requests: 0,
            bytes: 0,
            failures: 0,
            processor: 0.0,
            memory: None,
        }
    }

    /// What the client found.
    pub(crate) fn take(&mut self, outcome: &Outcome) {
        let Outcome { value, second, latency, connections, requests, bytes, failures, .. } = *outcome;
        (self.value, self.second, self.latency) = (value, second, latency);
        (self.connections, self.requests, self.bytes, self.failures) =
            (connections, requests, bytes, failures);
    }

    /// Processor seconds for a GiB, or for 10,000 requests.
    pub(crate) fn cost(&self) -> f64 {
        let work = match self.workload {
            Workload::Stream { .. } => self.bytes,
            _ => self.requests,
        };
        self.processor * self.workload.work_unit().1 / work as f64
    }
}

/// What the rounds of one leg say together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) leg: Leg,
    pub(crate) value: Spread,
    /// Of the raw leg's value in the same round.
    pub(crate) ratio: Option<Spread>,
    pub(crate) second: Option<Spread>,
    /// Median of each.
    pub(crate) latency: Option<Latency>,
    /// Median; `None` where no process was watched.
    pub(crate) cost: Option<f64>,
    pub(crate) memory: Option<Memory>,
    pub(crate) failures: u64,
}

impl Results {
    /// The groups of the table, in the order in which they were first measured.
    pub(crate) fn groups(&self) -> Vec<(Family, Workload)> {
        let mut groups: Vec<(Family, Workload)> = Vec::new();
        for sample in &self.samples {
            let group = (sample.family, sample.workload);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups.sort_by_key(|(family, workload)| (*family, workload.kind()));
        groups
    }

    /// The legs of a group that were measured.
    pub(crate) fn rows(&self, family: Family, workload: Workload) -> Vec<Row> {
        let legs = [Leg::RawNear, Leg::Direct, Leg::RawFar, Leg::Tunnel, Leg::Peer];
        legs.into_iter().filter_map(|leg| self.row(family, workload, leg)).collect()
    }

    /// One of them; `None` when it was not measured.
    pub(crate) fn row(&self, family: Family, workload: Workload, leg: Leg) -> Option<Row> {
        let of = |leg: Leg| {
            let same = move |s: &&Sample| s.family == family && s.workload == workload && s.leg == leg;
            self.samples.iter().filter(same)
        };
        let median = |get: fn(&Sample) -> Option<f64>| Spread::of(of(leg).filter_map(get));
        let raw = |round| of(leg.raw()?).find(|raw| raw.round == round).map(|raw| raw.value);
        let latency = |get: fn(&Latency) -> f64| {
            let all = of(leg).filter_map(|sample| sample.latency.as_ref().map(get));
            Spread::of(all).map(|spread| spread.median)
        };
        Some(Row {
            leg,
            value: median(|s| Some(s.value))?,
            ratio: Spread::of(of(leg).filter_map(|s| Some(s.value / raw(s.round)?))),
            second: median(|s| s.second),
            latency: latency(|l| l.p50)
                .zip(latency(|l| l.p99))
                .zip(latency(|l| l.p999))
                .map(|((p50, p99), p999)| Latency { p50, p99, p999 }),
            cost: leg.raw().and_then(|_| median(|s| (s.processor > 0.0).then(|| s.cost()))).map(|s| s.median),
            memory: of(leg).find_map(|sample| sample.memory),
            failures: of(leg).map(|sample| sample.failures).sum(),
        })
    }

    /// Reads what `--json` has written.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let value: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{}: no JSON", path.display()))?;
        if value["format"] != FORMAT {
            bail!("{}: its format is {}, this program reads {FORMAT}", path.display(), value["format"]);
        }
        serde_json::from_value(value).with_context(|| format!("{}: not of `bench --json`", path.display()))
    }

    /// Writes it for [`Results::read`].
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
pub(crate) mod tests;
