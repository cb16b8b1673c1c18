//! `culvert waypoint apply`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use super::{FolderArgs, MadeArgs, label};
use crate::cli::show::print;
use crate::waypoint::{Enrolment, Folder, Staged, State, Wanted};

/// How often to look whether it is ready.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    made: MadeArgs,
    /// Namespace of the waypoint
    #[arg(short, long, default_value = "default", value_parser = label)]
    namespace: String,
    /// Label the namespace, so that its services use the waypoint
    #[arg(long)]
    enroll_namespace: bool,
    /// With --enroll-namespace: replace the label of a namespace that has a waypoint already
    #[arg(long)]
    overwrite: bool,
    /// Wait until it takes connections
    #[arg(short, long)]
    wait: bool,
    /// How long to wait: 90s, 2m
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = time)]
    waypoint_timeout: Duration,
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "write a time such as 90s or 2m".to_owned();
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(span).map_err(|_| wrong())
}

pub(super) fn run(args: &ApplyArgs) -> Result<()> {
    let folder = args.folder.read()?;
    let (namespace, wanted) = (args.namespace.as_str(), args.made.wanted(Some(&args.namespace)));
    if args.enroll_namespace && !may_enroll(args, &folder)? {
        return Ok(());
    }
    let mut staged = Staged::new(&folder);
    staged.apply(&wanted, namespace)?;
    if args.enroll_namespace {
        staged.enroll(namespace, &wanted.name)?;
    }
    staged.write()?;
    print(&format!("✅ waypoint {namespace}/{} applied\n", wanted.name))?;
    if args.enroll_namespace {
        print(&format!(
            "✅ namespace {namespace} labeled with \"istio.io/use-waypoint: {}\"\n",
            wanted.name
        ))?;
    }
    if args.wait {
        return wait(args, &wanted);
    }
    match state(&args.folder.read_quietly()?, &wanted, namespace) {
        Some(state) if !state.programmed => {
            eprintln!("{}.", state.message);
        }
        _ => {}
    }
    Ok(())
}

/// False: there is another waypoint, and nothing is to be done.
fn may_enroll(args: &ApplyArgs, folder: &Folder) -> Result<bool> {
    let namespace = &args.namespace;
    let enrolment = Enrolment::of(folder, namespace);
    if enrolment.taken && !args.overwrite {
        print(&format!(
            "⚠️ Warning: namespace ({namespace}) already has an enrolled Waypoint. Consider adding the `--overwrite` flag to your apply \
             command.\n"
        ))?;
        return Ok(false);
    }
    if !enrolment.ambient {
        print(&format!(
            "⚠️ Warning: namespace is not enrolled in ambient. Consider running\t`kubectl label namespace {namespace} \
             istio.io/dataplane-mode=ambient`\n"
        ))?;
    }
    Ok(true)
}

fn state(folder: &Folder, wanted: &Wanted, namespace: &str) -> Option<State> {
    folder.states(Some(namespace)).into_iter().find(|state| state.name == wanted.name)
}

/// Looks until it is ready; meanwhile its Service may get endpoints, and it an address.
fn wait(args: &ApplyArgs, wanted: &Wanted) -> Result<()> {
    let (namespace, begun) = (args.namespace.as_str(), Instant::now());
    loop {
        let folder = args.folder.read_quietly()?;
        let state = state(&folder, wanted, namespace);
        if state.as_ref().is_some_and(|state| state.programmed) {
            return print(&format!("✅ waypoint {namespace}/{} is ready!\n", wanted.name));
        }
        if begun.elapsed() >= args.waypoint_timeout {
            let why = match state {
                Some(state) => format!("{}: {}", state.reason, state.message),
                None => "its Gateway is gone, or in a file that is not valid".to_owned(),
            };
            bail!("timed out while waiting for waypoint {namespace}/{}: {why}", wanted.name);
        }
        if state.is_some_and(|state| state.reason == "AddressNotAssigned") {
            let mut staged = Staged::new(&folder);
            staged.apply(wanted, namespace)?;
            staged.write()?;
        }
        std::thread::sleep(LOOK);
    }
}
