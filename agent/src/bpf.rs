//! The kernel side as the agent sees it: the only module that knows aya.
//!
//! Everything is pinned under `<bpffs>/culvert/<instance>/`: maps by their name, links under `links/`. An agent that
//! starts finds them, replaces the programs behind the links in place and takes the maps over; an agent that dies
//! leaves enforcement and same-node traffic running.

/// Pins of all instances.
pub(crate) const PIN_ROOT: &str = "/sys/fs/bpf/culvert";

mod attached;
mod batch;
mod capacity;
mod clsact;
mod detached;
mod events;
mod features;
mod guard;
mod link;
mod load;
mod maps;
mod mirror;
mod neighbours;
mod owners;
mod pins;
mod probe;
mod resize;
mod room;
mod scratch;
mod sync;
mod trial;
mod usage;
mod witness;

pub(crate) use attached::{Instance, instances};
pub use capacity::{Capacities, MapEntries};
pub use events::EventStream;
pub(crate) use guard::{count_filters, remove_filters};
pub(crate) use link::has_tcx;
pub use load::{Kernel, KernelConfig, KernelError};
pub use maps::Maps;
pub use neighbours::Neighbour;
pub(crate) use pins::remove_pins;
pub use probe::lacking;
pub use scratch::Scratch;
pub use sync::{Short, SyncStats, Synced};
pub use trial::Trial;
pub use usage::Usage;
pub use witness::Witness;
