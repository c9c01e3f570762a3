//! PURE: whether two samples differ by more than chance: the Mann-Whitney test, which asks nothing of
//! how samples are distributed and is not moved by one wild seed.
//!
//! Exact for few samples, ties included: of all ways to deal the pooled ranks, how many lie as far from
//! the middle. For many, by the normal distribution (Mann and Whitney 1947; corrected for ties).

/// Up to so many samples in both, the test is exact: the count of ways is a table of their number times
/// the sum of their ranks.
const EXACT_MAX: usize = 40;

/// How likely chance alone puts two samples at least this far apart, in either direction: from 0 to 1.
/// One without samples is as far from anything as chance likes.
pub fn chance(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let (ranks, ties) = doubled_ranks(a, b);
    if ranks.len() <= EXACT_MAX { exact(&ranks, a.len()) } else { normal(&ranks, a.len(), ties) }
}

/// The least that [`chance`] can be with so many samples: if that is above a level, no difference
/// whatsoever can be told from chance at it.
pub fn least_chance(a: usize, b: usize) -> f64 {
    let ways = (1..=a).fold(1.0, |ways, at| ways * (b + at) as f64 / at as f64);
    (2.0 / ways).min(1.0)
}

/// Twice each sample's rank among all, `a`'s first; the same samples share the mean of their ranks,
/// which doubled is whole. And the sum of `t^3 - t` over the sizes of such groups.
fn doubled_ranks(a: &[f64], b: &[f64]) -> (Vec<usize>, f64) {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|one, other| all[*one].total_cmp(&all[*other]));
    let (mut ranks, mut ties) = (vec![0; all.len()], 0.0);
    for group in order.chunk_by(|one, other| all[*one] == all[*other]) {
        let below = order.iter().position(|at| *at == group[0]).unwrap_or_default();
        for at in group {
            ranks[*at] = 2 * below + group.len() + 1;
        }
        ties += (group.len() as f64).powi(3) - group.len() as f64;
    }
    (ranks, ties)
}

/// Counts the ways to choose `chosen` of the ranks by their sum.
fn exact(ranks: &[usize], chosen: usize) -> f64 {
    let most: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0; most + 1]; chosen + 1];
    ways[0][0] = 1.0;
    for rank in ranks {
        for count in (1..=chosen).rev() {
            let (fewer, more) = ways.split_at_mut(count);
            for sum in *rank..=most {
                more[0][sum] += fewer[count - 1][sum - rank];
            }
        }
    }
    let total: f64 = ways[chosen].iter().sum();
    let observed: usize = ranks[..chosen].iter().sum();
    // Twice the doubled sum, so that the middle is whole as well.
    let middle = 2 * chosen * (ranks.len() + 1);
    let far = |sum: usize| (2 * sum).abs_diff(middle);
    let as_far = ways[chosen].iter().enumerate().filter(|(sum, _)| far(*sum) >= far(observed));
    as_far.map(|(_, ways)| ways).sum::<f64>() / total
}

fn normal(ranks: &[usize], chosen: usize, ties: f64) -> f64 {
    let (all, a, b) = (ranks.len() as f64, chosen as f64, (ranks.len() - chosen) as f64);
    let sum = ranks[..chosen].iter().sum::<usize>() as f64 / 2.0;
    let variance = a * b / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    // Half a rank less, as sums are whole and the normal distribution is not.
    let far = ((sum - a * (all + 1.0) / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    beyond(far)
}

/// The share of a normal distribution that lies beyond so many deviations, on both sides (Abramowitz
/// and Stegun 7.1.26; wrong by less than 2e-7).
fn beyond(deviations: f64) -> f64 {
    let x = deviations / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let polynomial = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    polynomial * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64, by: f64) {
        assert!((value - expected).abs() < by, "{value} is not {expected}");
    }

    #[test]
    fn samples_that_do_not_overlap_are_as_unlikely_as_can_be() {
        let (low, high) = ([1.0, 2.0, 3.0, 4.0, 5.0], [11.0, 12.0, 13.0, 14.0, 15.0]);
        close(chance(&low, &high), 2.0 / 252.0, 1e-12);
        close(chance(&high, &low), least_chance(5, 5), 1e-12);
        close(least_chance(3, 3), 0.1, 1e-12);
        close(least_chance(1, 1), 1.0, 1e-12);
    }

    /// Counted by trying all deals.
    #[test]
    fn it_counts_every_deal_that_lies_as_far() {
        close(chance(&[1.0, 2.0, 3.0, 5.0, 8.0], &[4.0, 6.0, 7.0, 9.0, 10.0]), 24.0 / 252.0, 1e-12);
        close(chance(&[1.0, 4.0], &[2.0, 3.0]), 1.0, 1e-12);
        close(chance(&[0.0, 0.0, 0.0, 1.0, 1.0, 2.0], &[0.0, 1.0, 2.0, 2.0, 3.0, 3.0]), 122.0 / 924.0, 1e-12);
    }

    #[test]
    fn equal_samples_and_ties_are_no_difference() {
        close(chance(&[7.0; 6], &[7.0; 6]), 1.0, 1e-12);
        close(chance(&[7.0; 60], &[7.0; 60]), 1.0, 1e-12);
        // Of five events in ten runs, all on one side: C(5,5) of C(10,5) deals on each side.
        close(chance(&[0.0; 5], &[1.0; 5]), 2.0 / 252.0, 1e-12);
        assert!((chance(&[], &[1.0]) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn many_samples_are_judged_as_few_are() {
        close(beyond(1.959_964), 0.05, 1e-6);
        close(beyond(0.0), 1.0, 1e-6);
        let samples = |count: u32, shift: f64| {
            (0..count).map(|n| f64::from(n * 7919 % 1009) + shift).collect::<Vec<_>>()
        };
        let (a, b) = (samples(20, 0.0), samples(20, 180.0));
        let (ranks, ties) = doubled_ranks(&a, &b);
        close(exact(&ranks, 20), normal(&ranks, 20, ties), 0.01);
        assert!(chance(&samples(50, 0.0), &samples(50, 900.0)) < 1e-6);
    }
}
