//! `culvert log`: what the running agent logs.

use anyhow::{Context, Result};
use http::Method;
use serde_json::Value;

use super::args::LogArgs;
use super::client;
use super::show::print;
use crate::admin::query;

/// Shows or changes the filter.
pub(super) async fn run(args: &LogArgs) -> Result<()> {
    let socket = client::socket(args.socket.instance.as_deref())?;
    let (method, change) = match (&args.filter, args.reset) {
        (Some(filter), _) => (Method::POST, Some(("filter", filter.clone()))),
        (None, true) => (Method::POST, Some(("reset", String::new()))),
        (None, false) => (Method::GET, None),
    };
    let text = client::ask(&socket, method, &query::address("/log", change)).await?;
    let state: Value = serde_json::from_str(&text).context("the agent's answer")?;
    print(&told(&state))
}

fn told(state: &Value) -> String {
    let text = |field: &str| state[field].as_str().unwrap_or("").to_owned();
    let (filter, start) = (text("filter"), text("start"));
    if filter == start {
        return format!("the log's filter is {filter}\n");
    }
    format!("the log's filter is {filter} (at start {start}: `culvert log --reset`)\n")
}
