//! `culvert analyze`: manifests in, messages out; no agent is asked.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::args::Output;
use super::show::print;
use super::table;
use crate::analyze::{Code, Input, Level, Message, analyze};
use crate::model::Settings;
use crate::policy::L7Deny;

/// `culvert analyze`.
#[derive(Args, Debug)]
pub(super) struct AnalyzeArgs {
    /// Files or folders of Kubernetes YAML or JSON; `-` is standard input
    #[arg(value_name = "PATH", required_unless_present = "list_codes")]
    paths: Vec<PathBuf>,
    /// Look into the folders below a folder too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Only messages about this namespace; the whole input is still taken into account
    #[arg(short, long)]
    namespace: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit with 1 when there is a message of this level or a worse one
    #[arg(long, value_enum, ignore_case = true, default_value_t = Level::Error)]
    failure_threshold: Level,
    /// Istio's root namespace: mesh-wide policies live there
    #[arg(long, default_value = "istio-system")]
    root_namespace: String,
    /// SPIFFE trust domain of the mesh
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Other trust domains whose identities count as this mesh's, as given to the agent
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    trust_domain_aliases: Vec<String>,
    /// What DENY and CUSTOM policies mean when L4 cannot see all of their attributes, as given to the agent
    #[arg(long, value_enum, default_value_t = L7Deny::FailSafe)]
    l7_deny: L7Deny,
    /// Accepted for scripts; the output never has colours
    #[arg(long, value_name = "WHEN", hide = true)]
    color: Option<String>,
    /// Print every code with its level and meaning, and stop
    #[arg(long)]
    list_codes: bool,
}

/// Analyzes, prints, and fails when a message reaches the threshold.
pub(super) fn run(args: &AnalyzeArgs) -> Result<()> {
    if args.list_codes {
        return list_codes(args.output);
    }
    let input = read(args)?;
    let mut messages = analyze(
        &input,
        &Settings {
            root_namespace: args.root_namespace.clone(),
            trust_domain: args.trust_domain.clone(),
            trust_domain_aliases: args.trust_domain_aliases.clone(),
            l7_deny: args.l7_deny,
            ..Settings::default()
        },
    );
    // What is wrong with a file as a whole concerns every namespace.
    let wanted = |m: &Message| {
        args.namespace.as_ref().is_none_or(|namespace| m.object.is_empty() || m.namespace == *namespace)
    };
    messages.retain(wanted);
    show(&messages, args)
}

fn read(args: &AnalyzeArgs) -> Result<Input> {
    let mut input = Input::default();
    for path in &args.paths {
        if path == Path::new("-") {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).context("standard input")?;
            input.add_text("-", &text);
        } else {
            input.add_path(path, args.recursive)?;
        }
    }
    Ok(input)
}

fn show(messages: &[Message], args: &AnalyzeArgs) -> Result<()> {
    let what: Vec<String> = args.paths.iter().map(|path| path.display().to_string()).collect();
    let what = what.join(", ");
    match args.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(messages)?))?,
        Output::Table => print(&messages.iter().map(|message| format!("{message}\n")).collect::<String>())?,
    }
    if messages.is_empty() {
        eprintln!("✔ No validation issues found when analyzing {what}.");
    }
    if messages.iter().any(|message| message.code.level() >= args.failure_threshold) {
        bail!(
            "Analyzers found issues when analyzing {what}.\n`culvert analyze --list-codes` says what the codes mean."
        );
    }
    Ok(())
}

fn list_codes(output: Output) -> Result<()> {
    if output == Output::Json {
        let codes = Code::ALL.iter().map(|code| {
            json!({"code": code, "name": format!("{code:?}"), "level": code.level(), "meaning": code.meaning()})
        });
        return print(&format!("{}\n", serde_json::to_string_pretty(&codes.collect::<Vec<_>>())?));
    }
    let row = |code: &Code| {
        vec![code.to_string(), code.level().to_string(), format!("{code:?}"), code.meaning().to_owned()]
    };
    let rows: Vec<_> = Code::ALL.iter().map(row).collect();
    print(&table::render(&["CODE", "LEVEL", "NAME", "MEANING"], &rows))
}
