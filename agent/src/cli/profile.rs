//! `culvert profile`: a profile of the running agent, as a file.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
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
    /// Memory, by who allocated it: what was taken while it was watched, and what of that still lives
    Heap(HeapArgs),
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
    #[command(flatten)]
    file: FileArgs,
}

#[derive(Args, Debug)]
struct HeapArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// How long to watch [default: since the start, of an agent that was started with --follow-heap]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: Option<u64>,
    #[command(flatten)]
    file: FileArgs,
}

#[derive(Args, Debug)]
struct FileArgs {
    /// `pprof` for `go tool pprof`, `folded` for flame graphs: a stack a line
    #[arg(long, value_enum, default_value_t = Format::Pprof)]
    format: Format,
    /// The file to write; `-` is standard output [default: cpu.pb.gz or heap.pb.gz, cpu.folded or heap.folded]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Pprof,
    Folded,
}

impl FileArgs {
    fn save(&self, kind: &str, file: &[u8]) -> Result<()> {
        let default = match self.format {
            Format::Pprof => format!("{kind}.pb.gz"),
            Format::Folded => format!("{kind}.folded"),
        };
        let path = self.output.as_deref().unwrap_or(Path::new(&default));
        if path == Path::new("-") {
            return std::io::stdout().write_all(file).context("standard output");
        }
        std::fs::write(path, file).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("{} bytes in {}", file.len(), path.display());
        Ok(())
    }

    fn pair(&self) -> (&'static str, String) {
        let name = match self.format {
            Format::Pprof => "pprof",
            Format::Folded => "folded",
        };
        ("format", name.to_owned())
    }
}

/// Measures, and saves the result.
pub(super) async fn run(args: &ProfileArgs) -> Result<()> {
    match &args.of {
        Of::Cpu(args) => {
            let pairs = [
                ("seconds", args.seconds.to_string()),
                ("frequency", args.frequency.to_string()),
                args.file.pair(),
            ];
            args.file.save("cpu", &fetch(&args.socket, "/debug/pprof/profile", pairs).await?)
        }
        Of::Heap(args) => {
            let seconds = args.seconds.map(|seconds| ("seconds", seconds.to_string()));
            let pairs = seconds.into_iter().chain([args.file.pair()]);
            args.file.save("heap", &fetch(&args.socket, "/debug/pprof/heap", pairs).await?)
        }
    }
}

async fn fetch(
    socket: &SocketArgs,
    page: &str,
    pairs: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<Bytes> {
    let socket = client::socket(socket.instance.as_deref())?;
    client::bytes(&socket, Method::GET, &query::address(page, pairs)).await
}
