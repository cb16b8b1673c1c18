//! `culvert graph`: who talked to whom, as a picture.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::args::{SocketArgs, WantedArgs};
use super::show::print;
use super::source;
use crate::graph::{Form, draw};
use crate::telemetry::pairs::{By, Pairs};

/// `culvert graph`.
#[derive(Args, Debug)]
pub(super) struct GraphArgs {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    wanted: WantedArgs,
    /// Read what `culvert flows -o json` wrote, instead of asking an agent; `-` is standard input. Several files, of several
    /// nodes, make one picture
    #[arg(short, long, value_name = "FLOWS")]
    file: Vec<PathBuf>,
    /// What makes a box
    #[arg(long, value_enum, default_value_t = By::Workload)]
    by: By,
    /// Only the busiest N edges; the picture says how many are left out
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = edges)]
    top: usize,
    /// Output form [default: by the ending of --output-file (.svg, .mmd, .dot, .json), else svg]
    #[arg(short, long, value_enum)]
    output: Option<Form>,
    /// Where to write it, instead of standard output
    #[arg(short = 'O', long, value_name = "FILE")]
    output_file: Option<PathBuf>,
}

fn edges(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|n| (1..=1000).contains(n));
    number.ok_or_else(|| "write a number from 1 to 1000".to_owned())
}

/// Reads, sums up, draws.
pub(super) async fn run(args: &GraphArgs) -> Result<()> {
    let mut pairs = Pairs::new(args.by);
    if args.file.is_empty() {
        source::from_agent(&mut pairs, &args.socket, &args.wanted).await?;
    } else {
        source::from_files(&mut pairs, &args.file, &args.wanted)?;
    }
    let picture = draw(&pairs, args.top, args.form()).context("writing JSON")?;
    match &args.output_file {
        None => print(&picture),
        Some(file) => {
            std::fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))
        }
    }
}

impl GraphArgs {
    fn form(&self) -> Form {
        let ending = self.output_file.as_ref().and_then(|file| file.extension()).and_then(|e| e.to_str());
        self.output.unwrap_or(match ending {
            Some("mmd" | "mermaid" | "md") => Form::Mermaid,
            Some("dot" | "gv") => Form::Dot,
            Some("json") => Form::Json,
            _ => Form::Svg,
        })
    }
}
