//! PURE: when to ask. Chance is handed in.

use std::time::Duration;

/// How far a wait strays from its interval, up or down: a tenth, so that the probes of many
/// instances that started together drift apart within a few rounds.
const JITTER: f64 = 0.1;

/// So many instances are probed at once when they start together; more are spread.
const AT_ONCE: usize = 16;

/// What each further instance adds to the time that the first probes are spread over: 256 of them
/// take a quarter of a second.
const SPREAD_EACH: Duration = Duration::from_millis(1);

/// The wait until the next probe.
pub(super) fn jittered(interval: Duration, bits: u64) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fraction(bits))
}

/// The wait until the first probe of one of `instances` that start together.
pub(crate) fn first_wait(instances: usize, bits: u64) -> Duration {
    let spread = SPREAD_EACH * u32::try_from(instances.saturating_sub(AT_ONCE)).unwrap_or(u32::MAX);
    spread.mul_f64(fraction(bits))
}

/// From 0 to below 1.
fn fraction(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Chance;

    #[test]
    fn waits_stay_within_a_tenth_of_the_interval_and_differ() {
        let interval = Duration::from_secs(10);
        assert_eq!(jittered(interval, 0), Duration::from_secs(9));
        assert!(jittered(interval, u64::MAX) <= Duration::from_secs(11));
        let chance = Chance::new(7);
        let waits: Vec<_> = (0..1000).map(|_| jittered(interval, chance.bits())).collect();
        let early = waits.iter().filter(|wait| **wait < interval).count();
        assert!((400..600).contains(&early), "{early} of 1000 are shorter than the interval");
    }

    #[test]
    fn a_few_are_asked_at_once_and_many_one_after_the_other() {
        assert_eq!(first_wait(1, u64::MAX), Duration::ZERO);
        assert_eq!(first_wait(16, u64::MAX), Duration::ZERO);
        assert!(first_wait(256, u64::MAX) <= Duration::from_millis(240));
        assert!(first_wait(256, u64::MAX / 2) > Duration::from_millis(100));
        assert_eq!(first_wait(256, 0), Duration::ZERO);
    }
}
