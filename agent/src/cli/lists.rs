//! The lists: which rows, which columns, in which form.

mod columns;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::args::{AllArgs, ConnectionArgs, ListOutput, QueryArgs, ServiceArgs, WorkloadArgs};
use super::show::print;
use super::{dump, table};
use columns::Column;
pub(super) use columns::List;

/// `culvert workloads`.
pub(super) async fn workloads(args: &WorkloadArgs) -> Result<()> {
    show(List::Workloads, &args.query, |row| {
        args.node.as_deref().is_none_or(|node| is(&row["node"], node))
            && within(args.address, &[&row["addresses"]])
    })
    .await
}

/// `culvert services`.
pub(super) async fn services(args: &ServiceArgs) -> Result<()> {
    show(List::Services, &args.query, |row| within(args.address, &[&row["vips"]])).await
}

/// `culvert policies`, `certificates`, `pods`.
pub(super) async fn plain(list: List, args: &QueryArgs) -> Result<()> {
    show(list, args, |_| true).await
}

/// `culvert connections`.
pub(super) async fn connections(args: &ConnectionArgs) -> Result<()> {
    show(List::Connections, &args.query, |row| {
        if args.raw && matches!(args.query.output, ListOutput::Table | ListOutput::Wide) {
            // The columns then show what is behind the names.
            row["remote_name"] = Value::Null;
            row["remote_target_name"] = Value::Null;
        }
        let ends = [&row["local"], &row["remote"], &row["remote_target"]];
        args.direction.is_none_or(|direction| is(&row["direction"], &format!("{direction:?}")))
            && within(args.address, &ends)
    })
    .await
}

/// `culvert all`.
pub(super) async fn all(args: &AllArgs) -> Result<()> {
    let mut dump = dump::read(&args.query).await?;
    for list in List::ALL {
        let rows = list.rows(&dump, args.query.namespace.as_deref())?;
        if let Some(place) = dump.get_mut(list.key()) {
            *place = Value::Array(rows);
        }
    }
    if let Some(text) = written(&dump, args.query.output)? {
        return print(&text);
    }
    let mut sections = Vec::new();
    for list in List::ALL {
        let rows = list.rows(&dump, None)?;
        let head = format!("------ {} ------\n\n", list.headline());
        sections.push(
            if args.with_headers { head } else { String::new() } + &tabled(list, &rows, args.query.output),
        );
    }
    print(&sections.join("\n"))
}

async fn show(list: List, args: &QueryArgs, wanted: impl Fn(&mut Value) -> bool) -> Result<()> {
    let dump = dump::read(args).await?;
    let mut rows = list.rows(&dump, args.namespace.as_deref())?;
    rows.retain_mut(|row| wanted(row));
    match written(&Value::Array(rows.clone()), args.output)? {
        Some(text) => print(&text),
        None => print(&tabled(list, &rows, args.output)),
    }
}

/// For machines; `None` where a table is asked for.
fn written(value: &Value, output: ListOutput) -> Result<Option<String>> {
    match output {
        ListOutput::Json => Ok(Some(format!("{}\n", serde_json::to_string_pretty(value)?))),
        ListOutput::Yaml => Ok(Some(serde_saphyr::to_string(value).context("writing YAML")?)),
        ListOutput::Table | ListOutput::Wide => Ok(None),
    }
}

fn tabled(list: List, rows: &[Value], output: ListOutput) -> String {
    let wide = output == ListOutput::Wide;
    let columns: Vec<&Column> = list.columns().iter().filter(|column| wide || !column.wide).collect();
    let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| column.cell(row)).collect()).collect();
    table::render(&titles, &cells)
}

/// As istioctl compares names.
fn is(value: &Value, name: &str) -> bool {
    value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(name))
}

/// Whether one of these values, addresses with or without ports or lists of them, lies in the block.
fn within(block: Option<IpNet>, values: &[&Value]) -> bool {
    let Some(block) = block else { return true };
    let inside = |value: &Value| {
        let text = value.as_str().unwrap_or("");
        let end = text.parse::<std::net::SocketAddr>().map(|end| end.ip());
        text.parse().or(end).is_ok_and(|address| block.contains::<&std::net::IpAddr>(&address))
    };
    values.iter().any(|value| match value {
        Value::Array(items) => items.iter().any(inside),
        value => inside(value),
    })
}

#[cfg(test)]
mod tests;
