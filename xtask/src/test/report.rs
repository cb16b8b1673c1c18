//! What the stages of a test run did, and the table at its end.

use std::process::ExitCode;
use std::time::Instant;

use super::tally::Tally;
use crate::exec;

/// How a stage ended.
pub(super) enum Outcome {
    /// Nothing failed.
    Passed(Tally),
    /// Something failed; the text is for a person.
    Failed(Tally, String),
    /// It did not run; the text says why.
    Skipped(String),
}

impl Outcome {
    /// A stage that failed as a whole.
    pub(super) fn failed(text: String) -> Self {
        Self::Failed(Tally::default(), text)
    }
}

/// The stages so far.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    result: String,
    tally: Tally,
    took: String,
}

impl Report {
    /// Runs a stage and records it. True when nothing failed.
    pub(super) fn stage(&mut self, name: &'static str, work: impl FnOnce() -> Outcome) -> bool {
        println!("== {name}");
        let start = Instant::now();
        let outcome = work();
        self.record(name, outcome, exec::since(start))
    }

    /// Records a stage that does not run. Always false.
    pub(super) fn skip(&mut self, name: &'static str, why: &str) -> bool {
        println!("== {name}");
        self.record(name, Outcome::Skipped(why.to_owned()), String::new())
    }

    fn record(&mut self, name: &'static str, outcome: Outcome, took: String) -> bool {
        let (result, tally, fine) = match outcome {
            Outcome::Passed(tally) => ("ok".to_owned(), tally, true),
            Outcome::Failed(mut tally, text) => {
                println!("{text}");
                // What failed as a whole, a build for example, counts as one.
                tally.failed = tally.failed.max(1);
                ("FAILED".to_owned(), tally, false)
            }
            Outcome::Skipped(why) => {
                (format!("skipped: {why}"), Tally { skipped: 1, ..Tally::default() }, false)
            }
        };
        println!("   {name}: {result}{}{took}", if took.is_empty() { "" } else { ", " });
        self.rows.push(Row { name, result, tally, took });
        fine
    }

    /// Prints the table and, as the last line, the sum.
    pub(super) fn finish(self) -> ExitCode {
        println!("\n{:<16} {:>7} {:>7} {:>7} {:>14}  result", "stage", "passed", "failed", "skipped", "time");
        for Row { name, result, tally, took } in &self.rows {
            let Tally { passed, failed, skipped } = tally;
            println!("{name:<16} {passed:>7} {failed:>7} {skipped:>7} {took:>14}  {result}");
        }
        let total: Tally = self.rows.iter().map(|row| row.tally).sum();
        println!("\n{total}");
        if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
