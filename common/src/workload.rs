//! Who is who and where services lead: the values that the agent writes.

use bytemuck::{Pod as Plain, Zeroable};

use crate::{Endpoint, Ip, assert_size};

/// Bits of [`Workload`], [`Service`] and [`Config`].
pub mod flags {
    /// The workload is in the mesh: it takes part in policy and speaks HBONE.
    pub const ENROLLED: u32 = 1 << 0;
    /// The workload runs on this node and its namespace's hooks are in place.
    pub const LOCAL: u32 = 1 << 1;
    /// Connections go to its waypoint first, which decides: the workload's own address, or the service's.
    pub const WAYPOINT: u32 = 1 << 2;
    /// The service has only the endpoints of this node, and no others to turn to (`internalTrafficPolicy: Local`).
    pub const NODE_ONLY: u32 = 1 << 3;
    /// Config: same-node traffic goes through HBONE too (`--same-node=tunnel`).
    pub const SAME_NODE_TUNNEL: u32 = 1 << 0;
}

/// The agent's settings, as the programs need them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Plain, Zeroable)]
pub struct Config {
    /// Netns cookie of the node's own network namespace (`SO_NETNS_COOKIE`).
    pub host_netns: u64,
    /// cgroup id of the agent: its own sockets are left alone.
    pub agent_cgroup: u64,
    /// [`crate::ABI_VERSION`] of whoever wrote this.
    pub abi_version: u32,
    /// [`flags::SAME_NODE_TUNNEL`].
    pub flags: u32,
}
assert_size!(Config, 24);

/// An enrolled pod of this node, found by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Plain, Zeroable)]
pub struct Pod {
    /// Its identity.
    pub identity: u32,
    /// Its IPv4 address, or all zeros.
    pub ip4: Ip,
    /// Its IPv6 address, or all zeros.
    pub ip6: Ip,
    /// `namespace/name`, NUL-terminated, cut to 63 bytes: for the reader of a dump. `i8` stands for text in all maps:
    /// bpftool then prints it as such.
    pub name: [i8; 64],
}
assert_size!(Pod, 100);

/// The addresses that a pod's packets may bear, found by the index of the interface that they come in by.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Plain, Zeroable)]
pub struct Guard {
    /// Its IPv4 address, or all zeros.
    pub ip4: Ip,
    /// Its IPv6 address, or all zeros.
    pub ip6: Ip,
}
assert_size!(Guard, 32);

impl Guard {
    /// Whether a packet may say that it comes from `source`: the pod's own addresses, those of its link (RFC 4291 2.5.6),
    /// and none, as DHCP and duplicate address detection have it.
    #[inline(always)]
    pub fn allows(&self, source: Ip) -> bool {
        let link_local = u32::from_be(source.words()[0]) >> 22 == 0xfe80 >> 6;
        source == self.ip4 || source == self.ip6 || source.is_unspecified() || link_local
    }
}

/// Any pod the mesh knows of, found by its address. The addresses of one pod may differ in class.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Plain, Zeroable)]
pub struct Workload {
    /// Its identity (0 when it is not enrolled).
    pub identity: u32,
    /// Its policy class (0 when it is not enrolled).
    pub class: u32,
    /// [`flags::ENROLLED`], [`flags::LOCAL`], [`flags::WAYPOINT`].
    pub flags: u32,
}
assert_size!(Workload, 12);

/// A service's virtual address and port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Plain, Zeroable)]
pub struct ServiceKey {
    /// ClusterIP and service port.
    pub vip: Endpoint,
}
assert_size!(ServiceKey, 20);

/// A service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Plain, Zeroable)]
pub struct Service {
    /// Number of this (service, port, family), the first half of [`BackendKey`].
    pub id: u32,
    /// How many backends it has, in slots `0..backends`.
    pub backends: u32,
    /// [`flags::WAYPOINT`], [`flags::NODE_ONLY`].
    pub flags: u32,
    /// How long a client that comes back is led to the same backend, in seconds since it came last; 0: not at all.
    pub affinity: u32,
}
assert_size!(Service, 16);

/// One backend slot of a service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Plain, Zeroable)]
pub struct BackendKey {
    /// [`Service::id`].
    pub service: u32,
    /// `0..Service::backends`.
    pub slot: u32,
}
assert_size!(BackendKey, 8);

/// A backend of a service with affinity, found by itself: slots move when other backends come or go.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Plain, Zeroable)]
pub struct Member {
    /// [`Service::id`].
    pub service: u32,
    /// The backend.
    pub backend: Endpoint,
}
assert_size!(Member, 24);

/// A name for the reader of a dump: NUL-terminated text, cut to 255 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Plain, Zeroable)]
pub struct Name {
    /// The text.
    pub text: [i8; 256],
}
assert_size!(Name, 256);

impl Service {
    /// The slot that a random number picks. `None` without backends.
    #[inline(always)]
    pub const fn pick(&self, random: u32) -> Option<BackendKey> {
        if self.backends == 0 {
            return None;
        }
        Some(BackendKey { service: self.id, slot: random % self.backends })
    }
}
