//! Lists, tables and flows.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{ExplainArgs, FlowArgs, Output, QueryArgs, SocketArgs, client, table};

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
            ("NOTE", "note"),
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
    let text = client::get(&socket, &format!("/explain?from={}&to={}", args.from, args.to)).await?;
    if args.output == Output::Json {
        return print(&text);
    }
    let cases: Vec<Value> = serde_json::from_str(&text).context("the agent's explanation")?;
    print(&cases.iter().map(told).collect::<Vec<_>>().join("\n"))
}

fn told(case: &Value) -> String {
    let text = |field: &str| case[field].as_str().unwrap_or("").to_owned();
    let or_none = |value: String| if value.is_empty() { "none proven".to_owned() } else { value };
    let policy = text("policy");
    let by = if policy.is_empty() { String::new() } else { format!(" [{policy}]") };
    let mut out = format!("{} -> {}\n", text("from"), text("to"));
    let mut line = |label: &str, value: String| out.push_str(&format!("  {label:<10} {value}\n"));
    line("verdict", format!("{}: {}{by}", text("verdict").to_uppercase(), text("reason")));
    if !text("note").is_empty() {
        line("noted", text("note"));
    }
    line("path", text("path"));
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

/// Prints flow records, and goes on with `--follow`.
pub(super) async fn flows(args: &FlowArgs) -> Result<()> {
    let socket = client::socket(args.socket.instance.as_deref())?;
    let mut seen = 0;
    let mut first = true;
    loop {
        let text = client::get(&socket, &format!("/flows?since={seen}")).await?;
        let records: Vec<Value> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .context("the agent's flow records")?;
        seen = records.last().and_then(|r| r["seq"].as_u64()).unwrap_or(seen);
        let mut wanted: Vec<&Value> = records.iter().filter(|record| matches(record, args)).collect();
        if let (true, Some(last)) = (first, args.last) {
            wanted.drain(..wanted.len().saturating_sub(last));
        }
        let mut out = String::new();
        for record in wanted {
            out.push_str(&if args.output == Output::Json { record.to_string() } else { line(record) });
            out.push('\n');
        }
        print(&out)?;
        if !args.follow {
            return Ok(());
        }
        first = false;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn matches(record: &Value, args: &FlowArgs) -> bool {
    let end = |side: &str, wanted: &Option<String>| {
        wanted.as_deref().is_none_or(|w| {
            let workload = record[side]["workload"].as_str().unwrap_or("");
            workload == w || workload.split_once('/').is_some_and(|(namespace, _)| namespace == w)
        })
    };
    end("source", &args.from)
        && end("destination", &args.to)
        && args.verdict.as_deref().is_none_or(|verdict| record["verdict"] == verdict)
}

fn line(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let end = |end: &Value| match end["workload"].as_str() {
        Some("") | None => match text(&end["address"]) {
            v6 if v6.contains(':') => format!("[{v6}]:{}", end["port"]),
            v4 => format!("{v4}:{}", end["port"]),
        },
        Some(workload) => format!("{workload}:{}", end["port"]),
    };
    let mut line = format!(
        "{}  {:<8} {:<11} {} -> {}",
        text(&record["time"]),
        text(&record["stage"]).to_uppercase(),
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

/// A reader that went away (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}
