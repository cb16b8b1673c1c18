//! Colours, where somebody looks: on a terminal, and not where NO_COLOR (no-color.org) says no.

use std::env;
use std::io::{IsTerminal, stdout};

/// What a colour says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Colour {
    /// It went well.
    Green,
    /// It was refused.
    Red,
    /// It was cut short.
    Yellow,
    /// It is a title.
    Inverse,
}

/// Whether to colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Style(bool);

impl Style {
    /// For what goes to standard output.
    pub(super) fn of_stdout() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        Self::new(stdout().is_terminal(), set("NO_COLOR").is_some(), dumb)
    }

    /// For tests.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self(false)
    }

    fn new(terminal: bool, no_color: bool, dumb: bool) -> Self {
        Self(terminal && !no_color && !dumb)
    }

    /// `text`, coloured or as it is.
    pub(super) fn paint(self, colour: Colour, text: &str) -> String {
        let number = match colour {
            Colour::Green => 32,
            Colour::Red => 31,
            Colour::Yellow => 33,
            Colour::Inverse => 7,
        };
        if self.0 { format!("\x1b[{number}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::{Colour, Style};

    #[test]
    fn colours_are_for_terminals_whose_user_wants_them() {
        let paint =
            |terminal, no_color, dumb| Style::new(terminal, no_color, dumb).paint(Colour::Red, "REFUSED");
        assert_eq!(paint(true, false, false), "\x1b[31mREFUSED\x1b[0m");
        for (terminal, no_color, dumb) in [(false, false, false), (true, true, false), (true, false, true)] {
            assert_eq!(paint(terminal, no_color, dumb), "REFUSED");
        }
    }
}
