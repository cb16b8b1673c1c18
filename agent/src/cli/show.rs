//! Lists, tables and flows.

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::admin::query;

use super::args::{ExplainArgs, Output, SocketArgs};
use super::client;
use super::style::{Colour, Style};

/// Prints one page as the agent serves it.
pub(super) async fn page(path: &str, args: &SocketArgs) -> Result<()> {
    print(&client::get(&client::socket(args.instance.as_deref())?, path).await?)
}

/// Prints why a connection is or is not allowed.
pub(super) async fn explain(args: &ExplainArgs) -> Result<()> {
    let socket = client::socket(args.socket.instance.as_deref())?;
    let text = client::get(
        &socket,
        &query::address("/explain", [("from", args.from.clone()), ("to", args.to.clone())]),
    )
    .await?;
    if args.output == Output::Json {
        return print(&text);
    }
    let style = Style::of_stdout();
    let cases: Vec<Value> = serde_json::from_str(&text).context("the agent's explanation")?;
    print(&cases.iter().map(|case| told(case, style)).collect::<Vec<_>>().join("\n"))
}

fn told(case: &Value, style: Style) -> String {
    let text = |field: &str| case[field].as_str().unwrap_or("").to_owned();
    let or_none = |value: String| if value.is_empty() { "none proven".to_owned() } else { value };
    let policy = text("policy");
    let by = if policy.is_empty() { String::new() } else { format!(" [{policy}]") };
    let mut out = format!("{} -> {}\n", text("from"), text("to"));
    let mut line = |label: &str, value: String| out.push_str(&format!("  {label:<10} {value}\n"));
    let colour = if text("verdict") == "allowed" { Colour::Green } else { Colour::Red };
    let verdict = style.paint(colour, &text("verdict").to_uppercase());
    line("verdict", format!("{verdict}: {}{by}", text("reason")));
    if !text("note").is_empty() {
        line("noted", text("note"));
    }
    line("path", text("path"));
    if !text("choice").is_empty() {
        line("choice", text("choice"));
    }
    line(
        "identities",
        format!("{} -> {}", or_none(text("source_identity")), or_none(text("destination_identity"))),
    );
    if !text("mtls").is_empty() {
        line("mTLS", text("mtls"));
    }
    let considered = case["considered"].as_array().cloned().unwrap_or_default();
    if considered.is_empty() {
        line("policies", "none applies".to_owned());
    }
    for (n, policy) in considered.iter().enumerate() {
        let part = |field: &str| policy[field].as_str().unwrap_or("").to_owned();
        line(
            if n == 0 { "policies" } else { "" },
            format!("{:<6} {:<28} {}", part("action"), part("policy"), part("says")),
        );
    }
    line("kernel", text("kernel"));
    out
}

/// A reader that went away (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}
