//! The terminal, taken for a while and given back in any case.

use std::io::{self, Write, stdout};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result};
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{execute, queue};
use tokio::sync::mpsc;

use super::screen::Screen;
use crate::cli::style::Style;
use crate::telemetry::pairs::Pairs;

/// A screen of its own, keys as they are pressed.
pub(super) struct Terminal {
    events: mpsc::UnboundedReceiver<io::Result<Event>>,
    style: Style,
}

impl Terminal {
    /// Takes it. Whoever panics from then on does so on the screen that was there before.
    pub(super) fn take() -> Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                give_back();
                before(info);
            }));
        });
        enable_raw_mode().context("the terminal cannot be used: try --once")?;
        let (sender, events) = mpsc::unbounded_channel();
        // From here on it is given back.
        let terminal = Self { events, style: Style::of_stdout() };
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        std::thread::spawn(move || keys(&sender));
        Ok(terminal)
    }

    /// The next key, or another size.
    pub(super) async fn event(&mut self) -> Result<Event> {
        let event = self.events.recv().await.context("no more keys")?;
        event.context("keys cannot be read")
    }

    /// Draws all of it at once.
    pub(super) fn draw(&mut self, screen: &Screen, pairs: &Pairs, now: i64) -> Result<()> {
        let (width, height) = size()?;
        let mut out = Vec::new();
        queue!(out, BeginSynchronizedUpdate)?;
        let room = (usize::from(width), usize::from(height));
        for (row, line) in (0..height).zip(screen.lines(pairs, now, room, self.style)) {
            queue!(out, MoveTo(0, row), Clear(ClearType::CurrentLine))?;
            out.extend_from_slice(line.as_bytes());
        }
        queue!(out, EndSynchronizedUpdate)?;
        let mut stdout = stdout().lock();
        stdout.write_all(&out)?;
        Ok(stdout.flush()?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// Nothing more can be done where that fails.
fn give_back() {
    let _ = execute!(stdout(), Show, LeaveAlternateScreen);
    let _ = disable_raw_mode();
}

/// Until nobody listens, or nothing can be read.
fn keys(sender: &mpsc::UnboundedSender<io::Result<Event>>) {
    while !sender.is_closed() {
        let event = match event::poll(Duration::from_millis(250)) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(error) => Err(error),
        };
        let failed = event.is_err();
        if sender.send(event).is_err() || failed {
            return;
        }
    }
}
