//! PURE: endpoints that are preferred alike, and which of them takes the next piece of work.
//!
//! Made when the route table changes. A choice looks at a handful of endpoints, however many there are:
//! where nearly all are out of use, those that are not are listed now and then, and drawn from the list.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use starling_gossip::clock::Instant;

use super::ring::{self, Ring};
use super::rotation::Rotation;
use super::shares::Shares;
use super::{Chance, Policy};

/// Draws before somebody usable is searched: unusable endpoints are few, or nearly all.
const DRAWS_MAX: usize = 8;

/// Of a group of so many, all may be looked at.
const LOOKS_MAX: usize = 64;

/// A larger group is gone through once in this at most: with 5,000 endpoints that is a five-hundredth of
/// a core. Held work looks again as often.
const SURVIVORS_AGE: Duration = Duration::from_millis(25);

/// What is known of the endpoints of a group at one moment.
pub(crate) trait Field {
    /// Whether an endpoint may get new work.
    fn is_usable(&self, index: usize) -> bool;

    /// Whether this piece of work has been there.
    fn was_tried(&self, index: usize) -> bool;

    /// From 0 to 1: how much of its share a newcomer takes yet.
    fn readiness(&self, index: usize) -> f32;

    /// How busy it is.
    fn load(&self, index: usize) -> Load;

    /// Work under way with all of them, about.
    fn total_in_flight(&self) -> u32;
}

/// How busy an endpoint is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// How long its answers take, if known.
    pub(crate) seconds: Option<f32>,
    /// Work of this caller's under way.
    pub(crate) in_flight: u32,
    /// Work of others, as far as it is known.
    pub(crate) others: f32,
}

/// One piece of work that is to go somewhere.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) chance: &'a Chance,
    /// What a hash decides by; without it, chance does.
    pub(crate) key: Option<u64>,
    pub(crate) now: Instant,
}

/// Endpoints that are preferred alike, known by their index.
pub(crate) struct Group {
    shares: Shares,
    method: Method,
    survivors: ArcSwapOption<Survivors>,
}

enum Method {
    TwoChoices { by_latency: bool },
    InTurn(Rotation),
    Hashed(Arc<Ring>),
}

/// Who was usable a moment ago.
struct Survivors {
    listed: Instant,
    indices: Vec<u32>,
}

impl Group {
    /// Of endpoints, each with a hash of its name and its weight. `start` is a number that other callers do
    /// not share; what `previous` holds is kept where it is the same.
    pub(crate) fn new(
        members: Vec<(u64, u16)>,
        policy: &Policy,
        start: u64,
        previous: Option<&Self>,
    ) -> Self {
        let weights: Vec<u16> = members.iter().map(|(_, weight)| *weight).collect();
        let method = match policy {
            Policy::PeakEwma => Method::TwoChoices { by_latency: true },
            Policy::LeastRequest => Method::TwoChoices { by_latency: false },
            Policy::RoundRobin => {
                let rotation = Rotation::new(&weights, start);
                Method::InTurn(match previous.map(|group| &group.method) {
                    Some(Method::InTurn(before)) => rotation.continuing(before),
                    _ => rotation,
                })
            }
            Policy::ConsistentHash(_) => {
                let held = previous.and_then(|group| match &group.method {
                    Method::Hashed(ring) if ring.members() == members => Some(ring.clone()),
                    _ => None,
                });
                Method::Hashed(held.unwrap_or_else(|| Arc::new(Ring::new(members))))
            }
        };
        Self { shares: Shares::new(&weights), method, survivors: ArcSwapOption::empty() }
    }

    /// Who takes it; `None` if nobody can.
    pub(crate) fn pick(&self, field: &impl Field, asked: Asked<'_>) -> Option<usize> {
        let picked = match (&self.method, asked.key) {
            (Method::InTurn(rotation), _) => {
                rotation.turns().take(DRAWS_MAX).find(|index| self.accepts(field, *index, asked.chance))
            }
            (Method::Hashed(ring), Some(key)) => {
                let total = field.total_in_flight();
                let all = self.shares.total() as f32;
                let share = |index| self.shares.weight(index) as f32 / all;
                ring.find(
                    key,
                    |index| self.can_take(field, index),
                    |index| ring::has_room(field.load(index).in_flight, total, share(index)),
                )
            }
            (Method::TwoChoices { .. } | Method::Hashed(_), _) => self.draw_two(field, asked.chance),
        };
        picked.or_else(|| self.search(field, asked))
    }

