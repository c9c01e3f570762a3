//! PURE: consistent hashing with bounded loads.
//!
//! Each endpoint has points on a circle, made from its name alone; a key belongs to the first point after
//! its own. An endpoint that leaves takes its own keys with it and moves no other (Karger et al., 1997). One
//! that has more than its share of the work under way is passed over for the next on the circle (Mirrokni,
//! Thorup and Zadimoghaddam, 2016), so a key that everybody wants does not bury one endpoint.

/// Points of an endpoint of the median weight, if there are few: their shares differ by a few percent then.
const POINTS_MAX: usize = 256;

/// The same, if there are many: a bounded load evens out the rest.
const POINTS_MIN: usize = 16;

/// Points on a circle, about: half a megabyte.
const RING_POINTS: usize = 65_536;

/// What an endpoint may have more than its share of the work under way: a quarter, as the paper proposes.
/// Less moves more keys.
const LOAD_OVER_SHARE: f32 = 1.25;

/// Points looked at for one key. At a quarter over the share, four of five endpoints have room at worst, so
/// the chance to find none in so many is nil, unless most are out of use.
const WALK_MAX: usize = 128;

/// Who has which points.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ring {
    /// Sorted; each with the index of its endpoint.
    points: Vec<(u32, u32)>,
    members: Vec<(u64, u16)>,
}

impl Ring {
    /// Of endpoints known by a hash of their name, each with its weight.
    pub(super) fn new(members: Vec<(u64, u16)>) -> Self {
        let per_weight = points_per_weight(&members);
        let mut points = Vec::new();
        for (index, (name, weight)) in members.iter().enumerate() {
            let count = (f64::from(*weight) * per_weight).ceil() as usize;
            points.extend((0..count).map(|nth| (point(*name, nth), index as u32)));
        }
        points.sort_unstable();
        Self { points, members }
    }

    /// What it was made of.
    pub(super) fn members(&self) -> &[(u64, u16)] {
        &self.members
    }

    /// Whom `key` belongs to: the first that is usable and has room, else the first that is usable, of
    /// those looked at.
    pub(super) fn find(
        &self,
        key: u64,
        is_usable: impl Fn(usize) -> bool,
        has_room: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let start = self.points.partition_point(|(point, _)| *point < (key >> 32) as u32);
        let (after, before) = self.points.split_at_checked(start).map(|(before, after)| (after, before))?;
        let (mut full, mut last) = (None, None);
        for index in after.iter().chain(before).take(WALK_MAX).map(|(_, index)| *index as usize) {
            if last == Some(index) || !is_usable(index) {
                continue;
            }
            last = Some(index);
            if has_room(index) {
                return Some(index);
            }
            full.get_or_insert(index);
        }
        full
    }
}

/// Whether an endpoint with a `share` (from 0 to 1) of the weight may take one more, when `in_flight` of
/// `total` are its own.
pub(super) fn has_room(in_flight: u32, total: u32, share: f32) -> bool {
    let most = (LOAD_OVER_SHARE * share * (total as f32 + 1.0)).ceil();
    in_flight as f32 + 1.0 <= most
}

/// So that an endpoint of the median weight has what it should, whoever is lighter or heavier comes or goes. A power of
/// two, so that one endpoint more or less seldom changes everybody's.
fn points_per_weight(members: &[(u64, u16)]) -> f64 {
    let mut weights: Vec<u16> =
        members.iter().map(|(_, weight)| *weight).filter(|weight| *weight > 0).collect();
    weights.sort_unstable();
    let Some(median) = weights.get(weights.len() / 2).copied().map(f64::from) else { return 0.0 };
    let points = (RING_POINTS / weights.len()).clamp(POINTS_MIN, POINTS_MAX) as f64;
    // However heavy the others are.
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let most = (weights.len() * POINTS_MIN).max(RING_POINTS) as f64;
    (points / median).min(most / total).log2().floor().exp2()
}

