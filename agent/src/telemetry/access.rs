//! The access log: a line for each connection when it has ended or was refused, with ztunnel's fields.

use std::net::SocketAddr;
use std::time::Duration;

use super::labels::Reporter;

/// Which connections get a line.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that were refused, failed or were cut.
    #[default]
    Errors,
    /// All.
    All,
}

impl AccessLog {
    /// Whether a connection with or without an error gets a line.
    pub fn wants(self, error: bool) -> bool {
        let wanted = match self {
            Self::Off => false,
            Self::Errors => error,
            Self::All => true,
        };
        wanted && tracing::enabled!(target: "access", tracing::Level::INFO)
    }
}

/// An end of a connection in the log.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// The pod, else empty.
    pub workload: String,
    /// Its namespace, else empty.
    pub namespace: String,
    /// The SPIFFE id that was proven, else empty.
    pub identity: String,
}

/// A line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who says so.
    pub reporter: Reporter,
    /// The client.
    pub client: SocketAddr,
    /// Where the connection led: the server, or the HBONE listener in front of it.
    pub server: SocketAddr,
    /// What was asked for inside a tunnel.
    pub hbone: Option<SocketAddr>,
    /// The client.
    pub source: End,
    /// The server.
    pub destination: End,
    /// The service's host name, else empty.
    pub service: String,
    /// What this end sent.
    pub sent: u64,
    /// What this end received.
    pub received: u64,
    /// Since it began.
    pub duration: Duration,
    /// What went wrong, else empty.
    pub error: String,
}

impl Line {
    /// Writes it: fields that say nothing are left out.
    pub fn log(&self) {
        let direction = match self.reporter {
            Reporter::Source => "outbound",
            Reporter::Destination => "inbound",
        };
        tracing::event!(
            target: "access",
            tracing::Level::INFO,
            src.addr = %self.client,
            src.workload = said(&self.source.workload),
            src.namespace = said(&self.source.namespace),
            src.identity = said(&self.source.identity),
            dst.addr = %self.server,
            dst.hbone_addr = self.hbone.map(tracing::field::display),
            dst.service = said(&self.service),
            dst.workload = said(&self.destination.workload),
            dst.namespace = said(&self.destination.namespace),
            dst.identity = said(&self.destination.identity),
            direction = direction,
            bytes_sent = self.sent,
            bytes_recv = self.received,
            duration = format!("{}ms", self.duration.as_millis()),
            error = said(&self.error),
            "connection complete"
        );
    }
}

fn said(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
