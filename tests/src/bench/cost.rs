//! What processes cost: processor time and memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Processor time that the processes have had so far, in user and in kernel mode, in seconds.
///
/// It is what the scheduler charged them: softirqs that ran while they were on the processor are in it.
pub(crate) fn processor_seconds(pids: &[u32]) -> Result<f64> {
    let mut total = Duration::ZERO;
    for pid in pids {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw((*pid).try_into()?));
        let time =
            clock.and_then(clock_gettime).with_context(|| format!("processor time of process {pid}"))?;
        total += Duration::from(time);
    }
    Ok(total.as_secs_f64())
}

/// Memory of processes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Pages shared with other processes count by their share.
    pub(crate) pss: u64,
    pub(crate) rss: u64,
}

impl Memory {
    /// What all of them hold now.
    pub(crate) fn of(pids: &[u32]) -> Result<Self> {
        let mut all = Self::default();
        for pid in pids {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            let one = Self::parse(&text).with_context(|| format!("{path} has no Pss and Rss"))?;
            all = Self { pss: all.pss + one.pss, rss: all.rss + one.rss };
        }
        Ok(all)
    }

    /// `Pss:   12 kB` (proc(5)).
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
        };
        Some(Self { pss: field("Pss:")?, rss: field("Rss:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_costs_are_there() {
        let own = [std::process::id()];
        let before = processor_seconds(&own).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {}
        assert!(processor_seconds(&own).unwrap() > before);
        let (one, two) = (Memory::of(&own).unwrap(), Memory::of(&[own[0], own[0]]).unwrap());
        assert!(one.rss >= one.pss && one.pss > 1 << 16, "{one:?}");
        assert!(two.rss > one.rss);
        assert!(Memory::of(&[u32::MAX >> 1]).is_err());
    }

    #[test]
    fn rollups_are_read() {
        let text =
            "5581 [rollup]\nRss:                 884 kB\nPss:                 385 kB\nPss_Dirty: 68 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { pss: 385 << 10, rss: 884 << 10 }));
        assert_eq!(Memory::parse("Rss: 1 kB\n"), None);
    }
}
