//! Who says something as soon as it is connected, by port: for them a moment's wait saves a message of its own.

use std::sync::atomic::{AtomicU8, Ordering};

/// So many connections to a port are not waited for after one in vain.
const PENALTY: u8 = 255;

/// What was seen of late. Ports may share a place: it costs a moment, or saves none.
#[derive(Debug)]
pub(super) struct Habits([AtomicU8; 64]);

impl Default for Habits {
    fn default() -> Self {
        Self([const { AtomicU8::new(0) }; 64])
    }
}

impl Habits {
    /// Whether something is likely to come at once.
    pub(super) fn is_at_once(&self, port: u16) -> bool {
        let fewer = |left: u8| left.checked_sub(1);
        self.place(port).fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_err()
    }

    /// It was waited for in vain.
    pub(super) fn was_not_at_once(&self, port: u16) {
        self.place(port).store(PENALTY, Ordering::Relaxed);
    }

    fn place(&self, port: u16) -> &AtomicU8 {
        &self.0[usize::from(port) % self.0.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_speak_at_once_is_left_alone_for_a_while() {
        let habits = Habits::default();
        assert!(habits.is_at_once(80) && habits.is_at_once(80));
        habits.was_not_at_once(80);
        assert!((0..PENALTY).all(|_| !habits.is_at_once(80)));
        assert!(habits.is_at_once(80) && habits.is_at_once(81));
    }
}
