//! Many samples of the same, as one line.

/// The median, and between what the samples lie.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without a sample. What is no number does not count.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = samples.into_iter().filter(|sample| sample.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        let (min, max) = (*all.first()?, *all.last()?);
        let upper = *all.get(all.len() / 2)?;
        let lower = *all.get((all.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted() {
        let of = |samples: &[f64]| Spread::of(samples.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 100.0]), Some(Spread { median: 3.0, min: 1.0, max: 100.0 }));
        assert_eq!(of(&[4.0, 1.0, 2.0, 100.0]), Some(Spread { median: 3.0, min: 1.0, max: 100.0 }));
        assert_eq!(of(&[7.0, f64::NAN, f64::INFINITY]), Some(Spread { median: 7.0, min: 7.0, max: 7.0 }));
        assert_eq!(of(&[]), None);
    }
}
