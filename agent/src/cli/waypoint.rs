//! `culvert waypoint`: waypoints in a folder of manifests, with istioctl's verbs.

mod apply;
mod delete;
mod list;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::show::print;
use crate::waypoint::{Folder, TrafficType, Wanted};

/// `culvert waypoint`.
#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct WaypointArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Print the Gateway of a waypoint, and change nothing
    #[command(
        after_help = "Examples:\n  culvert waypoint generate --for service -n shop\n  culvert waypoint generate --name l7 | kubectl apply -f -"
    )]
    Generate(GenerateArgs),
    /// Put a waypoint's Gateway into a folder of manifests, or bring the one that is there in line
    #[command(
        after_help = "Examples:\n  culvert waypoint apply -n shop --manifests DIR\n  culvert waypoint apply -n shop --enroll-namespace --wait --manifests DIR\n\nThe agents that follow the folder take it up at once. Its Service, service account and pods are yours to add. As soon as that Service has a ready endpoint, apply gives the Gateway its address (status.addresses), as istiod does in a cluster; without one no agent uses a waypoint. What else the files hold stays as it is, byte for byte."
    )]
    Apply(apply::ApplyArgs),
    /// List the waypoints of a folder of manifests
    #[command(
        after_help = "Examples:\n  culvert waypoint list -A --manifests DIR\n  culvert waypoint list -n shop -o json --manifests DIR"
    )]
    List(list::ListArgs),
    /// Say whether waypoints take connections, and why not
    #[command(
        after_help = "Examples:\n  culvert waypoint status -A --manifests DIR\n  culvert waypoint status waypoint -n shop --manifests DIR\n\nWhat counts is what an agent would find in the folder: an address of the Gateway, and ready endpoints behind it."
    )]
    Status(list::StatusArgs),
    /// Take waypoints' Gateways out of a folder of manifests
    #[command(
        after_help = "Examples:\n  culvert waypoint delete waypoint -n shop --manifests DIR\n  culvert waypoint delete --all -n shop --manifests DIR\n  culvert waypoint delete -r canary -n shop --manifests DIR"
    )]
    Delete(delete::DeleteArgs),
}

/// What is made.
#[derive(Args, Debug)]
struct MadeArgs {
    /// Name of the waypoint
    #[arg(long, default_value = "waypoint", value_parser = name)]
    name: String,
    /// What traffic it takes: all, none, service or workload [default: what the Gateway says, else service]
    #[arg(long = "for", value_name = "TRAFFIC")]
    traffic: Option<TrafficType>,
    /// Revision of the control plane that it belongs to
    #[arg(short, long)]
    revision: Option<String>,
}

#[derive(Args, Debug)]
struct GenerateArgs {
    #[command(flatten)]
    made: MadeArgs,
    /// Its namespace; left out of the manifest when not given
    #[arg(short, long, value_parser = label)]
    namespace: Option<String>,
}

/// Where waypoints are.
#[derive(Args, Debug)]
struct FolderArgs {
    /// Folder of Kubernetes manifests, the one that the agents follow (--manifests of `culvert agent`)
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// DNS domain of the cluster, as given to the agents
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
}

/// How lists look.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// Columns for people.
    #[value(alias = "short")]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl MadeArgs {
    fn wanted(&self, namespace: Option<&str>) -> Wanted {
        Wanted {
            namespace: namespace.map(str::to_owned),
            name: self.name.clone(),
            traffic: self.traffic,
            revision: self.revision.clone(),
        }
    }
}

impl FolderArgs {
    fn dir(&self) -> Result<&Path> {
        match &self.manifests {
            Some(dir) => Ok(dir),
            None => bail!(
                "--manifests DIR is missing: name the folder of manifests that the agents follow, as in --manifests of `culvert agent` \
                 (/etc/culvert/manifests in the DaemonSet of deploy/)"
            ),
        }
    }

    /// What is in the folder now. Files that agents use nothing of are told.
    fn read(&self) -> Result<Folder> {
        let folder = self.read_quietly()?;
        for problem in &folder.problems {
            eprintln!("culvert: {}", format!("{problem}").trim_end_matches(" ()"));
        }
        Ok(folder)
    }

    fn read_quietly(&self) -> Result<Folder> {
        Folder::read(self.dir()?, &self.cluster_domain)
    }
}

/// As Kubernetes reads names; `none` is what a label says that wants no waypoint.
fn name(text: &str) -> Result<String, String> {
    if text == "none" {
        return Err(
            "a waypoint cannot be called none: in the label istio.io/use-waypoint that means no waypoint"
                .to_owned(),
        );
    }
    label(text)
}

/// The name of a namespace, a Service or a service account.
fn label(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let valid = text.len() <= 63 && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-');
    if valid && !text.is_empty() {
        return Ok(text.to_owned());
    }
    Err("write lower-case letters, digits and '-', at most 63".to_owned())
}

/// Runs the verb.
pub(super) fn run(args: &WaypointArgs) -> Result<()> {
    match &args.verb {
        Verb::Generate(args) => print(&args.made.wanted(args.namespace.as_deref()).manifest()),
        Verb::Apply(args) => apply::run(args),
        Verb::List(args) => list::list(args),
        Verb::Status(args) => list::status(args),
        Verb::Delete(args) => delete::run(args),
    }
}
