//! What a run of transfers tells.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::plan::{Ending, Plan, Rules};
use super::verdict::{Counted, Path};

/// Failures that are shown; the others are counted.
const SHOWN: usize = 20;
const MIB: f64 = (1 << 20) as f64;

/// What happened so far.
pub(crate) struct Summary {
    path: Path,
    rules: Rules,
    connections: u64,
    ipv6: u64,
    virtual_address: u64,
    to_server: u64,
    to_client: u64,
    largest: u64,
    endings: BTreeMap<Ending, u64>,
    counted: Counted,
    failed: u64,
    wrong: Vec<String>,
    /// Since the first connection.
    pub(crate) took: Duration,
}

impl Summary {
    pub(crate) fn new(path: Path, rules: Rules) -> Self {
        Self {
            path,
            rules,
            connections: 0,
            ipv6: 0,
            virtual_address: 0,
            to_server: 0,
            to_client: 0,
            largest: 0,
            endings: BTreeMap::new(),
            counted: Counted::default(),
            failed: 0,
            wrong: Vec::new(),
            took: Duration::ZERO,
        }
    }

    /// A connection that was played, and what was wrong with it.
    pub(crate) fn add(&mut self, plan: &Plan, wrong: Vec<String>) {
        self.connections += 1;
        self.ipv6 += u64::from(plan.ipv6);
        self.virtual_address += u64::from(plan.virtual_address);
        self.to_server += plan.client.size;
        self.to_client += plan.server.size;
        let sizes = [plan.client.size, plan.server.size];
        self.largest += sizes.iter().filter(|size| **size == self.rules.max_size).count() as u64;
        *self.endings.entry(plan.ending).or_default() += 1;
        if wrong.is_empty() {
            return;
        }
        self.failed += 1;
        let text = format!(
            "connection {} ({}, {}, {} bytes to the server, {} to the client, ending: {}): {}",
            plan.number,
            if plan.ipv6 { "IPv6" } else { "IPv4" },
            if plan.virtual_address { "virtual address" } else { "pod address" },
            plan.client.size,
            plan.server.size,
            plan.ending.as_str(),
            wrong.join("; "),
        );
        eprintln!("FAILED {text}");
        self.wrong.push(format!("{text}\n    again: --seed {} --only {}", self.rules.seed, plan.number));
    }

    /// Something that is wrong with no connection in particular.
    pub(crate) fn wrong(&mut self, text: String) {
        self.wrong.push(text);
    }

    /// What the agents counted meanwhile.
    pub(crate) fn count(&mut self, more: &Counted) {
        self.counted = self.counted.and(more);
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.wrong.is_empty()
    }

    /// One line while it goes on.
    pub(crate) fn progress(&self, total: usize) -> String {
        let (bytes, seconds) = (self.bytes(), self.took.as_secs_f64());
        format!(
            "  {:>6} of {total}, {:.0} MiB, {seconds:.1} s, {} failed",
            self.connections,
            bytes / MIB,
            self.failed
        )
    }

    fn bytes(&self) -> f64 {
        (self.to_server + self.to_client) as f64
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endings: Vec<String> =
            self.endings.iter().map(|(ending, count)| format!("{} {count}", ending.as_str())).collect();
        let (bytes, seconds) = (self.bytes(), self.took.as_secs_f64());
        writeln!(
            f,
            "connections  {}: IPv4 {}, IPv6 {}; to virtual addresses {}",
            self.connections,
            self.connections - self.ipv6,
            self.ipv6,
            self.virtual_address
        )?;
        writeln!(
            f,
            "bytes        {} to servers, {} to clients; {} payloads of the largest size, {} bytes",
            self.to_server, self.to_client, self.largest, self.rules.max_size
        )?;
        writeln!(f, "endings      {}", endings.join(", "))?;
        writeln!(
            f,
            "path         {}: the kernel counted {} direct, {} tunnel, {} passthrough; agents relayed {} bytes",
            self.path.as_str(),
            self.counted.direct,
            self.counted.tunnel,
            self.counted.passthrough,
            self.counted.relayed
        )?;
        writeln!(f, "time         {seconds:.1} s, {:.0} MiB/s", bytes / MIB / seconds.max(0.001))?;
        for text in self.wrong.iter().take(SHOWN) {
            writeln!(f, "WRONG        {text}")?;
        }
        if self.wrong.len() > SHOWN {
            writeln!(f, "             … and {} more", self.wrong.len() - SHOWN)?;
        }
        writeln!(f, "failures     {} connections, {} findings", self.failed, self.wrong.len())
    }
}
