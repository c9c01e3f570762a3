//! PURE: which of several endpoints takes the next piece of work.
//!
//! Two random choices, the less loaded wins (Mitzenmacher, "The power of two choices", 2001):
//! nearly as even as asking everybody, without herds that run to whoever looked idle last.

use std::sync::atomic::{AtomicU64, Ordering};

/// Draws before the list is searched in order: unusable endpoints are few, or all.
const DRAWS_MAX: usize = 8;

/// Weighted shares, summed up once when the route table changes.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// `sums[i]` is the weight of all up to and with `i`.
    sums: Vec<u32>,
}

/// A seeded source of chance that needs no lock (SplitMix64; Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub struct Chance(AtomicU64);

impl Shares {
    /// From each endpoint's weight.
    pub fn new(weights: impl IntoIterator<Item = u16>) -> Self {
        let add = |sum: &mut u32, weight: u16| {
            *sum = sum.saturating_add(weight.into());
            Some(*sum)
        };
        Self { sums: weights.into_iter().scan(0, add).collect() }
    }

    fn draw(&self, chance: &Chance) -> Option<usize> {
        let total = *self.sums.last()?;
        let ticket = chance.below(total)?;
        Some(self.sums.partition_point(|sum| *sum <= ticket))
    }

    fn weight(&self, index: usize) -> u32 {
        self.sums[index] - if index == 0 { 0 } else { self.sums[index - 1] }
    }
}

/// Picks a usable endpoint: of two drawn by weight, the one with less load for its weight.
pub fn pick(
    shares: &Shares,
    chance: &Chance,
    usable: impl Fn(usize) -> bool,
    load: impl Fn(usize) -> u32,
) -> Option<usize> {
    let relative =
        |index: usize| u64::from(load(index) + 1) * u64::from(u16::MAX) / u64::from(shares.weight(index));
    let mut first = None;
    for _ in 0..DRAWS_MAX {
        let drawn = shares.draw(chance)?;
        match first {
            _ if !usable(drawn) => continue,
            None => first = Some(drawn),
            Some(other) if other == drawn => continue,
            Some(other) => return Some(if relative(drawn) < relative(other) { drawn } else { other }),
        }
    }
    first.or_else(|| (0..shares.sums.len()).find(|index| shares.weight(*index) > 0 && usable(*index)))
}

impl Chance {
    /// A sequence that depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A fraction of one, each as likely as any other.
    pub fn fraction(&self) -> f64 {
        // As many bits as a fraction holds.
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `bound`; `None` if there is none.
    fn below(&self, bound: u32) -> Option<u32> {
        // Multiply and shift (Lemire, 2019); its bias is far below what a balancer could show.
        (bound > 0).then(|| ((u64::from(self.bits() as u32) * u64::from(bound)) >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(weights: &[u16], usable: impl Fn(usize) -> bool, load: impl Fn(usize) -> u32) -> Vec<u32> {
        let shares = Shares::new(weights.iter().copied());
        let chance = Chance::new(7);
        let mut counts = vec![0; weights.len()];
        for _ in 0..10_000 {
            if let Some(index) = pick(&shares, &chance, &usable, &load) {
                counts[index] += 1;
            }
        }
        counts
    }

    #[test]
    fn equal_endpoints_share_evenly_and_weights_count() {
        let even = counts(&[100, 100, 100, 100], |_| true, |_| 0);
        assert!(even.iter().all(|count| (2_300..2_700).contains(count)), "{even:?}");
        let weighted = counts(&[100, 300], |_| true, |_| 0);
        assert!(weighted[1] > weighted[0] * 2, "{weighted:?}");
    }

    #[test]
    fn the_less_loaded_wins_and_the_unusable_gets_nothing() {
        let loaded = counts(&[100, 100], |_| true, |index| if index == 0 { 50 } else { 0 });
        assert!(loaded[0] < 100, "{loaded:?}");
        let refused = counts(&[100, 100, 0], |index| index != 0, |_| 0);
        assert_eq!(refused, [0, 10_000, 0]);
        assert_eq!(counts(&[100], |_| false, |_| 0), [0]);
        assert_eq!(counts(&[], |_| true, |_| 0), Vec::<u32>::new());
    }

    #[test]
    fn a_single_usable_one_among_many_is_found() {
        let weights = [1; 1000];
        assert_eq!(counts(&weights, |index| index == 999, |_| 0)[999], 10_000);
    }
}
