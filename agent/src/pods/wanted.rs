//! What is known of a pod that should be in the mesh.

use std::net::IpAddr;

use crate::identity::SpiffeId;

/// A pod of this node that should be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// metadata.uid.
    pub uid: String,
    /// `namespace/name`.
    pub name: String,
    /// Its addresses, one or both families.
    pub addresses: Vec<IpAddr>,
    /// Its identity.
    pub identity: SpiffeId,
    /// The `baggage` header of its tunnels.
    pub baggage: String,
}

impl Wanted {
    /// Whether only labels differ: nothing that decides about a connection.
    pub(super) fn is_as_enrolled(&self, other: &Self) -> bool {
        let Self { uid, name, addresses, identity, baggage: _ } = self;
        (uid, name, addresses, identity) == (&other.uid, &other.name, &other.addresses, &other.identity)
    }
}
