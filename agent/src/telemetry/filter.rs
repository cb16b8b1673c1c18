//! Which flow records somebody wants to see.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::flows::{End, FlowRecord};
use crate::identity::SpiffeId;

/// What `--verdict` takes: the two verdicts, and the stages that records print.
pub const VERDICTS: [&str; 5] = ["allowed", "refused", "opened", "closed", "ended"];

/// One end of a connection, as an operator names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Every pod of a namespace: `shop` or `shop/`.
    Namespace(String),
    /// A pod, or as destination also a service: `shop/web`.
    Workload(String),
    /// An address or a block of them: `10.244.1.0/24`.
    Block(IpNet),
    /// Who proved this identity: `spiffe://cluster.local/ns/shop/sa/web`.
    Identity(String),
}

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("spiffe://") {
            let id: SpiffeId = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
            return Ok(Self::Identity(id.to_string()));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Some(block) = bare.parse().ok().or_else(|| bare.parse::<IpAddr>().map(IpNet::from).ok()) {
            return Ok(Self::Block(block));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let space = |name: &str| !name.is_empty() && name.chars().all(plain);
        let plain = |name: &str| !name.is_empty() && name.chars().all(|c| plain(c) || c == '.');
        match text.split_once('/') {
            None if space(text) => Ok(Self::Namespace(text.to_owned())),
            Some((namespace, "")) if space(namespace) => Ok(Self::Namespace(namespace.to_owned())),
            Some((namespace, name)) if space(namespace) && plain(name) => Ok(Self::Workload(text.to_owned())),
            _ => Err(format!(
                "{text:?} names nobody: write namespace/pod, namespace/, an address (10.244.1.2, 10.244.1.0/24) or a SPIFFE id"
            )),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "{name}/"),
            Self::Workload(text) | Self::Identity(text) => f.write_str(text),
            Self::Block(block) => write!(f, "{block}"),
        }
    }
}

impl Who {
    fn is(&self, end: &End) -> bool {
        match self {
            Self::Block(block) => block.contains(&end.address),
            Self::Identity(id) => end.identity == *id,
            _ => self.is_named(&end.workload),
        }
    }

    /// By `namespace/name`.
    fn is_named(&self, name: &str) -> bool {
        match self {
            Self::Namespace(wanted) => name.split_once('/').is_some_and(|(namespace, _)| namespace == wanted),
            Self::Workload(wanted) => name == wanted,
            Self::Block(_) | Self::Identity(_) => false,
        }
    }
}

/// All of it must hold; the default wants everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// The client.
    pub from: Option<Who>,
    /// The server, or what the client asked for.
    pub to: Option<Who>,
    /// Any of [`VERDICTS`]; empty: all.
    pub verdicts: Vec<String>,
    /// `namespace/name` of the policy that decided, or that is noted beside the verdict.
    pub policy: Option<String>,
    /// Not before.
    pub after: Option<Timestamp>,
}

impl FlowFilter {
    /// Sets what to be verdicts, from words separated by commas.
    ///
    /// # Errors
    ///
    /// A word that no record has, with those that they have.
    pub fn with_verdicts(mut self, words: &str) -> Result<Self, String> {
        self.verdicts = words.split(',').map(str::to_lowercase).collect();
        match self.verdicts.iter().find(|word| !VERDICTS.contains(&word.as_str())) {
            Some(word) => Err(format!("no flow is {word:?}: write {}", VERDICTS.join(", "))),
            None => Ok(self),
        }
    }

    /// Whether the record is wanted.
    pub fn wants(&self, record: &FlowRecord) -> bool {
        self.from.as_ref().is_none_or(|who| who.is(&record.source))
            && self.to.as_ref().is_none_or(|who| is_asked_for(who, record))
            && (self.verdicts.is_empty()
                || self.verdicts.iter().any(|word| word == record.verdict || word == record.stage))
            && self
                .policy
                .as_ref()
                .is_none_or(|policy| record.policy == *policy || names(&record.note, policy))
            && self.after.is_none_or(|after| record.time.parse::<Timestamp>().is_ok_and(|time| time >= after))
    }
}

fn is_asked_for(who: &Who, record: &FlowRecord) -> bool {
    let requested = &record.requested;
    let address = matches!(who, Who::Block(block) if block.contains(&requested.address));
    who.is(&record.destination) || who.is_named(&requested.service) || address
}

/// Whether the words of a note name this policy.
fn names(note: &str, policy: &str) -> bool {
    note.split([' ', ',', ';', '[', ']']).any(|word| !word.is_empty() && word == policy)
}

#[cfg(test)]
mod tests;
