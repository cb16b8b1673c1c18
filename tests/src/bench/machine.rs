//! Where and when a run was.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine, the programs and the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// RFC 3339.
    pub(crate) date: String,
    /// The processor's name.
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// KiB.
    pub(crate) memory: u64,
    /// Processes that wanted a processor before the run, as /proc/loadavg has it: a machine that has other work measures that, too.
    pub(crate) load: String,
    /// `culvert --version`.
    pub(crate) culvert: String,
    pub(crate) command: Vec<String>,
}

impl Machine {
    /// This one, now.
    pub(crate) fn here(culvert: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let version = Command::new(culvert).arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let now = jiff::Timestamp::now();
        Self {
            date: now.round(jiff::Unit::Second).unwrap_or(now).to_string(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory: memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default(),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            culvert: version.unwrap_or_default(),
            command: std::env::args().collect(),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let day = self.date.split('T').next().unwrap_or_default();
        format!(
            "{day}, {}, {} cores, {} GiB, Linux {}, {}; load before: {}",
            self.processor,
            self.cores,
            (self.memory + (1 << 19)) >> 20,
            self.kernel,
            self.culvert,
            self.load
        )
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            date: "2026-11-21T12:00:00Z".to_owned(),
            processor: "Some Processor".to_owned(),
            cores: 2,
            kernel: "6.18.0".to_owned(),
            memory: 23 << 20,
            load: "0.10 0.20 0.30".to_owned(),
            culvert: "culvert 0.1.0".to_owned(),
            command: vec!["culvert-lab".to_owned(), "bench".to_owned()],
        }
    }
}

/// `name : value`, the first of them.
fn field(text: &str, name: &str) -> String {
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value).unwrap_or_default()
}
