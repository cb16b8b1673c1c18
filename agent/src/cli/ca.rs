//! `culvert ca`: certificates for the agents of a mesh.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::LogFormat;
use crate::identity::{CaFiles, CaService, Compliance, EmbeddedCa, ServiceConfig};
use crate::telemetry::log;

/// `culvert ca`.
#[derive(Args, Debug)]
pub(super) struct CaArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15012")]
    listen: SocketAddr,
    /// Certificate that signs, a root unless there is --root-cert; made, with its key, when missing. Watched
    #[arg(long, value_name = "FILE", default_value = "/etc/culvert/ca/ca.crt")]
    ca_cert: PathBuf,
    /// Its key
    #[arg(long, value_name = "FILE", default_value = "/etc/culvert/ca/ca.key")]
    ca_key: PathBuf,
    /// Roots, when --ca-cert is an intermediate (root-cert.pem of Istio's cacerts)
    #[arg(long, value_name = "FILE")]
    root_cert: Option<PathBuf>,
    /// Further intermediates between --ca-cert and the root (cert-chain.pem of Istio's cacerts)
    #[arg(long, value_name = "FILE")]
    cert_chain: Option<PathBuf>,
    /// Tokens that the nodes show, one a line, read anew for every request. Who has one gets a certificate for any identity of the
    /// trust domains: Kubernetes TokenReview, which knows which node asks, comes with the Kubernetes control source
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    /// Trust domains to sign for
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',', default_value = "cluster.local")]
    trust_domain: Vec<String>,
    /// DNS names and addresses under which agents reach this server
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "localhost,127.0.0.1,::1")]
    server_name: Vec<String>,
    /// What TLS leaves out: `pqc` all key exchange but X25519MLKEM768; `fips-140-2` what is not in the FIPS module
    #[arg(long, env = "COMPLIANCE_POLICY", value_enum, default_value_t)]
    compliance_policy: Compliance,
    /// Longest lifetime that is signed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 7_776_000, value_parser = clap::value_parser!(u64).range(10..=31_536_000))]
    max_ttl: u64,
    /// Log filter, for example `info` or `culvert=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// Serves until SIGTERM or SIGINT.
pub(super) async fn run(args: &CaArgs) -> Result<()> {
    log::init(&args.log, args.log_format)?;
    args.compliance_policy.check().map_err(anyhow::Error::msg)?;
    let longest = Duration::from_secs(args.max_ttl);
    let files = CaFiles {
        cert: args.ca_cert.clone(),
        key: args.ca_key.clone(),
        root: args.root_cert.clone(),
        chain: args.cert_chain.clone(),
    };
    let config = ServiceConfig {
        token: args.token.clone(),
        trust_domains: args.trust_domain.clone(),
        longest,
        names: args.server_name.clone(),
        compliance: args.compliance_policy,
    };
    let service = Arc::new(CaService::new(EmbeddedCa::open_files(files, longest)?, config)?);
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listening on {}", args.listen))?;
    tracing::info!(listen = %args.listen, names = ?args.server_name, "the CA serves");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        () = service.serve(listener) => {}
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    Ok(())
}
