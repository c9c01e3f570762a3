//! The only place of the gossip core that reads time.
//!
//! Two kinds of time, never mixed: [`Instant`] only goes forward and measures how long something
//! took (leases, timeouts); [`WallTime`] is what a calendar says and judges certificates. The
//! state machines take both as arguments. `Instant` is tokio's, so a paused runtime makes it
//! virtual, and with it everything that asks this clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use tokio::time::Instant;

/// Milliseconds since 1970 by the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct WallTime {
    /// Milliseconds since 1970-01-01 00:00 UTC.
    pub unix_millis: u64,
}

impl WallTime {
    /// Whole seconds since 1970, as certificates count.
    pub fn unix_seconds(self) -> u64 {
        self.unix_millis / 1000
    }

    /// The moment `span` earlier; 1970 at the earliest.
    pub fn earlier(self, span: Duration) -> Self {
        Self { unix_millis: self.unix_millis.saturating_sub(millis(span)) }
    }

    /// The moment `span` later.
    pub fn later(self, span: Duration) -> Self {
        Self { unix_millis: self.unix_millis.saturating_add(millis(span)) }
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.unix_millis.saturating_sub(earlier.unix_millis))
    }
}

/// Where a node's time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clocks.
    System,
    /// Wall time that starts at a given moment and follows tokio's (paused) clock.
    Virtual {
        /// What the calendar said at `start`.
        wall_at_start: WallTime,
        /// When that was.
        start: Instant,
        /// How far somebody has set the calendar since, in milliseconds; clones share it.
        set_by: Arc<AtomicI64>,
    },
}

impl Clock {
    /// A virtual clock whose calendar says `wall` now.
    pub fn starting_at(wall: WallTime) -> Self {
        Self::Virtual { wall_at_start: wall, start: Instant::now(), set_by: Arc::default() }
    }

    /// Sets the calendar of a virtual clock and its clones forward (or back) by `millis`, as an
    /// operator or a time service does to a machine's. The machine's own is nobody's to set here.
    pub fn set_calendar_by(&self, millis: i64) {
        if let Self::Virtual { set_by, .. } = self {
            set_by.fetch_add(millis, Ordering::Relaxed);
        }
    }

    /// Monotonic time.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// When something that is done every `period` is due next. All that have the same period are due together, for
    /// each time a process wakes costs more than the little it then does.
    pub fn next_beat(&self, period: Duration) -> Instant {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let now = self.now();
        let first = *FIRST.get_or_init(|| now);
        let into = now.saturating_duration_since(first).as_nanos() % period.as_nanos().max(1);
        now + period.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or(u64::MAX)))
    }

    /// Calendar time. A machine whose calendar stands before 1970 reads as 1970, where every
    /// certificate is not yet valid.
    pub fn wall(&self) -> WallTime {
        let since_epoch = match self {
            #[expect(clippy::disallowed_methods, reason = "this is the one place that reads wall time")]
            Self::System => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
            Self::Virtual { wall_at_start, start, set_by } => {
                let set_by = set_by.load(Ordering::Relaxed);
                let at_start = wall_at_start.unix_millis.saturating_add_signed(set_by);
                Duration::from_millis(at_start) + start.elapsed()
            }
        };
        WallTime { unix_millis: millis(since_epoch) }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_has_the_same_period_is_due_together() {
        let second = Duration::from_secs(1);
        let clock = Clock::System;
        let first = clock.next_beat(second);
        assert!(first > clock.now() && first <= clock.now() + second);
        tokio::time::sleep_until(first - second / 3).await;
        assert_eq!(clock.next_beat(second), first);
        tokio::time::sleep_until(first).await;
        assert_eq!(clock.next_beat(second), first + second);
    }
}
