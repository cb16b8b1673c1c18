//! The rows: which, in which order, and what is in them.

use std::cmp::Reverse;

use clap::ValueEnum;

use crate::cli::table;
use crate::graph::words::{number, size};
use crate::telemetry::pairs::{Key, Pair, Pairs, Rates};

/// Rates are over so many seconds.
const SECONDS: i64 = 10;

/// The columns.
pub(super) const TITLES: [&str; 8] = ["FROM", "TO", "PATH", "CONN/S", "OPEN", "REFUSED", "BYTES/S", "LAST"];

/// What comes first.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    /// Most connections a second.
    Connections,
    /// Most open.
    Open,
    /// Most refused.
    Refused,
    /// Most bytes a second.
    Bytes,
    /// What was last heard of.
    Last,
    /// By name.
    Name,
}

impl Sort {
    /// The next one, and after the last the first.
    pub(super) fn next(self) -> Self {
        let all = Self::value_variants();
        let place = all.iter().position(|sort| *sort == self).unwrap_or(0);
        all.get((place + 1) % all.len()).copied().unwrap_or(Self::Connections)
    }

    /// The column.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Connections => "CONN/S",
            Self::Open => "OPEN",
            Self::Refused => "REFUSED",
            Self::Bytes => "BYTES/S",
            Self::Last => "LAST",
            Self::Name => "FROM",
        }
    }
}

/// A pair, with its rates.
pub(super) struct Row<'a> {
    pub(super) pair: &'a Pair,
    pub(super) rates: Rates,
    pub(super) cells: [String; 8],
    key: &'a Key,
}

/// In their order: by what is asked for, then by name. `filter` is to be in one of the names.
pub(super) fn rows<'a>(pairs: &'a Pairs, sort: Sort, filter: &str, now: i64) -> Vec<Row<'a>> {
    let row = |(key, pair): (&'a Key, &'a Pair)| {
        let rates = pair.rates(now, SECONDS);
        let cells = [
            plain(&key.from.full()),
            plain(&key.to.full()),
            key.path.to_owned(),
            number(rates.opened),
            pair.open.to_string(),
            pair.refusals().to_string(),
            size(rates.bytes),
            age(now - pair.last),
        ];
        Row { pair, rates, cells, key }
    };
    let mut rows: Vec<Row> = pairs.iter().map(row).collect();
    rows.retain(|row| row.cells.iter().take(2).any(|name| name.contains(filter)));
    rows.sort_by(|a, b| {
        let more = |of: fn(&Row) -> f64| of(b).total_cmp(&of(a));
        let order = match sort {
            Sort::Connections => more(|row| row.rates.opened).then(more(|row| row.rates.refused)),
            Sort::Open => more(|row| row.pair.open as f64),
            Sort::Refused => more(|row| row.rates.refused).then(more(|row| row.pair.refusals() as f64)),
            Sort::Bytes => more(|row| row.rates.bytes),
            Sort::Last => Reverse(a.pair.last).cmp(&Reverse(b.pair.last)),
            Sort::Name => std::cmp::Ordering::Equal,
        };
        order.then_with(|| a.key.cmp(b.key))
    });
    rows
}

/// Names may come from a file: nothing in them is to reach a terminal as a command.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// As plain text.
pub(super) fn table(pairs: &Pairs, sort: Sort, most: Option<usize>, now: i64) -> String {
    let rows = rows(pairs, sort, "", now);
    let cells: Vec<Vec<String>> =
        rows.into_iter().take(most.unwrap_or(usize::MAX)).map(|row| row.cells.to_vec()).collect();
    table::render(&TITLES, &cells)
}

/// Milliseconds, in the largest unit that they have one of.
fn age(ms: i64) -> String {
    match ms.max(0) / 1000 {
        s if s < 120 => format!("{s}s"),
        s if s < 7200 => format!("{}m", s / 60),
        s => format!("{}h", s / 3600),
    }
}