fn point(name: u64, nth: usize) -> u32 {
    (super::chance::stable_hash(&[&name.to_be_bytes(), &nth.to_be_bytes()]) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Chance;

    fn ring(names: impl IntoIterator<Item = u64>) -> Ring {
        Ring::new(names.into_iter().map(|name| (name, 100)).collect())
    }

    fn keys() -> Vec<u64> {
        let chance = Chance::new(5);
        (0..20_000).map(|_| chance.bits()).collect()
    }

    #[test]
    fn an_endpoint_that_leaves_moves_its_own_keys_only() {
        let (before, after) = (ring([1, 2, 3, 4, 5]), ring([1, 2, 4, 5]));
        let names = [1, 2, 4, 5];
        for key in keys() {
            let owner = |ring: &Ring| ring.find(key, |_| true, |_| true).expect("one");
            let was = owner(&before) as u64 + 1;
            if was != 3 {
                assert_eq!(names[owner(&after)], was);
            }
            // Nor does one that is only out of use.
            let unused = before.find(key, |index| index != 2, |_| true).expect("one") as u64 + 1;
            assert_eq!(unused, names[owner(&after)]);
        }
    }

    #[test]
    fn whoever_is_heavier_or_lighter_moves_its_own_keys_only() {
        let others = [(1, 100), (2, 100), (3, 100), (4, 100), (5, 5), (6, 5)];
        let after = Ring::new(others.to_vec());
        for weight in [5, 150, 1_000] {
            let before = Ring::new(others.into_iter().chain([(7, weight)]).collect());
            for key in keys() {
                let owner = |ring: &Ring| ring.find(key, |_| true, |_| true).expect("one");
                let was = owner(&before);
                assert!(was == 6 || was == owner(&after), "{weight}");
            }
        }
    }

    #[test]
    fn a_circle_is_bounded_however_heavy_a_few_are() {
        let mut members: Vec<(u64, u16)> = (0..99).map(|name| (name, 1)).collect();
        members.push((99, u16::MAX));
        assert!(Ring::new(members).points.len() <= RING_POINTS + 100);
        let many = (0..4_000).map(|name| (name, if name < 2_100 { 10 } else { 1_000 }));
        assert!(Ring::new(many.collect()).points.len() <= RING_POINTS + 4_000);
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let ring = Ring::new(vec![(1, 100), (2, 100), (3, 100), (4, 50)]);
        let mut counts = [0; 4];
        keys().into_iter().for_each(|key| counts[ring.find(key, |_| true, |_| true).expect("one")] += 1);
        assert!(counts[..3].iter().all(|count| (4_600..6_800).contains(count)), "{counts:?}");
        assert!((2_000..3_800).contains(&counts[3]), "{counts:?}");
    }

    #[test]
    fn a_key_that_everybody_wants_is_spread_over_those_with_room() {
        let ring = ring(1..=10);
        let mut in_flight = [0_u32; 10];
        for total in 0..1_000 {
            let found = ring.find(77, |_| true, |index| has_room(in_flight[index], total, 0.1));
            in_flight[found.expect("one")] += 1;
        }
        assert!(in_flight.iter().all(|count| *count <= 126), "{in_flight:?}");
        assert!(in_flight.iter().filter(|count| **count > 0).count() >= 8, "{in_flight:?}");
    }

    #[test]
    fn nobody_is_found_where_nobody_is() {
        assert_eq!(ring([]).find(1, |_| true, |_| true), None);
        assert_eq!(ring([1, 2]).find(1, |_| false, |_| true), None);
        let alone = ring([1]);
        assert_eq!(alone.find(u64::MAX, |_| true, |_| false), Some(0), "full is better than none");
        assert!(has_room(0, 0, 0.001), "the first always has room");
    }

    #[test]
    fn a_circle_is_bounded_however_many_there_are() {
        assert!((5 * POINTS_MAX / 2..=5 * POINTS_MAX).contains(&ring(0..5).points.len()));
        assert!(ring(0..5_000).points.len() <= 5_000 * POINTS_MIN);
    }
}
