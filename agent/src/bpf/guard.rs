//! The source guard on pods' interfaces: by a tcx link where the kernel has them (Linux 6.6), else by a filter at clsact.

use std::io;
use std::path::{Path, PathBuf};

use culvert_common::Guard;

use super::clsact;
use super::link::{self, AttachType, PinnedLink};
use super::load::{Kernel, KernelError, fd, lock};

pub(super) const GUARD: &str = "culvert_guard";
const PIN: &str = "guard-";

/// By what the guard is on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    Tcx,
    Clsact,
}

impl Hook {
    /// What the kernel has; `clsact` is asked for in any case.
    pub(super) fn choose(clsact: bool) -> Self {
        if clsact || !link::has_tcx() { Self::Clsact } else { Self::Tcx }
    }
}

/// The guard of a pod.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) index: u32,
    /// `None`: a filter, which the kernel keeps with the interface.
    link: Option<PinnedLink>,
}

impl Kernel {
    /// From now on what arrives by the node's interface `index`, the other end of a pod's, must bear an address of `guard`.
    ///
    /// # Errors
    ///
    /// [`KernelError`] with what the kernel said.
    pub fn guard_pod(&self, cookie: u64, index: u32, guard: Guard) -> Result<(), KernelError> {
        let attach =
            |source| KernelError::Attach { name: GUARD, target: format!("interface {index}"), source };
        // A program without the entry drops everything: the entry comes first.
        self.maps.put_guard(index, guard).map_err(attach)?;
        let programs = lock(&self.programs);
        let program = fd(&programs, GUARD)?;
        let link = match self.guard_hook {
            Hook::Tcx => PinnedLink::attach_interface(&self.guard_pin(cookie), program, index).map(Some),
            Hook::Clsact => clsact::put(index, self.instance(), program).map(|()| None),
        };
        let mut guards = lock(&self.guards);
        match link {
            Ok(link) => {
                guards.insert(cookie, Guarded { index, link });
                Ok(())
            }
            Err(error) => {
                // Its interface may have gone a moment ago. A program that is still there must not be left without its entry.
                let used =
                    guards.values().any(|other| other.index == index) || self.guard_pin(cookie).exists();
                if !used {
                    self.maps.remove_guard(index).map_err(attach)?;
                }
                Err(attach(error))
            }
        }
    }

    /// Takes the guard off a pod's interface.
    ///
    /// # Errors
    ///
    /// When the pin, the filter or the entry cannot be removed.
    pub fn unguard_pod(&self, cookie: u64) -> Result<(), KernelError> {
        let path = self.guard_pin(cookie);
        let mut guards = lock(&self.guards);
        let Some(Guarded { index, link }) = guards.remove(&cookie) else { return Ok(()) };
        // The interface may have gone, and its index be another pod's by now.
        if guards.values().any(|other| other.index == index) {
            return link
                .map_or(Ok(()), PinnedLink::detach)
                .map_err(|source| KernelError::Path { path, source });
        }
        let detached = match link {
            Some(link) => link.detach(),
            None => clsact::remove(index, self.instance()).map(drop),
        };
        detached
            .and_then(|()| self.maps.remove_guard(index))
            .map_err(|source| KernelError::Path { path, source })
    }

    fn guard_pin(&self, cookie: u64) -> PathBuf {
        self.pins().join("links").join(format!("{PIN}{cookie}"))
    }

    /// The pod whose guard has this pin, unless this agent put it there.
    pub(super) fn stale_guard(&self, pin: &str) -> Option<u64> {
        let cookie = pin.strip_prefix(PIN)?.parse().ok()?;
        let known = lock(&self.guards).get(&cookie).is_some_and(|guarded| guarded.link.is_some());
        (!known).then_some(cookie)
    }

    /// Removes the filters and entries of interfaces that no pod of this agent has, left by an earlier one. Returns how many
    /// filters there were.
    pub(super) fn sweep_guards(&self) -> io::Result<usize> {
        let guards = lock(&self.guards);
        let filtered = |index| guards.values().any(|known| known.index == index && known.link.is_none());
        let swept = clsact::sweep(self.instance(), filtered)?;
        self.maps.sweep_guards(|index| guards.values().any(|known| known.index == index))?;
        Ok(swept)
    }

    /// The interfaces with a guard: netns cookie of the pod, index.
    pub(super) fn guarded_interfaces(&self) -> Vec<(u64, u32)> {
        lock(&self.guards).iter().map(|(cookie, guarded)| (*cookie, guarded.index)).collect()
    }

    /// The programs that run for what arrives by an interface, in their order: those of tcx, then those of filters.
    pub(super) fn filters_at(&self, index: u32) -> Vec<(&'static str, u32)> {
        let links = link::programs_at(index, AttachType::TcxIngress, false).unwrap_or_default();
        let filters = clsact::filters(index).unwrap_or_default();
        let links = links.into_iter().map(|id| ("tcx_ingress", id));
        links.chain(filters.into_iter().map(|filter| ("clsact/ingress", filter.program))).collect()
    }
}

/// How many interfaces of the calling thread's network namespace have an instance's filter.
pub(crate) fn count_filters(instance: &str) -> io::Result<usize> {
    clsact::count(instance)
}

/// Takes an instance's filters off the interfaces of the calling thread's network namespace; returns how many there were.
pub(crate) fn remove_filters(instance: &str) -> io::Result<usize> {
    clsact::sweep(instance, |_| false)
}

/// An instance is called as the directory of its pins is.
pub(super) fn instance_of(pins: &Path) -> &str {
    pins.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
