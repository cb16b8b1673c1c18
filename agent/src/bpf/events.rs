//! The ring buffer of flow events as an async stream.

use std::io;

use aya::maps::{MapData, RingBuf};
use culvert_common::FlowEvent;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::load::Kernel;

/// Reads [`FlowEvent`]s as the programs emit them.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl EventStream {
    /// The stream of this kernel's events.
    ///
    /// # Errors
    ///
    /// When it was opened before, or its descriptor cannot be polled.
    pub fn open(kernel: &Kernel) -> io::Result<Self> {
        let ring = kernel
            .maps
            .take_events()
            .ok_or_else(|| io::Error::other("the event ring is already being read"))?;
        // SAFETY: the ring owns its descriptor, always returns the same one, and closes it only when dropped, which is
        // after AsyncFd has deregistered it.
        #[allow(unsafe_code, reason = "AsyncFd's safe constructor is deprecated as unsound")]
        let ring =
            unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { ring })
    }

    /// Waits for events and hands each to `sink`; returns after every batch.
    pub async fn read(&mut self, mut sink: impl FnMut(FlowEvent)) -> io::Result<()> {
        let mut guard = self.ring.readable_mut().await?;
        let ring = guard.get_inner_mut();
        while let Some(item) = ring.next() {
            // An item of another size comes from another ABI and is not ours to guess at.
            if let Ok(event) = bytemuck::try_pod_read_unaligned::<FlowEvent>(&item) {
                sink(event);
            }
        }
        guard.clear_ready();
        Ok(())
    }
}
