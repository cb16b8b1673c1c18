//! Whether an enforceable policy matches a peer at a port.

use std::net::IpAddr;

use ipnet::IpNet;

use super::lower::{L4Match, L4Policy, Test};
use super::{ServiceAccountName, StringMatch};
use crate::identity::SpiffeId;

/// A peer, as policies see it.
pub(super) enum Peer {
    /// It has proven this identity.
    Known(Face),
    /// It has proven none.
    Plaintext,
    /// It has proven one that no policy names.
    Stranger,
}

/// The texts of an identity.
#[derive(Debug)]
pub(super) struct Face {
    pub(super) principal: String,
    pub(super) account: ServiceAccountName,
}

impl From<&SpiffeId> for Face {
    fn from(id: &SpiffeId) -> Self {
        let account = ServiceAccountName {
            namespace: id.namespace().to_owned(),
            name: id.service_account().to_owned(),
        };
        Self { principal: id.principal(), account }
    }
}

pub(super) fn string_matches(pattern: &StringMatch, text: &str) -> bool {
    match pattern {
        StringMatch::Exact(exact) => exact == text,
        StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Present => !text.is_empty(),
        StringMatch::Suffix(suffix) => text.ends_with(suffix.as_str()),
    }
}

/// A connection, as far as L4 sees it.
pub(super) struct Asked<'a> {
    pub(super) peer: &'a Peer,
    /// 0 stands for any port that no policy names.
    pub(super) port: u16,
    /// The client's address, or a block of addresses that no policy tells apart.
    pub(super) source: IpNet,
}

impl L4Policy {
    pub(super) fn matches(&self, asked: &Asked<'_>, destination: Option<IpAddr>) -> bool {
        self.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| clause.iter().any(|one| one.holds(asked, destination)))
        })
    }

    /// Every match of every rule.
    pub(super) fn alternatives(&self) -> impl Iterator<Item = &L4Match> {
        self.rules.iter().flat_map(|rule| rule.clauses.iter().flatten())
    }
}

impl L4Match {
    /// `destination` is `None` where no policy asks for it.
    fn holds(&self, asked: &Asked<'_>, destination: Option<IpAddr>) -> bool {
        let Asked { peer, port, source } = asked;
        self.ports.has(port)
            && self.principals.holds(|p| text_holds(p, peer, |face| &face.principal))
            && self.namespaces.holds(|n| text_holds(n, peer, |face| &face.account.namespace))
            && self.accounts.holds(|a| matches!(peer, Peer::Known(face) if face.account == *a))
            && self.sources.holds(|block| block.contains(source))
            && self.destinations.holds(|block| destination.is_some_and(|ip| block.contains(&ip)))
    }
}

fn text_holds(pattern: &StringMatch, peer: &Peer, text: impl Fn(&Face) -> &String) -> bool {
    match peer {
        Peer::Known(face) => string_matches(pattern, text(face)),
        Peer::Plaintext => false,
        Peer::Stranger => *pattern == StringMatch::Present,
    }
}

impl<T: Ord> Test<T> {
    /// [`Self::holds`] for equality, fast in long lists.
    fn has(&self, value: &T) -> bool {
        (self.any.is_empty() || self.any.binary_search(value).is_ok())
            && self.none.binary_search(value).is_err()
    }
}

impl<T> Test<T> {
    pub(super) fn holds(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&matches)) && !self.none.iter().any(&matches)
    }
}
