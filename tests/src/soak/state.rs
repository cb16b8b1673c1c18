//! What the cluster is told to be, and what that allows.

use std::collections::BTreeSet;

/// What the cluster is told to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Namespaces in the mesh.
    pub(crate) enrolled: BTreeSet<&'static str>,
    /// Pods that are labelled out of it.
    pub(crate) opted_out: BTreeSet<&'static str>,
    /// Pods that come and go, and are there.
    pub(crate) present: BTreeSet<&'static str>,
    /// A DENY policy of `shop` for the namespace `web`.
    pub(crate) deny_web: bool,
    /// An ALLOW policy of `shop` for the namespace `web`.
    pub(crate) allow_web: bool,
    /// PeerAuthentication of `shop`.
    pub(crate) strict: bool,
}

/// A pod of the soak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    /// `namespace/name`.
    pub(crate) name: &'static str,
    pub(crate) node: &'static str,
    /// It is not there from the start.
    pub(crate) guest: bool,
    /// It serves.
    pub(crate) serves: bool,
}

impl Pod {
    pub(crate) fn namespace(&self) -> &'static str {
        self.name.split('/').next().unwrap_or("")
    }
}

impl State {
    /// The state at the start, to which a run comes back.
    pub(crate) fn base() -> Self {
        Self {
            enrolled: BTreeSet::from(["calm", "evil", "shop", "web"]),
            opted_out: BTreeSet::new(),
            present: BTreeSet::new(),
            deny_web: false,
            allow_web: false,
            strict: true,
        }
    }

    pub(super) fn has(&self, pod: &Pod) -> bool {
        !pod.guest || self.present.contains(pod.name)
    }

    pub(crate) fn in_mesh(&self, pod: &Pod) -> bool {
        self.has(pod) && self.enrolled.contains(pod.namespace()) && !self.opted_out.contains(pod.name)
    }

    /// Whether the policies of the server's namespace let a peer in.
    fn allows(&self, server: &Pod, identity: Option<&str>) -> bool {
        if server.namespace() != "shop" {
            return identity.is_some(); // the mesh is STRICT and has no other policy there
        }
        match identity {
            None => !self.strict && !self.allow_web,
            Some("evil") => false,
            Some("web") => !self.deny_web,
            Some(_) => !self.allow_web,
        }
    }
}

/// Whether the connection is allowed, where the client's agent knows `here` and the server's knows `there`.
pub(crate) fn allowed(from: &Pod, to: &Pod, here: &State, there: &State) -> bool {
    let identity = (here.in_mesh(from) && here.in_mesh(to)).then(|| from.namespace());
    let at_source = identity.is_none() || here.allows(to, identity);
    at_source && (!there.in_mesh(to) || there.allows(to, identity))
}
