//! PURE: draws by weight.

use super::Chance;

/// Weighted shares, summed up once when the route table changes.
#[derive(Clone, Debug)]
pub(super) enum Shares {
    /// All have one weight, as they mostly do: a draw is a multiplication.
    Equal { count: u32, weight: u16 },
    /// `sums[i]` is the weight of all up to and with `i`: a draw is a binary search.
    Summed { sums: Vec<u32> },
}

impl Shares {
    /// From each endpoint's weight.
    pub(super) fn new(weights: &[u16]) -> Self {
        if let Some(weight) = weights.first().copied()
            && weight > 0
            && weights.iter().all(|other| *other == weight)
        {
            return Self::Equal { count: weights.len() as u32, weight };
        }
        let add = |sum: &mut u32, weight: &u16| {
            *sum = sum.saturating_add((*weight).into());
            Some(*sum)
        };
        Self::Summed { sums: weights.iter().scan(0, add).collect() }
    }

    pub(super) fn draw(&self, chance: &Chance) -> Option<usize> {
        match self {
            Self::Equal { count, .. } => chance.below(*count).map(|index| index as usize),
            Self::Summed { sums } => {
                let ticket = chance.below(*sums.last()?)?;
                Some(sums.partition_point(|sum| *sum <= ticket))
            }
        }
    }

    pub(super) fn weight(&self, index: usize) -> u32 {
        match self {
            Self::Equal { weight, .. } => (*weight).into(),
            Self::Summed { sums } => sums[index] - if index == 0 { 0 } else { sums[index - 1] },
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Equal { count, .. } => *count as usize,
            Self::Summed { sums } => sums.len(),
        }
    }

    /// The weight of all together.
    pub(super) fn total(&self) -> u32 {
        match self {
            Self::Equal { count, weight } => count.saturating_mul((*weight).into()),
            Self::Summed { sums } => sums.last().copied().unwrap_or_default(),
        }
    }
}
