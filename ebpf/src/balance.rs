//! Which backend of a service a connection goes to.
//!
//! The agent has put into `backends` only those that this node's pods are to use now; each of them is as good as the others.

use core::ptr::{addr_of_mut, write_volatile};

use culvert_common::{Affinity, AffinityKey, Endpoint, Member, Service};

use crate::ctx;
use crate::events::now;
use crate::maps::{AFFINITY, BACKENDS, MEMBERS, copied};

/// A backend for a client in the namespace with this cookie; `None` without any.
#[inline(always)]
pub fn choose(netns: u64, service: &Service) -> Option<Endpoint> {
    if service.affinity == 0 {
        return any(service);
    }
    let key = AffinityKey::new(netns, service.id);
    if let Some(backend) = last(&key, service) {
        return Some(backend);
    }
    let backend = any(service)?;
    // Without room the next connection is led anywhere, as this one was.
    let _ = AFFINITY.insert(&key, &Affinity::new(now(), backend), 0);
    Some(backend)
}

/// The agent writes slots before it raises their number, and lowers the number before it removes them.
#[inline(always)]
fn any(service: &Service) -> Option<Endpoint> {
    copied!(BACKENDS, service.pick(ctx::random())?)
}

/// Where the client was led to before, if that is not too long ago and still one of the service's backends.
#[inline(always)]
fn last(key: &AffinityKey, service: &Service) -> Option<Endpoint> {
    let entry = AFFINITY.get_ptr_mut(key)?;
    // SAFETY: the element is the map's for the whole run. It may be given to another key meanwhile: what is read then is no
    // member of this service, or one that would do.
    let seen = unsafe { *entry };
    let now = now();
    let member = Member { service: service.id, backend: seen.backend };
    if !seen.holds(now, service.affinity) || copied!(MEMBERS, &member).is_none() {
        return None;
    }
    // SAFETY: an aligned word of the element; the worst that a race costs is that another entry counts as used now.
    unsafe { write_volatile(addr_of_mut!((*entry).used_ns), now) };
    Some(seen.backend)
}
