//! What one endpoint has answered of late. Counted by every answer, so without a lock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// An error so long ago is not the one before the next.
const IN_A_ROW: Duration = Duration::from_secs(60);

/// Since the interval began.
#[derive(Debug, Default)]
pub(crate) struct Record {
    errors_in_a_row: AtomicU32,
    /// How many there were before the last good answer, until that has come to its end.
    errors_before: AtomicU32,
    /// When the last error came, in microseconds on the endpoint's own clock.
    last_error: AtomicU64,
    answers: AtomicU32,
    errors: AtomicU32,
    /// Of those that were no errors so far.
    broken: AtomicU32,
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
    /// How long those took in the mean that began well, in seconds.
    pub(crate) mean_seconds: Option<f64>,
}

impl Record {
    /// A good answer has begun after `took`.
    pub(crate) fn handle_answer(&self, took: Duration) {
        // Read first: what everybody writes, everybody waits for.
        let errors = self.errors_in_a_row.load(Ordering::Relaxed);
        if errors != 0 {
            self.errors_before.store(errors, Ordering::Relaxed);
            self.errors_in_a_row.store(0, Ordering::Relaxed);
        }
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// An answer has come to its end.
    pub(crate) fn handle_end(&self) {
        if self.errors_before.load(Ordering::Relaxed) != 0 {
            self.errors_before.store(0, Ordering::Relaxed);
        }
    }

    /// An answer that was good so far breaks off at `now`, of an attempt that had `begun` before; gives how many errors
    /// there were in a row.
    pub(crate) fn handle_broken_answer(&self, begun: u64, now: u64) -> u32 {
        let last_error = self.last_error.load(Ordering::Relaxed);
        // What breaks together with another is that one error, and ends nothing.
        if begun >= last_error {
            let before = self.errors_before.swap(0, Ordering::Relaxed);
            self.broken.fetch_add(1, Ordering::Relaxed);
            let is_in_a_row = now.saturating_sub(last_error) < IN_A_ROW.as_micros() as u64;
            if is_in_a_row {
                self.errors_in_a_row.fetch_max(before, Ordering::Relaxed);
            }
        }
        self.count_in_a_row(begun, now)
    }

    /// An error at `now` of an attempt that had `begun` before; gives how many there were in a row. Those that
    /// were under way together fail together, and are one of them.
    pub(crate) fn handle_error(&self, begun: u64, now: u64) -> u32 {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.count_in_a_row(begun, now)
    }

    fn count_in_a_row(&self, begun: u64, now: u64) -> u32 {
        if begun < self.last_error.load(Ordering::Relaxed) {
            return self.errors_in_a_row.load(Ordering::Relaxed);
        }
        self.last_error.store(now, Ordering::Relaxed);
        self.errors_in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Ends the interval, and gives what was in it. What breaks off may have begun in an earlier one.
    pub(crate) fn take_window(&self) -> Window {
        let answers = self.answers.swap(0, Ordering::Relaxed);
        let errors = self.errors.swap(0, Ordering::Relaxed);
        let broken = self.broken.swap(0, Ordering::Relaxed);
        let seconds = self.micros.swap(0, Ordering::Relaxed) as f64 / 1e6;
        let begun = answers.saturating_sub(errors);
        let errors = errors.saturating_add(broken).min(answers);
        Window { answers, errors, mean_seconds: (begun > 0).then(|| seconds / f64::from(begun)) }
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
        self.errors_before.store(0, Ordering::Relaxed);
        self.is_out.store(is_out, Ordering::Relaxed);
    }

    /// It is back for an answer to what was sent it since its trial had `begun`. That is to end well, too: should it
    /// break off, it is the last of the `limit` of errors in a row.
    pub(crate) fn handle_good_trial(&self, limit: u32, begun: u64) {
        self.errors_before.store(limit.saturating_sub(1), Ordering::Relaxed);
        self.last_error.store(begun, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Duration = Duration::from_millis(1);
    const SECOND: u64 = 1_000_000;

    #[test]
    fn what_breaks_off_goes_on_with_the_count_and_a_good_end_ends_it() {
        let record = Record::default();
        let breaks = |at: u64| {
            record.handle_answer(GOOD);
            record.handle_broken_answer(at, at + 1)
        };
        assert_eq!((breaks(0), breaks(10), breaks(20)), (1, 2, 3));
        assert_eq!(record.handle_error(30, 31), 4, "errors of either kind");
        record.handle_end();
        assert_eq!(breaks(40), 5, "the end of an error is no good one");
        record.handle_answer(GOOD);
        record.handle_end();
        assert_eq!(breaks(50), 1);
        assert_eq!(breaks(50 + 100 * SECOND), 1, "long ago is not in a row");
    }

    #[test]
    fn what_breaks_off_together_is_one_error_and_never_more_than_there_are_answers() {
        let record = Record::default();
        (0..100).for_each(|_| record.handle_answer(GOOD));
        let counts: Vec<u32> = (0..100).map(|nth| record.handle_broken_answer(5, 1_000 + nth)).collect();
        assert!(counts.iter().all(|count| *count == 1), "{counts:?}");
        let window = record.take_window();
        assert_eq!((window.answers, window.errors), (100, 1));
        assert!((window.mean_seconds.expect("some") - 0.001).abs() < 1e-9, "a break is no slowness");
        record.handle_broken_answer(2_000, 2_001);
        assert_eq!(record.take_window(), Window::default(), "it was counted when it began");
    }

    #[test]
    fn what_overlaps_does_not_end_the_count() {
        let record = Record::default();
        let mut most = 0;
        // Two at a time, each with a good head, and each breaks off.
        for at in (0..40).map(|nth| nth * 10) {
            record.handle_answer(GOOD);
            most = most.max(record.handle_broken_answer(at, at + 15));
        }
        assert!(most >= 5, "{most}");
    }

    #[test]
    fn who_is_back_on_trial_is_out_with_the_first_answer_that_breaks_off() {
        let record = Record::default();
        record.handle_good_trial(5, 100);
        assert_eq!(record.handle_broken_answer(100, 101), 5);
        let record = Record::default();
        record.handle_good_trial(5, 200);
        assert_eq!(record.handle_broken_answer(150, 200), 0, "another's, which is older");
        record.handle_end();
        assert_eq!(record.handle_broken_answer(200, 201), 1);
    }
}
