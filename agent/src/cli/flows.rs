//! `culvert flows`: records as they are, or as they come.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::args::{FlowArgs, FlowOutput, WantedArgs};
use super::client;
use super::show::print;
use super::style::{Colour, Style};
use crate::admin::query;

/// Prints flow records, and goes on with `--follow` until it is interrupted or nobody reads.
pub(super) async fn run(args: &FlowArgs) -> Result<()> {
    let socket = client::socket(args.socket.instance.as_deref())?;
    let address = query::address("/flows", parameters(&args.wanted, args.follow, Timestamp::now())?);
    tokio::select! {
        result = show(&socket, &address, args) => result,
        result = tokio::signal::ctrl_c() => Ok(result?),
        () = reader_gone() => Ok(()),
    }
}

async fn show(socket: &Path, address: &str, args: &FlowArgs) -> Result<()> {
    let style = Style::of_stdout();
    let mut lines = client::Lines::open(socket, address).await?;
    while let Some(batch) = lines.next().await? {
        let mut out = String::new();
        for text in batch {
            let record: Value = serde_json::from_str(&text).context("the agent's flow records")?;
            if args.output != FlowOutput::Text {
                out.push_str(&text);
            } else if let Some(lost) = record["lost"].as_u64() {
                // In its place among the records, though it goes elsewhere.
                print(&std::mem::take(&mut out))?;
                eprintln!("culvert: {lost} records are missing here: {}", text_of(&record["reason"]));
                continue;
            } else {
                out.push_str(&line(&record, style));
            }
            out.push('\n');
        }
        print(&out)?;
    }
    if args.follow {
        bail!("the agent stopped: no more flows");
    }
    Ok(())
}

/// What the agent is asked for.
pub(super) fn parameters(
    args: &WantedArgs,
    follow: bool,
    now: Timestamp,
) -> Result<Vec<(&'static str, String)>> {
    let mut pairs = Vec::new();
    let mut put = |name, value: Option<String>| pairs.extend(value.map(|value| (name, value)));
    put("follow", follow.then(String::new));
    put("from", args.from.as_ref().map(ToString::to_string));
    put("to", args.to.as_ref().map(ToString::to_string));
    put("verdict", (!args.verdict.is_empty()).then(|| args.verdict.join(",").to_lowercase()));
    put("policy", args.policy.clone());
    put("last", args.last.map(|last| last.to_string()));
    let after = args.since.as_deref().map(|when| moment(when, now)).transpose()?;
    put("after", after.map(|after| after.to_string()));
    Ok(pairs)
}

/// A time, or how long ago it was.
pub(super) fn moment(text: &str, now: Timestamp) -> Result<Timestamp> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = text.parse::<SignedDuration>().ok().filter(|ago| !ago.is_negative());
    ago.and_then(|ago| now.checked_sub(ago).ok()).with_context(|| {
        format!("--since {text:?}: write how long ago (30s, 5m, 1h30m) or a time (2026-01-31T12:00:00Z)")
    })
}

/// When standard output is a pipe that nobody reads any more: without flows to write it would not be noticed.
pub(super) async fn reader_gone() {
    let watched = || -> io::Result<pipe::Sender> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        // Checks that it is a pipe, and leaves it as blocking as it is: others may write to it too.
        if !std::fs::File::from(stdout.try_clone()?).metadata()?.file_type().is_fifo() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        pipe::Sender::from_owned_fd_unchecked(stdout)
    };
    match watched() {
        Ok(pipe) => drop(pipe.ready(Interest::ERROR).await),
        Err(_) => std::future::pending().await,
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// One record for people.
fn line(record: &Value, style: Style) -> String {
    let text = |value: &Value| text_of(value).to_owned();
    let end = |end: &Value| match end["workload"].as_str() {
        Some("") | None => match text(&end["address"]) {
            v6 if v6.contains(':') => format!("[{v6}]:{}", end["port"]),
            v4 => format!("{v4}:{}", end["port"]),
        },
        Some(workload) => format!("{workload}:{}", end["port"]),
    };
    let stage = format!("{:<8}", text(&record["stage"]).to_uppercase());
    let stage = match text_of(&record["stage"]) {
        "opened" => style.paint(Colour::Green, &stage),
        "refused" => style.paint(Colour::Red, &stage),
        "ended" => style.paint(Colour::Yellow, &stage),
        _ => stage,
    };
    let mut line = format!(
        "{}  {stage} {:<11} {} -> {}",
        text(&record["time"]),
        text(&record["path"]),
        end(&record["source"]),
        end(&record["destination"]),
    );
    if let Some(service) = record["requested"]["service"].as_str().filter(|s| !s.is_empty()) {
        line.push_str(&format!(" for {service}"));
    }
    line.push_str(&format!("  {} at {}", text(&record["reason"]), text(&record["side"])));
    for (field, open, close) in [("policy", " [", "]"), ("note", " (", ")"), ("error", ": ", "")] {
        if let Some(value) = record[field].as_str().filter(|s| !s.is_empty()) {
            line.push_str(&format!("{open}{value}{close}"));
        }
    }
    if let Some(identity) = record["source"]["identity"].as_str().filter(|s| !s.is_empty()) {
        line.push_str(&format!("  by {identity}"));
    }
    if record["stage"] == "closed" {
        line.push_str(&format!("  sent {} received {}", record["bytes_sent"], record["bytes_received"]));
    }
    line
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: FlowArgs,
    }

    fn asked(words: &str) -> Result<String, String> {
        let words = std::iter::once("flows").chain(words.split_whitespace());
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let pairs =
            parameters(&only.args.wanted, only.args.follow, now).map_err(|error| error.to_string())?;
        Ok(query::address("/flows", pairs))
    }

    #[test]
    fn filters_are_asked_of_the_agent() {
        assert_eq!(asked("").as_deref(), Ok("/flows"));
        assert_eq!(
            asked("-f --from shop --to fd00::/64 --verdict Refused,ended --policy shop/x --last 3")
                .as_deref(),
            Ok("/flows?follow=&from=shop/&to=fd00::/64&verdict=refused,ended&policy=shop/x&last=3")
        );
        assert_eq!(asked("--since 1h30m").as_deref(), Ok("/flows?after=2026-01-02T01:34:05Z"));
        assert_eq!(asked("--since 2026-01-01T00:00:00Z").as_deref(), Ok("/flows?after=2026-01-01T00:00:00Z"));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_to_write() {
        for (words, says) in [
            ("--from shop/a/b", "write namespace/pod"),
            ("--verdict denied", "possible values: allowed, refused, opened, closed, ended"),
            ("--since yesterday", "write how long ago"),
            ("--since=-5m", "write how long ago"),
            ("-o xml", "possible values: text, json, jsonl"),
        ] {
            let error = asked(words).unwrap_err();
            assert!(error.contains(says), "{words}: {error}");
        }
    }
}