    /// Whether anybody can take more work.
    pub(crate) fn has_usable(&self, field: &impl Field, asked: Asked<'_>) -> bool {
        let len = self.shares.len();
        let start = asked.chance.below(len as u32).unwrap_or_default() as usize;
        let mut looked_at = (0..len.min(LOOKS_MAX)).map(|step| (start + step) % len);
        looked_at.any(|index| self.can_take(field, index)) || {
            let is_left = |index: &u32| self.can_take(field, *index as usize);
            len > LOOKS_MAX && self.survivors(field, asked.now).indices.iter().take(LOOKS_MAX).any(is_left)
        }
    }

    /// Of two drawn by weight, the one with less to do for its weight (Mitzenmacher, "The power of two
    /// choices", 2001): nearly as even as asking everybody, without herds that run to whoever looked idle
    /// last.
    fn draw_two(&self, field: &impl Field, chance: &Chance) -> Option<usize> {
        if self.shares.len() == 1 {
            return self.can_take(field, 0).then_some(0);
        }
        let mut first = None;
        for _ in 0..DRAWS_MAX {
            let drawn = self.shares.draw(chance)?;
            if first == Some(drawn) || !self.accepts(field, drawn, chance) {
                continue;
            }
            match first {
                None => first = Some(drawn),
                Some(other) => return Some(self.less_loaded(field, other, drawn)),
            }
        }
        first
    }

    /// Chance was against the draws, or hardly anybody is usable.
    fn search(&self, field: &impl Field, asked: Asked<'_>) -> Option<usize> {
        let better = |one, other| self.less_loaded(field, one, other);
        if self.shares.len() <= LOOKS_MAX {
            let all = 0..self.shares.len();
            return all.filter(|index| self.can_take(field, *index)).reduce(better);
        }
        let survivors = self.survivors(field, asked.now);
        let indices = &survivors.indices;
        let draw = |_| Some(indices[asked.chance.below(indices.len() as u32)? as usize] as usize);
        let drawn = (0..DRAWS_MAX).filter_map(draw).filter(|index| self.can_take(field, *index));
        drawn.take(2).reduce(better).or_else(|| {
            // Hardly any that was listed can take it, or it has been with most of them.
            let start = asked.chance.below(indices.len() as u32)? as usize;
            let (before, after) = indices.split_at(start);
            let all = after.iter().chain(before).take(LOOKS_MAX).map(|index| *index as usize);
            all.filter(|index| self.can_take(field, *index)).take(2).reduce(better)
        })
    }

    fn survivors(&self, field: &impl Field, now: Instant) -> Arc<Survivors> {
        if let Some(held) = self.survivors.load_full()
            && now.saturating_duration_since(held.listed) < SURVIVORS_AGE
        {
            return held;
        }
        let indices = (0..self.shares.len()).filter(|index| field.is_usable(*index));
        let survivors =
            Arc::new(Survivors { listed: now, indices: indices.map(|index| index as u32).collect() });
        self.survivors.store(Some(survivors.clone()));
        survivors
    }

    fn can_take(&self, field: &impl Field, index: usize) -> bool {
        field.is_usable(index) && !field.was_tried(index) && self.shares.weight(index) > 0
    }

    fn accepts(&self, field: &impl Field, index: usize, chance: &Chance) -> bool {
        if !self.can_take(field, index) {
            return false;
        }
        let readiness = field.readiness(index);
        readiness >= 1.0 || chance.fraction() < f64::from(readiness)
    }

    fn less_loaded(&self, field: &impl Field, one: usize, other: usize) -> usize {
        let (a, b) = (field.load(one), field.load(other));
        let relative = |index: usize, load: Load| {
            (load.in_flight as f32 + load.others + 1.0) / self.shares.weight(index) as f32
        };
        let (mut cost, mut other_cost) = (relative(one, a), relative(other, b));
        // Of one that is not measured only that is known.
        if let (Method::TwoChoices { by_latency: true }, Some(seconds), Some(other_seconds)) =
            (&self.method, a.seconds, b.seconds)
        {
            cost *= seconds;
            other_cost *= other_seconds;
        }
        if other_cost < cost { other } else { one }
    }
}

#[cfg(test)]
mod tests;
