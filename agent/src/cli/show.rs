//! Lists, tables and flows.

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::admin::query;

use super::args::{ExplainArgs, Output, SocketArgs};
use super::style::{Colour, Style};
use super::{QueryArgs, client, table};

/// Title and field of each column, by list.
fn columns(list: &str) -> &'static [(&'static str, &'static str)] {
    match list {
        "workloads" => &[
            ("NAMESPACE", "namespace"),
            ("POD NAME", "name"),
            ("ADDRESS", "addresses"),
            ("NODE", "node"),
            ("WAYPOINT", "waypoint"),
            ("PROTOCOL", "protocol"),
            ("IDENTITY", "identity"),
        ],
        "services" => &[
            ("NAMESPACE", "namespace"),
            ("SERVICE NAME", "service"),
            ("SERVICE VIP", "vips"),
            ("WAYPOINT", "waypoint"),
            ("ENDPOINTS", "endpoints"),
            ("HOST", "hostname"),
            ("LOAD BALANCING", "load_balancing"),
            ("PREFERRED", "preferred"),
            ("AFFINITY", "affinity"),
            ("NOTES", "notes"),
        ],
        "certificates" => &[
            ("IDENTITY", "identity"),
            ("SERIAL NUMBER", "serial"),
            ("NOT BEFORE", "not_before"),
            ("NOT AFTER", "not_after"),
            ("PROBLEM", "error"),
        ],
        "pods" => &[
            ("POD", "name"),
            ("STATE", "state"),
            ("REDIRECTION", "redirection"),
            ("NETNS COOKIE", "netns_cookie"),
            ("OLDER CONNECTIONS", "older_connections"),
            ("WAITING FOR", "reason"),
        ],
        _ => &[
            ("NAMESPACE", "namespace"),
            ("POLICY NAME", "name"),
            ("KIND", "kind"),
            ("ACTION", "action"),
            ("SCOPE", "scope"),
            ("NOTES", "notes"),
        ],
    }
}

/// Prints one list of the agent's dump.
pub(super) async fn list(name: &str, args: &QueryArgs) -> Result<()> {
    let socket = client::socket(args.socket.instance.as_deref())?;
    let dump: Value =
        serde_json::from_str(&client::get(&socket, "/dump").await?).context("the agent's dump")?;
    let rows = dump.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let wanted = |row: &Value| args.namespace.as_deref().is_none_or(|ns| row["namespace"] == ns);
    let rows: Vec<Value> = rows.into_iter().filter(wanted).collect();
    if args.output == Output::Json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&rows)?));
    }
    let columns = columns(name);
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|(_, field)| cell(&row[*field])).collect()).collect();
    print(&table::render(&titles, &cells))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) if items.iter().all(Value::is_object) => items.len().to_string(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

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
