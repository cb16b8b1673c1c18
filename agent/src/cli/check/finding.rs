//! One line of `culvert check`.

use std::fmt::Write;

use serde::Serialize;

use crate::cli::style::{Colour, Style};

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Culvert works, with less; or it will not for long.
    Warning,
    /// Something does not work.
    Error,
}

/// What was looked at, how it is, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) what: &'static str,
    pub(super) detail: String,
    /// Empty where there is nothing to do.
    pub(super) remedy: String,
}

impl Finding {
    pub(super) fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, detail: detail.into(), remedy: String::new() }
    }

    pub(super) fn warning(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, what, detail: detail.into(), remedy: remedy.into() }
    }

    pub(super) fn error(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, what, detail: detail.into(), remedy: remedy.into() }
    }
}

/// A line for each of `shown` with its remedy below, and one that counts `all`.
pub(super) fn table(shown: &[&Finding], all: &[Finding], style: Style) -> String {
    let width = shown.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut out = String::new();
    for Finding { level, what, detail, remedy } in shown {
        let (word, colour) = match level {
            Level::Ok => ("ok", Colour::Green),
            Level::Warning => ("warning", Colour::Yellow),
            Level::Error => ("error", Colour::Red),
        };
        let word = style.paint(colour, &format!("{word:<7}"));
        // A String takes everything.
        let _ = writeln!(out, "{word}  {what:<width$}  {detail}");
        if !remedy.is_empty() {
            let _ = writeln!(out, "{:indent$}to do: {remedy}", "", indent = 7 + 2 + width + 2);
        }
    }
    let count = |level| all.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let separator = if shown.is_empty() { "" } else { "\n" };
    let _ = match (errors, warnings) {
        (0, 0) => writeln!(out, "{separator}All {} checks are fine.", all.len()),
        _ => writeln!(
            out,
            "{separator}{} checks: {}, {}.",
            all.len(),
            number(errors, "error"),
            number(warnings, "warning")
        ),
    };
    out
}

/// `1 error`, `2 errors`.
pub(super) fn number(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
