//! `culvert waypoint delete`.

use anyhow::{Result, bail};
use clap::Args;

use super::FolderArgs;
use crate::cli::show::print;
use crate::waypoint::Staged;

#[derive(Args, Debug)]
pub(super) struct DeleteArgs {
    /// Waypoints to delete
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    folder: FolderArgs,
    /// Their namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// All waypoints of the namespace
    #[arg(long, conflicts_with_all = ["names", "revision"])]
    all: bool,
    /// All waypoints of the namespace that belong to this revision
    #[arg(short, long, conflicts_with = "names")]
    revision: Option<String>,
}

pub(super) fn run(args: &DeleteArgs) -> Result<()> {
    let folder = args.folder.read()?;
    let namespace = args.namespace.as_str();
    let mut names = args.names.clone();
    if args.all || args.revision.is_some() {
        let wanted = |revision: &str| args.revision.as_deref().is_none_or(|wanted| wanted == revision);
        let states = folder.states(Some(namespace)).into_iter();
        names = states.filter(|state| wanted(&state.revision)).map(|state| state.name).collect();
        if names.is_empty() {
            return print("No waypoints found.\n");
        }
    } else if names.is_empty() {
        bail!("which waypoints? Write their names, or --all, or --revision for those of a revision");
    }
    let mut missing = Vec::new();
    for name in &names {
        if !delete(args, name)? {
            missing.push(format!("waypoint {namespace}/{name} not found"));
            continue;
        }
        print(&format!("waypoint {namespace}/{name} deleted\n"))?;
        let users = folder.users(namespace, name);
        if !users.is_empty() {
            eprintln!("Its name is still in the labels of {}: they have no waypoint now.", users.join(", "));
        }
    }
    if missing.is_empty() { Ok(()) } else { bail!("{}", missing.join("; ")) }
}

/// Takes a Gateway out of every file that has it; false: none has.
fn delete(args: &DeleteArgs, name: &str) -> Result<bool> {
    let mut found = false;
    loop {
        let folder = args.folder.read_quietly()?;
        let mut staged = Staged::new(&folder);
        if !staged.delete(&args.namespace, name)? {
            return Ok(found);
        }
        staged.write()?;
        found = true;
    }
}
