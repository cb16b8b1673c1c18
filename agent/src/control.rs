//! Where the mesh's objects come from: every source speaks the one vocabulary of [`Update`]s.
//!
//! A source reads on its own thread, judges each object where it meets it (what leaves here is valid ever after), and
//! sends batches. The first batch is a complete picture and ends with [`Update::Synced`].

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::policy::{AuthorizationPolicy, PeerAuthentication};

pub mod manifests;
pub mod names;
pub mod objects;
mod yaml;

/// One change of the picture that a source has.
#[derive(Clone, PartialEq, Debug)]
pub enum Update {
    /// An object is new or has changed.
    Upsert(Object),
    /// An object is gone. Unknown ones are no error.
    Remove(ObjectRef),
    /// What the source could not use; replaces the report before it.
    Report(Report),
    /// What DNS says of a name that some object has in place of an address; `None`: nobody asks for it any more.
    Name(String, Option<names::Answer>),
    /// The picture is complete for the first time.
    Synced,
}

/// An object of a kind that Culvert uses. Cheap to clone.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each variant is the Kubernetes kind of its name")]
pub enum Object {
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    EndpointSlice(Arc<objects::EndpointSlice>),
    Gateway(Arc<objects::Gateway>),
    GatewayClass(Arc<objects::GatewayClass>),
    Namespace(Arc<objects::Namespace>),
    Node(Arc<objects::Node>),
    PeerAuthentication(Arc<PeerAuthentication>),
    Pod(Arc<objects::Pod>),
    Service(Arc<objects::Service>),
    ServiceAccount(Arc<objects::ServiceAccount>),
    ServiceEntry(Arc<objects::ServiceEntry>),
    WorkloadEntry(Arc<objects::WorkloadEntry>),
}

impl Object {
    /// What the object is called.
    pub fn key(&self) -> ObjectRef {
        let meta = |kind, meta: &objects::Metadata| ObjectRef::new(kind, &meta.namespace, &meta.name);
        match self {
            Self::AuthorizationPolicy(p) => ObjectRef::new(Kind::AuthorizationPolicy, &p.namespace, &p.name),
            Self::EndpointSlice(o) => meta(Kind::EndpointSlice, &o.metadata),
            Self::Gateway(o) => meta(Kind::Gateway, &o.metadata),
            Self::GatewayClass(o) => meta(Kind::GatewayClass, &o.metadata),
            Self::Namespace(o) => meta(Kind::Namespace, &o.metadata),
            Self::Node(o) => meta(Kind::Node, &o.metadata),
            Self::PeerAuthentication(p) => ObjectRef::new(Kind::PeerAuthentication, &p.namespace, &p.name),
            Self::Pod(o) => meta(Kind::Pod, &o.metadata),
            Self::Service(o) => meta(Kind::Service, &o.metadata),
            Self::ServiceAccount(o) => meta(Kind::ServiceAccount, &o.metadata),
            Self::ServiceEntry(o) => meta(Kind::ServiceEntry, &o.metadata),
            Self::WorkloadEntry(o) => meta(Kind::WorkloadEntry, &o.metadata),
        }
    }
}

impl Object {
    /// Whether the two are equal; without a look inside when they are one and the same.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::AuthorizationPolicy(a), Self::AuthorizationPolicy(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::EndpointSlice(a), Self::EndpointSlice(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Pod(a), Self::Pod(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Service(a), Self::Service(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => self == other,
        }
    }
}

/// The kinds that Culvert uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[expect(missing_docs, reason = "each variant is the Kubernetes kind of its name")]
pub enum Kind {
    AuthorizationPolicy,
    EndpointSlice,
    Gateway,
    GatewayClass,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    ServiceAccount,
    ServiceEntry,
    WorkloadEntry,
}

impl Kind {
    /// The kind that `apiVersion` and `kind` name, if Culvert uses it.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Some(match (api_version, kind) {
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "Node") => Self::Node,
            ("v1", "Pod") => Self::Pod,
            ("v1", "Service") => Self::Service,
            ("v1", "ServiceAccount") => Self::ServiceAccount,
            (
                "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3",
                "ServiceEntry",
            ) => Self::ServiceEntry,
            (
                "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3",
                "WorkloadEntry",
            ) => Self::WorkloadEntry,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::EndpointSlice,
            ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "Gateway") => {
                Self::Gateway
            }
            ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "GatewayClass") => {
                Self::GatewayClass
            }
            ("security.istio.io/v1" | "security.istio.io/v1beta1", "AuthorizationPolicy") => {
                Self::AuthorizationPolicy
            }
            ("security.istio.io/v1" | "security.istio.io/v1beta1", "PeerAuthentication") => {
                Self::PeerAuthentication
            }
            _ => return None,
        })
    }

    /// Whether objects of the kind live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::GatewayClass | Self::Namespace | Self::Node)
    }
}

/// The name of an object: `Kind namespace/name`, or `Kind name` for those outside namespaces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct ObjectRef {
    /// What it is.
    pub kind: Kind,
    /// Empty for kinds outside namespaces.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// A reference to an object.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{:?} {}", self.kind, self.name)
        } else {
            write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// What a source could not use.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Report {
    /// Broken input, in the order of the files.
    pub problems: Vec<Problem>,
    /// Objects of other kinds, which are left alone.
    pub ignored: Vec<Ignored>,
}

/// A piece of input that is not in force, and what to do about it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Line in the file from 1; 0: the file as a whole.
    pub line: u64,
    /// The object, as `Kind namespace/name`; empty: not known.
    pub object: String,
    /// Path of the field inside the object, such as `spec.rules[0].to[0]`; empty: not known.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What is in force instead, and what to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        for part in [&self.object, &self.field, &self.message] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        write!(f, " ({})", self.remedy)
    }
}

/// Objects of a kind that Culvert does not use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Ignored {
    /// `apiVersion/kind`.
    pub kind: String,
    /// How many.
    pub count: usize,
    /// The file that holds the first one.
    pub file: String,
}
