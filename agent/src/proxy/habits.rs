//! Who says something as soon as it is connected, by port: for them a moment's wait saves a message of its own.

use std::sync::atomic::{AtomicU8, Ordering};

/// So many connections to a port are not waited for after one in vain; about twice as many after the next one in vain.
const FIRST_PENALTY: u8 = 15;

/// What was seen of late at a port.
#[derive(Debug)]
struct Habit {
    /// Connections that are still not waited for.
    left: AtomicU8,
    penalty: AtomicU8,
}

/// What was seen of late. Ports may share a place: it costs a moment, or saves none.
#[derive(Debug)]
pub(super) struct Habits([Habit; 64]);

impl Default for Habits {
    fn default() -> Self {
        Self([const { Habit { left: AtomicU8::new(0), penalty: AtomicU8::new(0) } }; 64])
    }
}

impl Habits {
    /// Whether something is likely to come at once.
    pub(super) fn is_at_once(&self, port: u16) -> bool {
        let fewer = |left: u8| left.checked_sub(1);
        self.place(port).left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_err()
    }

    /// Whether it came when it was waited for.
    pub(super) fn learn(&self, port: u16, came: bool) {
        let place = self.place(port);
        let before = place.penalty.load(Ordering::Relaxed);
        let penalty = if came { 0 } else { before.saturating_mul(2).saturating_add(FIRST_PENALTY) };
        if penalty != before {
            place.penalty.store(penalty, Ordering::Relaxed);
        }
        if !came {
            place.left.store(penalty, Ordering::Relaxed);
        }
    }

    fn place(&self, port: u16) -> &Habit {
        &self.0[usize::from(port) % self.0.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many connections to `port` are not waited for now.
    fn skipped(habits: &Habits, port: u16) -> usize {
        (0..).take_while(|_| !habits.is_at_once(port)).count()
    }

    #[test]
    fn who_does_not_speak_at_once_is_left_alone_longer_each_time() {
        let habits = Habits::default();
        assert_eq!(skipped(&habits, 80), 0);
        for expected in [15, 45, 105, 225, 255, 255] {
            habits.learn(80, false);
            assert_eq!(skipped(&habits, 80), expected);
        }
        habits.learn(80, true);
        habits.learn(80, false);
        assert_eq!(skipped(&habits, 80), 15);
        assert_eq!(skipped(&habits, 81), 0, "another port");
    }
}
