//! `culvert top`: who talks to whom now, the busiest first.

mod feed;
mod rows;
mod screen;
mod terminal;

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::args::{SocketArgs, WantedArgs};
use super::flows::reader_gone;
use super::show::print;
use super::source;
use crate::telemetry::pairs::{By, Pairs};
use feed::Feed;
use rows::{Sort, table};
use screen::{Asked, Screen};
use terminal::Terminal;

/// `culvert top`.
#[derive(Args, Debug)]
pub(super) struct TopArgs {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    wanted: WantedArgs,
    /// Print a table of what `culvert flows -o json` wrote, instead of asking an agent; `-` is standard input
    #[arg(short, long, value_name = "FLOWS", conflicts_with = "count")]
    file: Vec<PathBuf>,
    /// What makes a row's ends
    #[arg(long, value_enum, default_value_t = By::Workload)]
    by: By,
    /// What comes first
    #[arg(long, value_enum, default_value_t = Sort::Connections)]
    sort: Sort,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// Print one table and stop, as when standard output is no terminal
    #[arg(long)]
    once: bool,
    /// Print N tables, one each interval, and stop
    #[arg(long, value_name = "N", conflicts_with = "once")]
    count: Option<u64>,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (0.2..=3600.0).contains(n));
    number.ok_or_else(|| "write seconds, from 0.2 to 3600".to_owned())
}

/// Shows it until somebody has seen enough, or prints it.
pub(super) async fn run(args: &TopArgs) -> Result<()> {
    if !args.file.is_empty() {
        let mut pairs = Pairs::new(args.by);
        source::from_files(&mut pairs, &args.file, &args.wanted)?;
        let now = pairs.span().map_or(0, |(_, last)| last);
        return print(&table(&pairs, args.sort, args.rows, now));
    }
    if let Some(count) = args.count {
        return tokio::select! {
            result = several(args, count) => result,
            () = reader_gone() => Ok(()),
        };
    }
    if args.once || !stdout().is_terminal() {
        let mut feed = Feed::open(&args.socket, &args.wanted, args.by, false).await?;
        while let Some(batch) = feed.next().await? {
            feed.take(&batch)?;
        }
        feed.look().await?;
        return print(&table(&feed.pairs, args.sort, args.rows, now()));
    }
    watch(args).await
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

async fn several(args: &TopArgs, count: u64) -> Result<()> {
    let mut feed = Feed::open(&args.socket, &args.wanted, args.by, true).await?;
    let mut ticks = ticks(args);
    let mut printed = 0;
    while printed < count {
        tokio::select! {
            batch = feed.next() => feed.take(&batch?.unwrap_or_default())?,
            _ = ticks.tick() => {
                feed.look().await?;
                let space = if printed > 0 { "\n" } else { "" };
                print(&format!("{space}{}", table(&feed.pairs, args.sort, args.rows, now())))?;
                printed += 1;
            }
        }
    }
    Ok(())
}

fn ticks(args: &TopArgs) -> tokio::time::Interval {
    let every = Duration::from_secs_f64(args.interval);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

async fn watch(args: &TopArgs) -> Result<()> {
    let mut feed = Feed::open(&args.socket, &args.wanted, args.by, true).await?;
    feed.look().await?;
    let mut screen = Screen::new(args.sort, args.rows);
    let (mut ticks, mut ended) = (ticks(args), signal(SignalKind::terminate())?);
    let mut hung_up = signal(SignalKind::hangup())?;
    // Restores the terminal when it goes, however that comes.
    let mut terminal = Terminal::take()?;
    terminal.draw(&screen, &feed.pairs, now())?;
    // What is kept comes at once: a first look at it is not made to wait for the interval.
    let mut first = Box::pin(tokio::time::sleep(Duration::from_millis(200)));
    let mut begun = false;
    loop {
        tokio::select! {
            batch = feed.next() => feed.take(&batch?.unwrap_or_default())?,
            () = &mut first, if !begun => {
                begun = true;
                terminal.draw(&screen, &feed.pairs, now())?;
            }
            _ = ticks.tick() => {
                feed.look().await?;
                if !screen.is_paused() {
                    terminal.draw(&screen, &feed.pairs, now())?;
                }
            }
            event = terminal.event() => {
                if screen.handle(&event?) == Asked::End {
                    return Ok(());
                }
                terminal.draw(&screen, &feed.pairs, now())?;
            }
            _ = ended.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        }
    }
}
