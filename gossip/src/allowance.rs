//! PURE: so much at once, and so much a second: a token bucket.

use crate::clock::Instant;

/// What somebody may still have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(crate) fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        Self { per_second, burst, left: burst, at: now }
    }

    /// Takes `amount` if it is there.
    pub(crate) fn take(&mut self, amount: f64, now: Instant) -> bool {
        self.refill(now);
        let is_there = self.left >= amount;
        if is_there {
            self.left -= amount;
        }
        is_there
    }

    /// Takes `amount` although it may not be there: then nothing is until it has been made up for.
    pub(crate) fn spend(&mut self, amount: f64, now: Instant) {
        self.refill(now);
        self.left = (self.left - amount).max(-self.burst);
    }

    /// Whether there is anything.
    pub(crate) fn has_some(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left > 0.0
    }

    /// Whether nothing has been taken that was not made up for.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= self.burst
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_debts_are_paid() {
        let now = Instant::now();
        let mut allowance = Allowance::new(2.0, 3.0, now);
        assert_eq!((0..5).filter(|_| allowance.take(1.0, now)).count(), 3);
        assert!(!allowance.has_some(now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..5).filter(|_| allowance.take(1.0, later)).count(), 2);
        allowance.spend(2.0, later);
        assert!(!allowance.has_some(later + Duration::from_millis(900)));
        assert!(allowance.has_some(later + Duration::from_millis(1100)));
        assert!(allowance.is_full(later + Duration::from_secs(10)));
        assert!(!allowance.take(3.5, later + Duration::from_secs(100)), "never more than a burst");
    }
}
