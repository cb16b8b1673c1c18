//! What a connection does. Both ends work it out from the seed and the connection's number, so that neither has to trust
//! what the other says.

use serde::{Deserialize, Serialize};

use crate::dice::{Dice, mix};

/// Sizes at which buffers, TLS records (16 KiB), frames and windows (4 MiB) end.
const EDGES: [u64; 16] = [
    2, 4095, 4096, 4097, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 262_143, 262_145, 1_048_575,
    1_048_577, 4_194_303, 4_194_305,
];
/// One connection of so many carries the largest payload, in one direction or the other.
const LARGEST_EVERY: u64 = 180;

/// What all connections of a run follow from.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) seed: u64,
    /// Bytes.
    pub(crate) max_size: u64,
}

/// Who ends its direction when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// The client says all and ends; only then does the server say anything.
    ClientFirst,
    /// The other way round.
    ServerFirst,
    /// Both speak at once, and each ends when it has said all.
    AtOnce,
    /// Both speak at once, and neither ends before it has heard all.
    AfterAll,
}

impl Ending {
    pub(crate) const ALL: [Self; 4] = [Self::ClientFirst, Self::ServerFirst, Self::AtOnce, Self::AfterAll];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ClientFirst => "client first",
            Self::ServerFirst => "server first",
            Self::AtOnce => "both at once",
            Self::AfterAll => "after all",
        }
    }
}

/// One end of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Bytes that it sends.
    pub(crate) size: u64,
    /// Key of these bytes.
    pub(crate) key: u64,
    /// Bytes of its largest write; their sizes vary below.
    pub(crate) largest_write: u64,
    /// Milliseconds before its first byte, in the middle, and before it ends.
    pub(crate) pauses: [u64; 3],
    /// Reads little at a time, and rests in between.
    pub(crate) slow_reader: bool,
    /// Ends with shutdown(SHUT_WR) even where it is the last to end and could close.
    pub(crate) shuts: bool,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) number: u64,
    pub(crate) ipv6: bool,
    /// To the Service rather than to the pod.
    pub(crate) virtual_address: bool,
    pub(crate) ending: Ending,
    pub(crate) client: Part,
    pub(crate) server: Part,
}

impl Rules {
    /// The connection with this number, from 0.
    pub(crate) fn plan(&self, number: u64) -> Plan {
        let mut dice = Dice::new(self.seed, number);
        let ending = dice.pick(&Ending::ALL).copied().unwrap_or(Ending::AtOnce);
        let largest = number % LARGEST_EVERY == LARGEST_EVERY / 2;
        let up = largest && (number / LARGEST_EVERY).is_multiple_of(2);
        Plan {
            number,
            ipv6: number % 2 == 1,
            virtual_address: number / 2 % 2 == 1,
            ending,
            client: self.part(&mut dice, up),
            server: self.part(&mut dice, largest && !up),
        }
    }

    fn part(&self, dice: &mut Dice, largest: bool) -> Part {
        let size = if largest { self.max_size } else { size(dice).min(self.max_size) };
        let most = *dice.pick(&[16, 1 << 10, 16 << 10, 64 << 10, 256 << 10]).unwrap_or(&1024);
        let mut pause = || if dice.chance(1, 6) { dice.between(1, 15) } else { 0 };
        let pauses = [pause(), pause(), pause()];
        Part {
            size,
            key: dice.next(),
            // At most some thousand writes.
            largest_write: most.max(size / 2000),
            pauses,
            slow_reader: dice.chance(1, 40),
            shuts: dice.chance(1, 2),
        }
    }
}

/// Plenty of nothing and of one byte, the edges, and the rest of all magnitudes; about a quarter of a MiB on average.
fn size(dice: &mut Dice) -> u64 {
    match dice.below(100) {
        0..20 => 0,
        20..28 => 1,
        28..42 => dice.pick(&EDGES).copied().unwrap_or(0),
        42..98 => dice.log_uniform(2, 1 << 20),
        _ => dice.log_uniform(1 << 20, 16 << 20),
    }
}

/// Writes the bytes of `key` from `offset` into `chunk`.
pub(crate) fn fill(key: u64, offset: u64, chunk: &mut [u8]) {
    let word = |index: u64| mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
    let skip = usize::try_from(offset % 8).unwrap_or(0);
    let (head, rest) = chunk.split_at_mut(((8 - skip) % 8).min(chunk.len()));
    for (to, from) in head.iter_mut().zip(word(offset / 8).iter().skip(skip)) {
        *to = *from;
    }
    for (index, to) in (offset.div_ceil(8)..).zip(rest.chunks_mut(8)) {
        to.copy_from_slice(&word(index)[..to.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { seed: 1, max_size: 64 << 20 };

    #[test]
    fn bytes_are_the_same_however_they_are_cut() {
        let mut whole = [0; 100];
        fill(42, 0, &mut whole);
        for (from, to) in [(0, 100), (0, 3), (3, 5), (5, 8), (7, 9), (8, 16), (13, 99)] {
            let mut part = vec![0; to - from];
            fill(42, from as u64, &mut part);
            assert_eq!(part, whole[from..to], "{from}..{to}");
        }
        let mut other = [0; 100];
        fill(43, 0, &mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn ten_thousand_connections_hold_what_they_should() {
        let plans: Vec<Plan> = (0..10_000).map(|n| RULES.plan(n)).collect();
        let sizes = |wanted: &dyn Fn(u64) -> bool| {
            plans.iter().flat_map(|p| [p.client.size, p.server.size]).filter(|s| wanted(*s)).count()
        };
        assert!(sizes(&|s| s == 0) > 3000);
        assert!(sizes(&|s| s == 1) > 1000);
        assert!(sizes(&|s| s == RULES.max_size) >= 50);
        for edge in EDGES {
            assert!(sizes(&|s| s == edge) > 20, "{edge}");
        }
        for ending in Ending::ALL {
            assert!(plans.iter().filter(|p| p.ending == ending).count() > 2000, "{ending:?}");
        }
        let silent_first = |p: &&Plan| p.ending == Ending::ClientFirst && p.client.size == 0;
        assert!(plans.iter().filter(silent_first).count() > 300);
        assert_eq!(plans.iter().filter(|p| p.ipv6 && p.virtual_address).count(), 2500);
        let total: u64 = plans.iter().map(|p| p.client.size + p.server.size).sum();
        assert!((4 << 30..10 << 30).contains(&total), "{} MiB", total >> 20);
    }

    #[test]
    fn a_plan_follows_from_the_seed() {
        assert_eq!(RULES.plan(5), RULES.plan(5));
        assert_ne!(RULES.plan(5).client.key, Rules { seed: 2, ..RULES }.plan(5).client.key);
    }
}
