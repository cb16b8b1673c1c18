//! Numbers that look random and follow from a seed, the same in every process and version: what a run did can be done again.

/// A sequence of numbers (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads each bit of `x` over all others.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Dice {
    /// The sequence of `seed` and a `number` within it.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        Self(mix(mix(seed.wrapping_add(STEP)) ^ number))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// From 0 to `end` - 1; 0 when `end` is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// Both ends included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below((high.saturating_sub(low)).saturating_add(1))
    }

    /// True `part` times out of `whole`.
    pub(crate) fn chance(&mut self, part: u64, whole: u64) -> bool {
        self.below(whole) < part
    }

    /// One of `choices`; `None` when there are none.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(usize::try_from(self.below(choices.len() as u64)).unwrap_or(0))
    }

    /// Each order of magnitude between `low` and `high` as often as any other. `low` must not be 0.
    pub(crate) fn log_uniform(&mut self, low: u64, high: u64) -> u64 {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let (low, high) = (low as f64, high.max(low) as f64);
        (low * (high / low).powf(unit)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_sequence() {
        let take = |seed, number| {
            let mut dice = Dice::new(seed, number);
            [dice.next(), dice.next(), dice.next()]
        };
        assert_eq!(take(1, 2), take(1, 2));
        assert_ne!(take(1, 2), take(1, 3));
        assert_ne!(take(1, 2), take(2, 2));
    }

    #[test]
    fn numbers_stay_in_their_bounds() {
        let mut dice = Dice::new(7, 7);
        let (mut low, mut high) = (false, false);
        for _ in 0..1000 {
            let n = dice.between(3, 5);
            assert!((3..=5).contains(&n));
            low |= n == 3;
            high |= n == 5;
            assert!((2..=1 << 20).contains(&dice.log_uniform(2, 1 << 20)));
        }
        assert!(low && high);
        assert_eq!((dice.below(0), dice.pick::<u8>(&[])), (0, None));
    }
}
