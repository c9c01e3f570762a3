//! What one endpoint has answered of late. Counted by every answer, so without a lock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Since the interval began.
#[derive(Debug, Default)]
pub(crate) struct Record {
    errors_in_a_row: AtomicU32,
    broken_in_a_row: AtomicU32,
    /// When the last of either came, in microseconds on the endpoint's own clock.
    last_error: AtomicU64,
    answers: AtomicU32,
    errors: AtomicU32,
    micros: AtomicU64,
    /// Whether the endpoint is out: read on every request.
    is_out: AtomicBool,
    /// Whether it takes no work at all: read on every request, too.
    is_broken: AtomicBool,
}

/// What one endpoint did in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Window {
    /// Good and bad ones.
    pub(crate) answers: u32,
    /// The bad ones.
    pub(crate) errors: u32,
    /// How long the good ones took in the mean, in seconds.
    pub(crate) mean_seconds: Option<f64>,
}

impl Record {
    /// A good answer after `took`.
    pub(crate) fn handle_answer(&self, took: Duration) {
        // Read first: what everybody writes, everybody waits for.
        if self.errors_in_a_row.load(Ordering::Relaxed) != 0 {
            self.errors_in_a_row.store(0, Ordering::Relaxed);
        }
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// An error at `now` of an attempt that had `begun` before; gives how many there were in a row. Those that
    /// were under way together fail together, and are one of them.
    pub(crate) fn handle_error(&self, begun: u64, now: u64) -> u32 {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.count_in_a_row(&self.errors_in_a_row, begun, now)
    }

    /// An answer that was good so far breaks off at `now`, of an attempt that had `begun` before; gives how many did
    /// in a row.
    pub(crate) fn handle_broken_answer(&self, begun: u64, now: u64) -> u32 {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.count_in_a_row(&self.broken_in_a_row, begun, now)
    }

    /// An answer has come to its end.
    pub(crate) fn handle_end(&self) {
        if self.broken_in_a_row.load(Ordering::Relaxed) != 0 {
            self.broken_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    fn count_in_a_row(&self, count: &AtomicU32, begun: u64, now: u64) -> u32 {
        if begun < self.last_error.load(Ordering::Relaxed) {
            return count.load(Ordering::Relaxed);
        }
        self.last_error.store(now, Ordering::Relaxed);
        count.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Ends the interval, and gives what was in it.
    pub(crate) fn take_window(&self) -> Window {
        let answers = self.answers.swap(0, Ordering::Relaxed);
        let errors = self.errors.swap(0, Ordering::Relaxed);
        let seconds = self.micros.swap(0, Ordering::Relaxed) as f64 / 1e6;
        let good = answers.saturating_sub(errors);
        Window { answers, errors, mean_seconds: (good > 0).then(|| seconds / f64::from(good)) }
    }

    /// Whether the endpoint is out.
    pub(crate) fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Relaxed)
    }

    /// Whether the endpoint takes no work at present, whatever it answered before.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// It has begun, or ceased, to take no work.
    pub(crate) fn set_broken(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::Relaxed);
    }

    /// It is out from now on, or back with nothing against it.
    pub(crate) fn set_out(&self, is_out: bool) {
        self.errors_in_a_row.store(0, Ordering::Relaxed);
        self.broken_in_a_row.store(0, Ordering::Relaxed);
        self.is_out.store(is_out, Ordering::Relaxed);
    }
}
