//! What is on the screen, and what keys do to it.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::rows::{Row, Sort, TITLES, rows};
use crate::cli::style::{Colour, Style};
use crate::graph::words::{number, size};
use crate::telemetry::pairs::Pairs;

/// Widths of the columns behind the two names, PATH first.
const WIDTHS: [usize; 6] = [11, 8, 7, 8, 10, 6];
/// Narrower names are of no use: the columns behind them are cut instead.
const NARROWEST: usize = 12;

/// What the keys have made of it.
pub(super) struct Screen {
    sort: Sort,
    most: Option<usize>,
    filter: String,
    is_typing: bool,
    is_paused: bool,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To go on, with what has changed.
    More,
    /// To stop.
    End,
}

impl Screen {
    pub(super) fn new(sort: Sort, most: Option<usize>) -> Self {
        Self { sort, most, filter: String::new(), is_typing: false, is_paused: false }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Does what a key says.
    pub(super) fn handle(&mut self, event: &Event) -> Asked {
        let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return Asked::More };
        if *kind == KeyEventKind::Release {
            return Asked::More;
        }
        if modifiers.contains(KeyModifiers::CONTROL) {
            return if *code == KeyCode::Char('c') { Asked::End } else { Asked::More };
        }
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace if self.is_typing => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.is_typing => self.filter.push(*c),
            KeyCode::Char('q') => return Asked::End,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = true,
            _ => {}
        }
        Asked::More
    }

    /// The lines, not more and not longer than there is room.
    pub(super) fn lines(
        &self,
        pairs: &Pairs,
        now: i64,
        (width, height): (usize, usize),
        style: Style,
    ) -> Vec<String> {
        let rows = rows(pairs, self.sort, &self.filter, now);
        let most = self.most.unwrap_or(usize::MAX).min(height.saturating_sub(4));
        let names = width.saturating_sub(WIDTHS.iter().sum::<usize>() + WIDTHS.len() + 1) / 2;
        let names = names.max(NARROWEST);
        let mut lines = vec![cut(&self.head(&rows, pairs), width), String::new()];
        lines.push(style.paint(Colour::Inverse, &cut(&line(TITLES.map(str::to_owned), names), width)));
        for row in rows.iter().take(most) {
            let text = cut(&line(row.cells.clone(), names), width);
            lines.push(if row.rates.refused > 0.0 { style.paint(Colour::Red, &text) } else { text });
        }
        lines.truncate(height.saturating_sub(1));
        lines.resize(height.saturating_sub(1), String::new());
        lines.push(cut(&self.foot(rows.len().saturating_sub(most)), width));
        lines
    }

    fn head(&self, rows: &[Row], pairs: &Pairs) -> String {
        let sum = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
        let lost =
            if pairs.lost() > 0 { format!("   {} records missing", pairs.lost()) } else { String::new() };
        format!(
            "culvert top   {} conn/s   {} open   {} refused/s   {}/s{lost}{}",
            number(sum(|row| row.rates.opened)),
            sum(|row| row.pair.open as f64),
            number(sum(|row| row.rates.refused)),
            size(sum(|row| row.rates.bytes)),
            if self.is_paused { "   PAUSED" } else { "" }
        )
    }

    fn foot(&self, hidden: usize) -> String {
        if self.is_typing {
            return format!("filter: {}_   Enter keeps it, Esc clears it", self.filter);
        }
        let filter = if self.filter.is_empty() { String::new() } else { format!(" [{}]", self.filter) };
        let hidden = if hidden > 0 { format!("{hidden} more rows   ") } else { String::new() };
        format!(
            "{hidden}q quit   s sort [{}]   p pause   / filter{filter}   rates of 10 s; bytes of direct and passthrough at their end",
            self.sort.title()
        )
    }
}

/// The names to the left, figures to the right.
fn line(cells: [String; 8], names: usize) -> String {
    let [from, to, rest @ ..] = cells;
    let mut text = format!("{} {}", pad(&from, names), pad(&to, names));
    for (n, (cell, width)) in rest.iter().zip(WIDTHS).enumerate() {
        text.push(' ');
        text.push_str(&if n == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
    }
    text
}

fn pad(name: &str, width: usize) -> String {
    let count = name.chars().count();
    if count <= width {
        return format!("{name:<width$}");
    }
    // The end of a name tells more than its beginning.
    let tail: String = name.chars().skip(count - width.saturating_sub(1)).collect();
    format!("…{tail}")
}

/// No longer than that.
fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

#[cfg(test)]
mod tests;
