//! Work that waits a little for an endpoint to come back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use starling_gossip::clock::Instant;

/// When all of a service's endpoints fail at once, work waits so long for one to come back: a
/// restart, a lost packet. Later work fails at once, until one does.
pub(crate) const HOLD: Duration = Duration::from_secs(1);

/// How often held work looks again.
pub(crate) const HOLD_STEP: Duration = Duration::from_millis(25);

/// Who has not been asked for so long is in another trouble than the last one: as long as an endpoint is left alone
/// at most.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// Since when a service has had no usable endpoint; outlives the route.
pub(super) struct Hold {
    created: Instant,
    /// Milliseconds after `created`, plus one; 0 is "it has one".
    since: AtomicU64,
    /// When that was last asked, in the same way.
    asked: AtomicU64,
}

impl Hold {
    pub(super) fn new(now: Instant) -> Self {
        Self { created: now, since: AtomicU64::new(0), asked: AtomicU64::new(0) }
    }

    pub(super) fn end(&self) {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
    }

    /// How long there has been no usable endpoint; begins to count when first asked, and anew when nobody has asked
    /// for [`FORGOTTEN`].
    pub(super) fn since(&self, now: Instant) -> Duration {
        let millis = now.saturating_duration_since(self.created).as_millis() as u64 + 1;
        let asked = self.asked.swap(millis, Ordering::Relaxed);
        if Duration::from_millis(millis.saturating_sub(asked)) > FORGOTTEN {
            self.since.store(millis, Ordering::Relaxed);
            return Duration::ZERO;
        }
        match self.since.compare_exchange(0, millis, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Duration::ZERO,
            Err(since) => Duration::from_millis(millis.saturating_sub(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_that_nobody_asked_about_for_long_is_another_one() {
        let start = Instant::now();
        let hold = Hold::new(start);
        let since = |millis: u64| hold.since(start + Duration::from_millis(millis)).as_millis();
        assert_eq!([5, 505, 9_505].map(since), [0, 500, 9_500]);
        assert_eq!([60_000, 60_400].map(since), [0, 400]);
        hold.end();
        assert_eq!([60_500, 60_600].map(since), [0, 100]);
    }
}
