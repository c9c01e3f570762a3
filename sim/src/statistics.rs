//! How far apart two sets of measures are, whatever their distributions.
//!
//! Nothing here knows what was measured.

/// The two-sample Kolmogorov-Smirnov distance: the greatest difference, 0 to 1, between the shares
/// of either set that are at most some value. Equal sets are 0 apart; sets of which one lies
/// wholly above the other are 1 apart. It asks nothing of the distributions, and no unit.
///
/// An empty set is 1 apart from any other, and so is one with a NaN: nothing is known of it.
pub fn ks_distance(one: &[f64], other: &[f64]) -> f64 {
    let (Some(one), Some(other)) = (sorted(one), sorted(other)) else { return 1.0 };
    let (mut below_one, mut below_other) = (0, 0);
    let mut greatest: f64 = 0.0;
    while let (Some(&first), Some(&second)) = (one.get(below_one), other.get(below_other)) {
        // Past all that are equal in either set, or ties would count as differences.
        let value = first.min(second);
        below_one += one[below_one..].partition_point(|it| *it <= value);
        below_other += other[below_other..].partition_point(|it| *it <= value);
        let share_of_one = below_one as f64 / one.len() as f64;
        let share_of_other = below_other as f64 / other.len() as f64;
        greatest = greatest.max((share_of_one - share_of_other).abs());
    }
    greatest
}

fn sorted(measures: &[f64]) -> Option<Vec<f64>> {
    if measures.is_empty() || measures.iter().any(|it| it.is_nan()) {
        return None;
    }
    let mut sorted = measures.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_close(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-12
    }

    #[test]
    fn equal_sets_are_not_apart_and_separate_ones_wholly() {
        let (low, high) = ([1.0, 2.0, 3.0], [4.0, 5.0]);
        assert_eq!(ks_distance(&low, &low), 0.0);
        assert_eq!(ks_distance(&low, &[3.0, 1.0, 2.0, 2.0, 3.0, 1.0]), 0.0, "order and size are nothing");
        assert_eq!(ks_distance(&low, &high), 1.0);
        assert_eq!(ks_distance(&high, &low), 1.0);
    }

    /// As R's `ks.test` and scipy's `ks_2samp` count them.
    #[test]
    fn distances_are_the_known_ones() {
        for (one, other, expected) in [
            (&[1.0, 2.0, 3.0, 4.0][..], &[3.0, 4.0, 5.0, 6.0][..], 0.5),
            (&[1.0, 2.0, 3.0], &[1.5, 2.5, 3.5, 4.5], 0.5),
            (&[0.1, 0.4, 0.7], &[0.2, 0.5, 0.8], 1.0 / 3.0),
            // A shift by a third of an even spread.
            (&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 1.0 / 3.0),
            (&[1.0], &[1.0, 2.0, 3.0, 4.0], 0.75),
        ] {
            let distance = ks_distance(one, other);
            assert!(is_close(distance, expected), "{one:?} {other:?}: {distance}");
            assert!(is_close(ks_distance(other, one), distance), "both ways alike");
        }
    }

    #[test]
    fn equal_values_in_both_sets_are_no_difference() {
        let (one, other) = ([5.0; 10], [5.0; 3]);
        assert_eq!(ks_distance(&one, &other), 0.0);
        assert_eq!(ks_distance(&[1.0, 1.0, 2.0], &[1.0, 2.0, 2.0]), 1.0 / 3.0);
    }

    #[test]
    fn nothing_known_is_as_far_apart_as_can_be() {
        assert_eq!(ks_distance(&[], &[1.0]), 1.0);
        assert_eq!(ks_distance(&[1.0], &[]), 1.0);
        assert_eq!(ks_distance(&[1.0, f64::NAN], &[1.0]), 1.0);
    }
}
