//! Counting tests from what runners print.

use std::fmt;
use std::iter::Sum;

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ran and held.
    pub(crate) passed: u64,
    /// Ran and did not hold.
    pub(crate) failed: u64,
    /// Did not run.
    pub(crate) skipped: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |a, b| Self {
            passed: a.passed + b.passed,
            failed: a.failed + b.failed,
            skipped: a.skipped + b.skipped,
        })
    }
}

/// The test binaries that a `cargo test` ran, with their counts; those without tests are left out.
pub(crate) fn libtest(output: &str) -> Vec<(String, Tally)> {
    let mut suites = Vec::new();
    let mut name = String::from("tests");
    for line in output.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ").or_else(|| line.strip_prefix("Doc-tests ")) {
            // `unittests src/lib.rs (target/debug/deps/culvert-0123456789abcdef)`: the crate tells more than the path.
            name = match rest.split_once(" (") {
                Some((source, binary)) => format!("{}: {source}", crate_of(binary)),
                None => format!("{rest}: documentation"),
            };
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let tally = Tally {
                passed: count_before(rest, "passed"),
                failed: count_before(rest, "failed"),
                skipped: count_before(rest, "ignored"),
            };
            if tally != Tally::default() {
                suites.push((name.clone(), tally));
            }
        }
    }
    suites
}

fn crate_of(binary: &str) -> &str {
    let file = binary.trim_end_matches(')').rsplit('/').next().unwrap_or(binary);
    file.rsplit_once('-').map_or(file, |(name, _hash)| name)
}

/// The failure reports in a `cargo test`'s output, without the lists of tests that passed.
pub(crate) fn failures(output: &str) -> String {
    let mut inside = false;
    let mut text = String::new();
    for line in output.lines() {
        if line == "failures:" {
            inside = true;
        } else if line.starts_with("test result: ") {
            inside = false;
        } else if inside {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The counts of a last line `N passed, N failed`, with or without `, N skipped`.
pub(crate) fn closing_line(output: &str) -> Option<Tally> {
    let line = output.trim_end().lines().next_back()?.trim();
    if !line.contains(" passed, ") || !line.contains(" failed") {
        return None;
    }
    Some(Tally {
        passed: count_before(line, "passed"),
        failed: count_before(line, "failed"),
        skipped: count_before(line, "skipped"),
    })
}

fn count_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ',', ';']).filter(|part| !part.is_empty()).collect();
    words
        .windows(2)
        .find_map(|pair| if pair[1] == word { pair[0].parse().ok() } else { None })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
     Running unittests src/lib.rs (target/debug/deps/culvert_common-00aa11bb22cc33dd)

running 2 tests
test addr::tests::round_trip ... ok
test addr::tests::order ... FAILED

failures:

---- addr::tests::order stdout ----
left: 1, right: 2

failures:
    addr::tests::order

test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/kernel.rs (target/debug/deps/kernel-0011223344556677)

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests culvert
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";

    #[test]
    fn each_test_binary_is_counted_and_empty_ones_left_out() {
        let suites = libtest(RUN);
        assert_eq!(suites.len(), 2);
        assert_eq!(suites[0].0, "culvert_common: unittests src/lib.rs");
        assert_eq!(suites[0].1, Tally { passed: 1, failed: 1, skipped: 3 });
        assert_eq!(suites[1].0, "culvert: documentation");
        assert_eq!(suites[1].1.passed, 4);
    }

    #[test]
    fn failures_are_told_without_what_passed() {
        let text = failures(RUN);
        assert!(text.contains("left: 1, right: 2"));
        assert!(!text.contains("round_trip"));
    }

    #[test]
    fn a_closing_line_counts_only_at_the_end() {
        assert_eq!(closing_line("x\n3 passed, 1 failed\n"), Some(Tally { passed: 3, failed: 1, skipped: 0 }));
        assert_eq!(
            closing_line("12 passed, 0 failed, 2 skipped"),
            Some(Tally { passed: 12, failed: 0, skipped: 2 })
        );
        assert_eq!(closing_line("3 passed, 1 failed\nerror: killed"), None);
        assert_eq!(closing_line(""), None);
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let tally = Tally { passed: 7, failed: 0, skipped: 1 };
        assert_eq!(closing_line(&tally.to_string()), Some(tally));
    }
}
