//! Local ports of the connections that the agent opens to a pod's app.
//!
//! For port 0 bind() looks for a port that nobody has at that address, and walks the connections that are there: with ten
//! thousand tunnels into a pod that is most of what a new one costs. The port need only be free towards that app: one is named,
//! and another when it was not.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

/// The kernel's `ip_local_port_range` unless somebody has set another.
const DEFAULT: RangeInclusive<u16> = 32768..=60999;

/// The ports of one network namespace.
#[derive(Debug)]
pub(super) struct LocalPorts {
    range: RangeInclusive<u16>,
    /// `ip_local_reserved_ports`: apps want to listen on them.
    reserved: Vec<RangeInclusive<u16>>,
    next: AtomicU32,
}

impl LocalPorts {
    /// As the settings of the namespace say now.
    pub(super) fn of(netns: impl AsFd) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
        let read = || Ok((read("ip_local_port_range")?, read("ip_local_reserved_ports")?));
        let settings: io::Result<(String, String)> = sys::in_netns(netns, read);
        let (range, reserved) = settings.unwrap_or_default();
        Self::new(&range, &reserved)
    }

    fn new(range: &str, reserved: &str) -> Self {
        let mut ends = range.split_whitespace().filter_map(|end| end.parse().ok());
        let range = match (ends.next(), ends.next()) {
            (Some(first), Some(last)) if 0 < first && first < last => first..=last,
            _ => DEFAULT,
        };
        let reserved = reserved.trim().split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        Self { range, reserved: reserved.collect(), next: AtomicU32::new(rand::random()) }
    }

    /// One that was not named for long. It may be taken.
    pub(super) fn next(&self) -> u16 {
        let count = u32::from(self.range.end() - self.range.start()) + 1;
        // Bounded: everything may be reserved.
        for _ in 0..count {
            let place = self.next.fetch_add(1, Ordering::Relaxed) % count;
            let port = self.range.start() + place as u16;
            if !self.reserved.iter().any(|taken| taken.contains(&port)) {
                return port;
            }
        }
        *self.range.start()
    }

    /// The last one was taken: so are its neighbours, probably, by connections that were opened with it.
    pub(super) fn jump(&self) {
        self.next.store(rand::random(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_of_the_range_come_in_turn() {
        let ports = LocalPorts::new("40000\t40003\n", "\n");
        let mut seen: Vec<u16> = (0..4).map(|_| ports.next()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [40000, 40001, 40002, 40003]);
        ports.jump();
        assert!((40000..=40003).contains(&ports.next()));
    }

    #[test]
    fn what_is_reserved_is_left_out() {
        let ports = LocalPorts::new("40000 40005", "80,40001-40003,40005\n");
        let mut seen: Vec<u16> = (0..2).map(|_| ports.next()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [40000, 40004]);
        assert_eq!(LocalPorts::new("7 8", "1-65535").next(), 7, "there must be one");
    }

    #[test]
    fn nonsense_is_the_default() {
        for text in ["", "1", "9 8", "x y", "0 70000"] {
            assert!(DEFAULT.contains(&LocalPorts::new(text, text).next()), "{text}");
        }
    }

    #[test]
    fn the_namespace_is_asked() {
        let own = fs::File::open("/proc/self/ns/net").unwrap();
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        assert_eq!(LocalPorts::of(&own).range, LocalPorts::new(&text, "").range);
    }
}
