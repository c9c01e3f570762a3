//! PURE: each in its turn, as often as its weight says.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Turns of one round, about: what weights divide finer than this is rounded.
const ROUND_MAX: usize = 4_096;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Rotation {
    /// One round: each endpoint's turns, spread evenly.
    order: Vec<u32>,
    next: AtomicUsize,
}

impl Rotation {
    /// By each endpoint's weight; `start` says where the first round begins, which should not be the same
    /// for every caller.
    pub(super) fn new(weights: &[u16], start: u64) -> Self {
        let divisor = weights.iter().fold(0, |divisor, weight| greatest_common_divisor(divisor, *weight));
        let turns = |weight: u16| f64::from(weight / divisor.max(1));
        let round: f64 = weights.iter().copied().map(turns).sum();
        let most = ROUND_MAX.max(weights.len()) as f64;
        let shrink = (most / round.max(1.0)).min(1.0);
        let mut order = Vec::new();
        for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
            let count = (turns(*weight) * shrink).round().max(1.0) as usize;
            // The middle of each of its parts of the round; equal ones go in order.
            order.extend((0..count).map(|nth| (((2 * nth + 1) << 32) / (2 * count), index as u32)));
        }
        order.sort_unstable();
        let order: Vec<u32> = order.into_iter().map(|(_, index)| index).collect();
        let next = if order.is_empty() { 0 } else { start as usize % order.len() };
        Self { order, next: AtomicUsize::new(next) }
    }

    /// Goes on where `previous` was, as far as it is about the same endpoints.
    pub(super) fn continuing(self, previous: &Self) -> Self {
        let turn = previous.next.load(Ordering::Relaxed) % previous.order.len().max(1);
        // Endpoints that come or go change a few places: near its place a turn keeps its neighbours.
        let length = previous.order.len();
        // Rounded to the nearest: rounded down, the first would get all where endpoints come and go with each turn.
        let place = (turn * self.order.len() + length / 2).checked_div(length).unwrap_or_default();
        self.next.store(place, Ordering::Relaxed);
        self
    }

    /// Whose turn it is, and the others' after it for those that it passes over.
    pub(super) fn turns(&self) -> impl Iterator<Item = usize> {
        let step = move |_| {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            self.order.get(turn % self.order.len().max(1)).map(|index| *index as usize)
        };
        (0..self.order.len()).map_while(step)
    }
}

fn greatest_common_divisor(mut a: u16, mut b: u16) -> u16 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u16], count: usize) -> Vec<usize> {
        take(&Rotation::new(weights, 0), count)
    }

    fn take(rotation: &Rotation, count: usize) -> Vec<usize> {
        (0..count).filter_map(|_| rotation.turns().next()).collect()
    }

    #[test]
    fn each_comes_in_its_turn() {
        assert_eq!(turns(&[100, 100, 100], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(turns(&[], 3), Vec::<usize>::new());
        assert_eq!(turns(&[0, 5], 3), [1, 1, 1]);
    }

    /// Tables change while work goes on: those that come first in a round would get all of it.
    #[test]
    fn the_next_table_goes_on_where_the_last_one_was() {
        let first = Rotation::new(&[100; 4], 0);
        assert_eq!(take(&first, 6), [0, 1, 2, 3, 0, 1]);
        let same = Rotation::new(&[100; 4], 0).continuing(&first);
        assert_eq!(take(&same, 3), [2, 3, 0]);
        let larger = Rotation::new(&[100; 8], 0).continuing(&same);
        assert_eq!(take(&larger, 2), [2, 3]);
        let fewer = Rotation::new(&[100; 2], 0).continuing(&larger);
        assert_eq!(take(&fewer, 2), [1, 0]);
        let mut flapping = Rotation::new(&[100; 3], 0);
        let taken = (0..30).map(|nth| {
            flapping = Rotation::new(&vec![100; 3 + nth % 2], 0).continuing(&flapping);
            take(&flapping, 1)[0]
        });
        let taken: std::collections::BTreeSet<_> = taken.collect();
        assert_eq!(taken.len(), 4);
        assert_eq!(take(&Rotation::new(&[], 0).continuing(&fewer), 1), Vec::<usize>::new());
        assert_eq!(take(&Rotation::new(&[1], 0).continuing(&Rotation::new(&[], 0)), 1), [0]);
    }

    #[test]
    fn weights_count_and_turns_are_spread() {
        let round = turns(&[300, 100], 8);
        assert_eq!(round.iter().filter(|index| **index == 1).count(), 2);
        assert!(!round.windows(2).any(|two| two == [1, 1]), "{round:?}");
    }

    #[test]
    fn a_round_is_bounded_and_leaves_nobody_out() {
        let weights: Vec<u16> = (0..5_000).map(|index| 1 + index % 997).collect();
        let rotation = Rotation::new(&weights, 3);
        assert!(rotation.order.len() <= 3 * weights.len(), "{}", rotation.order.len());
        let seen: std::collections::BTreeSet<_> = rotation.order.iter().collect();
        assert_eq!(seen.len(), weights.len());
    }
}
