//! Threads that carry tunnels: each has a runtime of its own, listeners of its own in each pod (SO_REUSEPORT), and HBONE
//! connections of its own. What a connection needs is then on one thread, and no byte wakes another.

use std::cell::Cell;
use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::busy_poll;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// Which of the workers the calling thread is; 0 when it is none.
pub(super) fn index() -> usize {
    INDEX.get()
}

/// The threads. They end when this is dropped, and with them what they still carry.
#[derive(Debug)]
pub(super) struct Workers {
    handles: Vec<Handle>,
    stop: CancellationToken,
}

impl Workers {
    /// Starts `count` threads; 0: the runtime of whoever serves a pod does it. `busy_poll`: how long a thread waits for what is about
    /// to come without sleeping.
    pub(super) fn start(count: usize, busy_poll: Duration) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let handles =
            (0..count).map(|index| start(index, busy_poll, stop.clone())).collect::<io::Result<_>>()?;
        Ok(Self { handles, stop })
    }

    /// Where to serve, one after the other.
    pub(super) fn runtimes(&self) -> Vec<Handle> {
        if self.handles.is_empty() { vec![Handle::current()] } else { self.handles.clone() }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(index: usize, busy_poll: Duration, stop: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name(format!("tunnels-{index}")).spawn(move || {
        INDEX.set(index);
        runtime.block_on(busy_poll::run(busy_poll, &stop));
    })?;
    Ok(handle)
}
