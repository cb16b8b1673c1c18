//! Map capacities. The defaults of `--map-entries`. Tables that the agent writes are allocated on demand, so
//! a capacity is a bound, not a cost; those that programs write are preallocated.

/// Enrolled pods of one node. Kubernetes allows 110 by default; some clouds 250.
pub const MAX_PODS: usize = 1 << 10;
/// Pod addresses of the mesh, both families.
pub const MAX_WORKLOADS: usize = 1 << 18;
/// Service ports, both families.
pub const MAX_SERVICES: usize = 1 << 16;
/// Backends of all service ports.
pub const MAX_BACKENDS: usize = 1 << 18;
/// Clients of services with session affinity, one for each service port that they use. The one that was not used for longest
/// makes room for the next. Preallocated: 112 bytes each, 4 MiB.
pub const MAX_AFFINITY: usize = 1 << 15;
/// Compiled policy rows.
pub const MAX_POLICY_ROWS: usize = 1 << 19;
/// Address blocks of all classes whose policies ask for the client's address.
pub const MAX_SOURCES: usize = 1 << 18;
/// Different sets of what AUDIT and dry-run policies say beside a verdict.
pub const MAX_NOTES: usize = 1 << 16;
/// Policies.
pub const MAX_POLICIES: usize = 1 << 16;
/// Address blocks in which there is something that `workloads` or `services` has no room for.
pub const MAX_UNLISTED: usize = 1 << 11;
/// Identities.
pub const MAX_IDENTITIES: usize = 1 << 17;
/// Connections between connect() and accept on this node.
pub const MAX_ADMITTED: usize = 1 << 15;
/// Open connections into enrolled pods that do not go through the agent. Preallocated: 128 bytes each, 16 MiB.
pub const MAX_CONNECTIONS: usize = 1 << 17;
/// Tunnelled connections that the agent has not picked up yet, or that it is delivering.
pub const MAX_HANDOVERS: usize = 1 << 14;
/// Bytes of the event ring buffer.
pub const EVENT_RING_BYTES: usize = 1 << 22;
