use std::cell::Cell;

use starling_gossip::clock::Clock;

use super::*;
use crate::balance::{Estimate, HashOn};

/// Endpoints as a test wants them, which counts how often they are looked at.
struct Endpoints<'a> {
    usable: &'a dyn Fn(usize) -> bool,
    tried: Option<usize>,
    ready: &'a dyn Fn(usize) -> f32,
    load: &'a dyn Fn(usize) -> Load,
    looks: Cell<usize>,
}

impl Default for Endpoints<'_> {
    fn default() -> Self {
        Self {
            usable: &|_| true,
            tried: None,
            ready: &|_| 1.0,
            load: &|_| Load::default(),
            looks: Cell::new(0),
        }
    }
}

impl Field for Endpoints<'_> {
    fn is_usable(&self, index: usize) -> bool {
        self.looks.set(self.looks.get() + 1);
        (self.usable)(index)
    }

    fn was_tried(&self, index: usize) -> bool {
        self.tried == Some(index)
    }

    fn readiness(&self, index: usize) -> f32 {
        (self.ready)(index)
    }

    fn load(&self, index: usize) -> Load {
        self.looks.set(self.looks.get() + 1);
        (self.load)(index)
    }

    fn total_in_flight(&self) -> u32 {
        0
    }
}

fn group(weights: &[u16], policy: &Policy) -> Group {
    let members = weights.iter().enumerate().map(|(index, weight)| (index as u64, *weight)).collect();
    Group::new(members, policy, 0, None)
}

fn policies() -> [Policy; 4] {
    [Policy::PeakEwma, Policy::LeastRequest, Policy::RoundRobin, Policy::ConsistentHash(HashOn::Path)]
}

/// How often each is picked of 10,000 times, a hundred at each moment of ten milliseconds.
fn counts(group: &Group, field: &Endpoints<'_>) -> Vec<u32> {
    let (chance, start) = (Chance::new(7), Clock::System.now());
    let mut counts = vec![0; group.shares.len()];
    for nth in 0..10_000 {
        let now = start + Duration::from_millis(10) * (nth / 100);
        let asked = Asked { chance: &chance, key: Some(chance.bits()), now };
        if let Some(index) = group.pick(field, asked) {
            counts[index] += 1;
        }
    }
    counts
}

fn busy(in_flight: u32) -> Load {
    Load { in_flight, ..Load::default() }
}

#[test]
fn equal_endpoints_share_evenly_and_weights_count() {
    for policy in policies() {
        let even = counts(&group(&[100; 4], &policy), &Endpoints::default());
        let margin = if matches!(policy, Policy::ConsistentHash(_)) { 2_000..3_000 } else { 2_300..2_700 };
        assert!(even.iter().all(|count| margin.contains(count)), "{policy:?} {even:?}");
        let weighted = counts(&group(&[100, 300], &policy), &Endpoints::default());
        assert!(weighted[1] > weighted[0] * 2, "{policy:?} {weighted:?}");
    }
}

#[test]
fn the_unusable_and_the_tried_get_nothing() {
    for policy in policies() {
        let usable = |index| index != 0;
        let field = Endpoints { usable: &usable, tried: Some(1), ..Endpoints::default() };
        assert_eq!(counts(&group(&[100, 100, 100], &policy), &field), [0, 0, 10_000], "{policy:?}");
        let none = Endpoints { usable: &|_| false, ..Endpoints::default() };
        assert_eq!(counts(&group(&[100], &policy), &none), [0], "{policy:?}");
        assert_eq!(counts(&group(&[], &policy), &none), Vec::<u32>::new(), "{policy:?}");
        let asked = Asked { chance: &Chance::new(1), key: None, now: Clock::System.now() };
        assert!(group(&[100, 100, 100], &policy).has_usable(&field, asked));
        assert!(!group(&[100, 100], &policy).has_usable(&field, asked), "one is unusable, one was tried");
        assert!(!group(&[], &policy).has_usable(&field, asked));
    }
}

#[test]
fn the_less_loaded_wins() {
    let load = |index| busy(if index == 0 { 50 } else { 0 });
    let field = Endpoints { load: &load, ..Endpoints::default() };
    for policy in [Policy::PeakEwma, Policy::LeastRequest] {
        let loaded = counts(&group(&[100, 100], &policy), &field);
        assert!(loaded[0] < 100, "{loaded:?}");
    }
}

