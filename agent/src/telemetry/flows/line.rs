//! A record as text.

use std::net::SocketAddr;

use super::{End, FlowRecord};

/// One line for people: who, to whom, how, and why (not).
impl std::fmt::Display for FlowRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |end: &End| match end.workload.as_str() {
            "" => SocketAddr::new(end.address, end.port).to_string(),
            workload => format!("{workload}:{}", end.port),
        };
        let (from, to) = (name(&self.source), name(&self.destination));
        write!(f, "{} {} {from} -> {to}", self.stage.to_uppercase(), self.path)?;
        if !self.requested.service.is_empty() {
            write!(f, " (for {})", self.requested.service)?;
        }
        write!(f, " at {}: {}", self.side, self.reason)?;
        if !self.policy.is_empty() {
            write!(f, " [{}]", self.policy)?;
        }
        if !self.source.identity.is_empty() {
            write!(f, " by {}", self.source.identity)?;
        }
        if !self.note.is_empty() {
            write!(f, " ({})", self.note)?;
        }
        if !self.error.is_empty() {
            write!(f, ": {}", self.error)?;
        }
        if self.stage == "closed" {
            write!(
                f,
                " sent {} received {} in {} ms",
                self.bytes_sent, self.bytes_received, self.duration_ms
            )?;
        }
        Ok(())
    }
}
