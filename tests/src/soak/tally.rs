//! Counts what was judged, by kind of flow.

use std::collections::BTreeMap;
use std::fmt;

use super::oracle::Judgement;

/// Counts, and what was wrong.
#[derive(Default)]
pub(crate) struct Tally {
    kinds: BTreeMap<String, [u64; 6]>,
    wrong: Vec<String>,
    /// The longest time, in microseconds, from a change to a connection that was still as before.
    slowest: u64,
}

/// Violations that are kept in full.
const KEPT: usize = 25;

impl Tally {
    pub(crate) fn add(&mut self, kind: String, judgement: &Judgement) {
        let column = match judgement {
            Judgement::Passed => 0,
            Judgement::Refused => 1,
            Judgement::Tolerated(lag) => {
                self.slowest = self.slowest.max(*lag);
                2
            }
            Judgement::Away => 3,
            Judgement::Older => 4,
            Judgement::Wrong(_) => 5,
        };
        self.kinds.entry(kind).or_default()[column] += 1;
    }

    /// A violation. True when it is worth printing.
    pub(crate) fn wrong(&mut self, text: String) -> bool {
        self.wrong.push(text);
        self.wrong.len() <= KEPT
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.wrong.is_empty()
    }

    pub(crate) fn total(&self) -> u64 {
        self.kinds.values().flatten().sum()
    }

    pub(crate) fn violations(&self) -> usize {
        self.wrong.len()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, cells: [String; 6]| {
            let [a, b, c, d, e, g] = cells;
            writeln!(f, "{name:<46} {a:>8} {b:>8} {c:>9} {d:>9} {e:>7} {g:>6}")
        };
        let heads = ["passed", "refused", "tolerated", "no agent", "older", "wrong"];
        row(f, "flow", heads.map(str::to_owned))?;
        let mut sums = [0; 6];
        for (kind, counts) in &self.kinds {
            row(f, kind, counts.map(|n| n.to_string()))?;
            for (sum, n) in sums.iter_mut().zip(counts) {
                *sum += n;
            }
        }
        row(f, "all", sums.map(|n| n.to_string()))?;
        writeln!(
            f,
            "tolerated: either verdict, within 2 s of a change; no agent: a tunnel failed while one was away;"
        )?;
        writeln!(f, "slowest change in force after {} ms", self.slowest / 1000)?;
        writeln!(f, "older: a connection that began before its pods joined or left")?;
        for text in self.wrong.iter().take(KEPT) {
            writeln!(f, "WRONG {text}")?;
        }
        writeln!(f, "{} violations", self.wrong.len())
    }
}
