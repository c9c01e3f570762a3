//! STATE MACHINE: when may an address be dialled again?
//!
//! Exponential pauses between [`BACKOFF_MIN`] and [`BACKOFF_MAX`], each shortened by chance to
//! between half and all of itself, so that a mesh that lost one node does not knock in step. It
//! neither dials nor reads a clock.

use rand::Rng;
use std::time::Duration;

use starling_gossip::clock::Instant;

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN, DIAL_TIMEOUT, DIAL_TIMEOUT_MAX};

/// The memory of one address's failures.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    /// How long to wait yet; `None` when dialling is allowed at `now`.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let wait = self.not_before?.saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// A dial failed at `now`.
    pub fn handle_failure(&mut self, now: Instant, rng: &mut impl Rng) {
        let doublings = self.failures.min(16);
        let pause = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause.mul_f64(rng.random_range(0.5..=1.0)));
    }

    /// How long the next dial waits for its answer: longer after each that failed.
    pub fn patience(&self) -> Duration {
        DIAL_TIMEOUT.saturating_mul(1 << self.failures.min(16)).min(DIAL_TIMEOUT_MAX)
    }

    /// Dials that failed since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When dialling is allowed; the oldest is the first to be forgotten.
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use starling_gossip::clock::Clock;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let mut rng = StdRng::seed_from_u64(7);
        let start = Clock::System.now();
        let mut backoff = Backoff::default();
        assert_eq!(backoff.wait(start), None);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            backoff.handle_failure(start, &mut rng);
            pauses.push(backoff.wait(start).expect("a pause"));
        }
        assert!(pauses[0] >= BACKOFF_MIN / 2 && pauses[0] <= BACKOFF_MIN);
        assert!(pauses.iter().all(|pause| *pause <= BACKOFF_MAX));
        assert!(pauses[20..].iter().all(|pause| *pause >= BACKOFF_MAX / 2));
        assert_ne!(pauses[38], pauses[39]);
        assert_eq!(backoff.wait(start + BACKOFF_MAX), None);
    }
    #[test]
    fn patience_grows_with_every_failure_to_a_bound() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        let mut patience = Vec::new();
        for _ in 0..40 {
            patience.push(backoff.patience());
            backoff.handle_failure(Clock::System.now(), &mut rng);
        }
        assert_eq!(patience[..3], [DIAL_TIMEOUT, DIAL_TIMEOUT * 2, DIAL_TIMEOUT_MAX]);
        assert_eq!(patience[39], DIAL_TIMEOUT_MAX);
    }
}
