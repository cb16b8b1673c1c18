//! `culvert waypoint list` and `culvert waypoint status`.

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{FolderArgs, Form};
use crate::cli::show::print;
use crate::cli::table;
use crate::waypoint::State;

/// Spaces between columns, as in istioctl's tables of waypoints.
const PADDING: usize = 5;

#[derive(Args, Debug)]
struct WhereArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Namespace of the waypoints
    #[arg(short, long, default_value = "default", conflicts_with = "all_namespaces")]
    namespace: String,
    /// The waypoints of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: WhereArgs,
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// Only this waypoint [default: all of the namespace]
    name: Option<String>,
    #[command(flatten)]
    place: WhereArgs,
}

impl WhereArgs {
    fn states(&self) -> Result<Vec<State>> {
        Ok(self.folder.read()?.states(if self.all_namespaces { None } else { Some(&self.namespace) }))
    }

    /// Prints the states as a table whose row `row` makes.
    fn show(&self, states: &[State], titles: &[&str], row: impl Fn(&State) -> Vec<String>) -> Result<()> {
        match self.output {
            Form::Json => return print(&format!("{}\n", serde_json::to_string_pretty(states)?)),
            Form::Yaml => return print(&serde_saphyr::to_string(&states).context("writing YAML")?),
            Form::Table if states.is_empty() => return print("No waypoints found.\n"),
            Form::Table => {}
        }
        // With all namespaces each row begins with its own.
        let title = self.all_namespaces.then_some("NAMESPACE");
        let titles: Vec<&str> = title.into_iter().chain(titles.iter().copied()).collect();
        let first = |state: &State| self.all_namespaces.then(|| state.namespace.clone());
        let rows: Vec<Vec<String>> =
            states.iter().map(|state| first(state).into_iter().chain(row(state)).collect()).collect();
        print(&table::padded(&titles, &rows, PADDING))
    }
}

fn truth(programmed: bool) -> String {
    if programmed { "True" } else { "False" }.to_owned()
}

/// Lists waypoints.
pub(super) fn list(args: &ListArgs) -> Result<()> {
    let titles = ["NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"];
    args.place.show(&args.place.states()?, &titles, |state| {
        vec![state.name.clone(), state.revision.clone(), state.traffic_type.clone(), truth(state.programmed)]
    })
}

/// Says whether waypoints take connections.
pub(super) fn status(args: &StatusArgs) -> Result<()> {
    let mut states = args.place.states()?;
    if let Some(name) = &args.name {
        states.retain(|state| state.name == *name);
        if states.is_empty() {
            let place =
                if args.place.all_namespaces { String::new() } else { format!("{}/", args.place.namespace) };
            bail!("waypoint {place}{name} not found in {}", args.place.folder.dir()?.display());
        }
    }
    args.place.show(&states, &["NAME", "STATUS", "TYPE", "REASON", "MESSAGE"], |state| {
        vec![
            state.name.clone(),
            truth(state.programmed),
            "Programmed".to_owned(),
            state.reason.clone(),
            state.message.clone(),
        ]
    })
}
