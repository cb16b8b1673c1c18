//! What a burst of traffic took goes back to the system when it is over.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::sys::memory::{give_back, kept};
use crate::sys::processor_time;

/// How often it is looked after.
const LOOK: Duration = Duration::from_secs(5);
/// To give back less than has come since the last time is not worth it: it would be taken again.
const SPARE: u64 = 1 << 20;
/// The agent may have used so much of a processor since the last look: who is busy would wait, and take it again.
const CALM: Duration = Duration::from_millis(250);

/// Looks after it, for good.
pub(super) async fn look_after() {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut floor, mut used) = (0, Duration::ZERO);
    loop {
        looks.tick().await;
        let before = std::mem::replace(&mut used, processor_time().unwrap_or_default());
        if used.saturating_sub(before) > CALM {
            continue;
        }
        let Some(now) = kept() else { return };
        floor = floor.min(now);
        if now > floor.saturating_add(SPARE) {
            give_back();
            floor = kept().unwrap_or(now);
            tracing::debug!(before = now, after = floor, "memory that was kept for later is given back");
        }
    }
}
