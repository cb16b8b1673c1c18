//! `culvert profile`: a profile of the running agent, as a file.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use http::Method;

use super::args::SocketArgs;
use super::client;
use crate::admin::query;

/// `culvert profile`.
#[derive(Args, Debug)]
pub(super) struct ProfileArgs {
    #[command(subcommand)]
    of: Of,
}

#[derive(Subcommand, Debug)]
enum Of {
    /// Processor time, by function
    Cpu(CpuArgs),
}

#[derive(Args, Debug)]
struct CpuArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: u64,
    /// Samples a second of processor time, of each thread
    #[arg(long, default_value_t = 100, value_name = "HZ", value_parser = clap::value_parser!(u64).range(1..=1000))]
    frequency: u64,
    /// `pprof` for `go tool pprof`, `folded` for flame graphs: a stack a line
    #[arg(long, value_enum, default_value_t = Format::Pprof)]
    format: Format,
    /// The file to write; `-` is standard output [default: cpu.pb.gz, cpu.folded]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Pprof,
    Folded,
}

/// Measures, and saves the result.
pub(super) async fn run(args: &ProfileArgs) -> Result<()> {
    let Of::Cpu(args) = &args.of;
    let socket = client::socket(args.socket.instance.as_deref())?;
    let (format, default) = match args.format {
        Format::Pprof => ("pprof", "cpu.pb.gz"),
        Format::Folded => ("folded", "cpu.folded"),
    };
    let pairs = [
        ("seconds", args.seconds.to_string()),
        ("frequency", args.frequency.to_string()),
        ("format", format.to_owned()),
    ];
    let path = args.output.as_deref().unwrap_or(Path::new(default));
    let file = client::bytes(&socket, Method::GET, &query::address("/debug/pprof/profile", pairs)).await?;
    if path == Path::new("-") {
        return std::io::stdout().write_all(&file).context("standard output");
    }
    std::fs::write(path, &file).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("{} bytes in {}", file.len(), path.display());
    Ok(())
}
