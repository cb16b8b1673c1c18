//! Questions to the servers of resolv.conf.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::system_conf::parse_resolv_conf;

use super::{CEILING, Config};
use crate::sys::files::Stamp;

/// The longest that a question may take, whatever resolv.conf says.
const LONGEST: Duration = Duration::from_secs(15);

/// What came of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// These, and for how long.
    Addresses(Vec<IpAddr>, Duration),
    /// There are none: why, and for how long.
    Nothing(String, Duration),
    /// No server answers, or none knows.
    Failed(String),
}

/// Asks, by what resolv.conf says at the time.
pub(super) struct Asker {
    config: Config,
    /// The file as it was, and what it said.
    read: Option<(Stamp, Reader)>,
}

/// Asks, by what resolv.conf said.
#[derive(Clone)]
pub(super) struct Reader(Result<Arc<TokioResolver>, String>);

impl Asker {
    pub(super) fn new(config: Config) -> Self {
        Self { config, read: None }
    }

    /// By what resolv.conf says now.
    pub(super) fn current(&mut self) -> Reader {
        let stamp = Stamp::of(&self.config.resolv_conf);
        match &self.read {
            Some((known, reader)) if *known == stamp => reader.clone(),
            _ => {
                let reader = Reader(resolver(&self.config).map(Arc::new));
                self.read = Some((stamp, reader.clone()));
                reader
            }
        }
    }
}

fn resolver(config: &Config) -> Result<TokioResolver, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", config.resolv_conf.display());
    let text = std::fs::read(&config.resolv_conf).map_err(|e| named(&e))?;
    let (mut servers, mut options) = parse_resolv_conf(text).map_err(|e| named(&e))?;
    for connection in servers.name_servers.iter_mut().flat_map(|server| &mut server.connections) {
        connection.port = config.port;
    }
    // What is known, and for how long, stands in the book.
    options.cache_size = 0;
    options.preserve_intermediates = true;
    options.use_hosts_file = ResolveHosts::Never;
    let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|e| named(&e))
}

impl Reader {
    /// What there is for IPv4 and IPv6.
    pub(super) async fn ask(&self, name: &str) -> [Found; 2] {
        // Without the dot the search list would be gone through, and the last of its answers be taken for the name's own.
        let name = if name.contains('.') { format!("{name}.") } else { name.to_owned() };
        let (v4, v6) =
            tokio::join!(self.ask_for(&name, RecordType::A), self.ask_for(&name, RecordType::AAAA));
        [v4, v6]
    }

    async fn ask_for(&self, name: &str, family: RecordType) -> Found {
        let resolver = match &self.0 {
            Ok(resolver) => resolver,
            Err(error) => return Found::Failed(error.clone()),
        };
        let Ok(answered) = tokio::time::timeout(LONGEST, resolver.lookup(name, family)).await else {
            return Found::Failed(format!("none after {} s", LONGEST.as_secs()));
        };
        match answered {
            Ok(lookup) => {
                let ttl = lookup.answers().iter().map(|record| record.ttl).min();
                let addresses = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
                found(addresses, holds(ttl))
            }
            Err(error) => missing(&error),
        }
    }
}

/// What says nothing of how long it holds (RFC 2308 leaves that open) holds as long as anything may.
fn holds(ttl: Option<u32>) -> Duration {
    ttl.map_or(CEILING, |ttl| Duration::from_secs(ttl.into()))
}

fn found(addresses: Vec<IpAddr>, holds: Duration) -> Found {
    match addresses.is_empty() {
        true => Found::Nothing("DNS has no address for it".to_owned(), holds),
        false => Found::Addresses(addresses, holds),
    }
}

fn missing(error: &NetError) -> Found {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else {
        return Found::Failed(error.to_string());
    };
    let holds = holds(none.negative_ttl);
    match none.response_code {
        ResponseCode::NXDomain => Found::Nothing("DNS knows no such name".to_owned(), holds),
        ResponseCode::NoError => Found::Nothing("DNS has no address for it".to_owned(), holds),
        code => Found::Failed(code.to_string()),
    }
}
