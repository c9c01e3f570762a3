//! Work that waits a little for an endpoint to come back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use starling_gossip::clock::Instant;

/// When all of a service's endpoints fail at once, work waits so long for one to come back: a
/// restart, a lost packet. Later work fails at once, until one does.
pub(crate) const HOLD: Duration = Duration::from_secs(1);

/// How often held work looks again.
pub(crate) const HOLD_STEP: Duration = Duration::from_millis(25);

/// Since when a service has had no usable endpoint; outlives the route.
pub(super) struct Hold {
    created: Instant,
    /// Milliseconds after `created`, plus one; 0 is "it has one".
    since: AtomicU64,
}

impl Hold {
    pub(super) fn new(now: Instant) -> Self {
        Self { created: now, since: AtomicU64::new(0) }
    }

    pub(super) fn end(&self) {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
    }

    /// How long there has been no usable endpoint; begins to count when first asked.
    pub(super) fn since(&self, now: Instant) -> Duration {
        let millis = now.saturating_duration_since(self.created).as_millis() as u64 + 1;
        match self.since.compare_exchange(0, millis, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Duration::ZERO,
            Err(since) => Duration::from_millis(millis.saturating_sub(since)),
        }
    }
}