#[test]
fn the_slow_are_avoided_by_latency_only_and_only_where_both_are_measured() {
    let load =
        |index| Load { seconds: Some(if index == 0 { 0.5 } else { 0.001 }), in_flight: 1, others: 0.0 };
    let field = Endpoints { load: &load, ..Endpoints::default() };
    let slow = counts(&group(&[100; 2], &Policy::PeakEwma), &field);
    assert!(slow[0] < 100, "{slow:?}");
    let blind = counts(&group(&[100; 2], &Policy::LeastRequest), &field);
    assert!(blind[0] > 4_000, "{blind:?}");
    let load = |index| Load { seconds: (index == 0).then_some(0.5), in_flight: 1, others: 0.0 };
    let field = Endpoints { load: &load, ..Endpoints::default() };
    let unmeasured = counts(&group(&[100; 2], &Policy::PeakEwma), &field);
    assert!(unmeasured[0] > 4_000, "{unmeasured:?}");
}

#[test]
fn work_of_others_counts_like_ones_own() {
    let load = |index| Load { others: if index == 0 { 50.0 } else { 0.0 }, ..Load::default() };
    let field = Endpoints { load: &load, ..Endpoints::default() };
    let loaded = counts(&group(&[100, 100], &Policy::LeastRequest), &field);
    assert!(loaded[0] < 100, "{loaded:?}");
}

#[test]
fn a_newcomer_takes_as_much_of_its_share_as_it_is_ready_for() {
    let ready = |index| if index == 0 { 0.2 } else { 1.0 };
    let field = Endpoints { ready: &ready, ..Endpoints::default() };
    for policy in [Policy::PeakEwma, Policy::LeastRequest, Policy::RoundRobin] {
        let shares = counts(&group(&[100; 4], &policy), &field);
        assert!((400..1_100).contains(&shares[0]), "{policy:?} {shares:?}");
    }
    // Nobody else is there: better one that is not ready than none.
    let others = |index| index == 0;
    let alone = Endpoints { ready: &ready, usable: &others, ..Endpoints::default() };
    assert_eq!(counts(&group(&[100; 4], &Policy::PeakEwma), &alone)[0], 10_000);
}

#[test]
fn a_few_usable_ones_among_many_share_the_work() {
    for policy in policies() {
        let group = group(&[1; 5_000], &policy);
        let few = |index| index % 500 == 3;
        let found = counts(&group, &Endpoints { usable: &few, ..Endpoints::default() });
        assert_eq!(found.iter().sum::<u32>(), 10_000, "{policy:?}");
        let shares: Vec<u32> = found.into_iter().filter(|count| *count > 0).collect();
        assert_eq!(shares.len(), 10, "{policy:?}");
        assert!(shares.iter().all(|count| (600..1_500).contains(count)), "{policy:?} {shares:?}");
    }
}

#[test]
fn the_last_of_many_that_can_take_it_is_found() {
    for policy in policies() {
        let usable = |index| index == 3 || index == 77;
        let field = Endpoints { usable: &usable, tried: Some(3), ..Endpoints::default() };
        assert_eq!(counts(&group(&[100; 100], &policy), &field)[77], 10_000, "{policy:?}");
    }
}

/// The promise that a request costs the same with 5,000 endpoints as with five.
#[test]
fn a_choice_looks_at_a_handful_however_many_there_are() {
    for policy in policies() {
        for (what, usable, most) in [
            ("all work", (&|_| true) as &dyn Fn(usize) -> bool, 12),
            ("half of them", &|index| index % 2 == 0, 40),
            // Gone through once in 25 ms, which here is once in 250 choices.
            ("one of them", &|index| index == 4_321, 40 + 128),
            ("none of them", &|_| false, 40 + 128),
        ] {
            let field = Endpoints { usable, ..Endpoints::default() };
            let group = group(&[100; 5_000], &policy);
            let started = field.looks.get();
            counts(&group, &field);
            let each = (field.looks.get() - started) / 10_000;
            assert!(each <= most, "{policy:?}, {what}: {each} looks for each choice");
        }
    }
}

/// cargo test --release -p starling --lib -- --ignored --nocapture measure_a_choice
#[test]
#[ignore = "a measurement, for people"]
fn measure_a_choice_of_five_and_of_five_thousand() {
    const CHOICES: u32 = 1_000_000;
    let chance = Chance::new(3);
    for policy in policies() {
        for count in [5, 100, 5_000] {
            let group = group(&vec![100; count], &policy);
            let estimates: Vec<Estimate> = (0..count).map(|_| Estimate::default()).collect();
            estimates.iter().for_each(|estimate| estimate.handle_answer(Duration::from_millis(3), 7));
            let load = |index: usize| Load { seconds: estimates[index].seconds(9), ..Load::default() };
            let field = Endpoints { load: &load, ..Endpoints::default() };
            let start = Clock::System.now();
            for _ in 0..CHOICES {
                let asked = Asked { chance: &chance, key: Some(chance.bits()), now: start };
                std::hint::black_box(group.pick(&field, asked));
            }
            println!("{} of {count}: {:?}", policy.as_str(), (Clock::System.now() - start) / CHOICES);
        }
    }
}
