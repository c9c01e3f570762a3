//! PURE: what an endpoint's own node says of how much it has to do for others.
//!
//! A caller sees only its own work at an endpoint; of a thousand callers each sees a thousandth. What the
//! endpoint says is about itself alone, so a lie moves nothing but its own work: who says too much gets less,
//! as if it refused, and who says too little gets more, until its answers take longer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::estimate::OUT_OF_ORDER_MILLIS_MAX;

/// What was said so long ago counts 1/e: work is short, and the next answer says more.
const DECAY: Duration = Duration::from_secs(1);

/// More says nothing more.
const REPORTED_MAX: u32 = 1_000;

/// The newest word of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Reported(
    /// Milliseconds of its coming above 32 bits of work; nothing and long ago are the same.
    AtomicU64,
);

impl Reported {
    /// It says that so much is under way, of which so much is this caller's `own`.
    pub(crate) fn handle_report(&self, under_way: u32, own: u32, at: u32) {
        let others = under_way.saturating_sub(own).min(REPORTED_MAX);
        self.0.store(u64::from(at) << 32 | u64::from(others), Ordering::Relaxed);
    }

    /// How much it does for others, as far as it still counts.
    pub(crate) fn others(&self, at: u32) -> f32 {
        let word = self.0.load(Ordering::Relaxed);
        let others = word as u32;
        if others == 0 {
            return 0.0;
        }
        // Whoever looked at the clock first may come second, and a clock may overflow: what looks later is, by a
        // little, or is from weeks ago.
        let said = (word >> 32) as u32;
        let is_later = said.wrapping_sub(at) < OUT_OF_ORDER_MILLIS_MAX;
        let age = if is_later { 0 } else { at.wrapping_sub(said) };
        others as f32 * (-(age as f32) / DECAY.as_millis() as f32).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_less_and_less_and_is_bounded() {
        let reported = Reported::default();
        assert_eq!(reported.others(5), 0.0);
        reported.handle_report(50, 10, 100);
        assert_eq!(reported.others(100), 40.0);
        assert_eq!(reported.others(90), 40.0, "read out of order");
        assert!((14.0..15.5).contains(&reported.others(1_100)));
        assert!(reported.others(20_000) < 0.001);
        assert_eq!(reported.others(100 + u32::MAX / 2 + 1_000), 0.0, "25 days later");
        reported.handle_report(u32::MAX, 0, 100);
        assert_eq!(reported.others(100), 1_000.0);
        reported.handle_report(3, 10, 100);
        assert_eq!(reported.others(100), 0.0, "all of it is this caller's");
    }
}
