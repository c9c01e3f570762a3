//! PURE: how long an endpoint takes to answer, as a number that is quick to rise and slow to fall.
//!
//! A *peak* moving average (Finagle's, and linkerd's after it): an answer slower than the estimate counts
//! in full at once, a faster one by how long ago the last was. So an endpoint that stalls is avoided by the
//! next request and not by the hundredth. An estimate that nobody renews fades, and with it the reason not
//! to try the endpoint again; the longer it is not renewed, the faster, for where requests are few nobody
//! else would find out that an endpoint has recovered.
//!
//! Time to the answer's head is what counts: how long a stream goes on is its caller's business.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What was measured so long ago counts 1/e of what is measured now, while measurements come; as in linkerd.
const DECAY: Duration = Duration::from_secs(10);

/// What nobody renews fades by the square of the time over this as well: by a seventh in a second, to an
/// eighth in five, to less than a thousandth in ten. By [`DECAY`] alone, as in Finagle and linkerd, one
/// stall of a second would keep an endpoint that answers in milliseconds out of use for a minute, with
/// nobody to find out. The price: who is slow for good gets one of a caller's requests about every eight seconds.
const UNRENEWED: Duration = Duration::from_secs(4);

/// Whoever looked at the clock first may come second, by so many milliseconds at most.
pub(super) const OUT_OF_ORDER_MILLIS_MAX: u32 = 60_000;

/// What is faded below this is no measurement any more: nobody answers over a network in less.
const FADED_SECONDS: f32 = 1e-6;

/// A failure counts as an answer that took so long, though not as a peak: who fails one request of a
/// hundred then looks ten milliseconds slower, and who fails all of them is left alone. Without it, whoever
/// fails at once would look like the fastest of all.
const FAILURE_SECONDS: f32 = 1.0;

/// The estimate for one endpoint; one word, so that no reader sees half of a change.
#[derive(Debug, Default)]
pub(crate) struct Estimate(
    /// Milliseconds of the last change above 32 bits of seconds; 0 is "not measured".
    AtomicU64,
);

impl Estimate {
    /// An answer's head has come after `took`. `at` is in milliseconds on a clock of the endpoint's own,
    /// which may overflow.
    pub(crate) fn handle_answer(&self, took: Duration, at: u32) {
        self.change(at, |held, kept| blend(peak(held, took.as_secs_f32()), took.as_secs_f32(), kept));
    }

    /// An attempt has failed after `took`.
    pub(crate) fn handle_failure(&self, took: Duration, at: u32) {
        self.change(at, |held, kept| blend(peak(held, took.as_secs_f32()), FAILURE_SECONDS, kept));
    }

    /// Nobody waits any more for an answer that had not come after `waited`: it would have taken at
    /// least that long.
    pub(crate) fn handle_abandoned(&self, waited: Duration, at: u32) {
        self.change(at, |held, kept| peak(held.map(|held| held * kept), waited.as_secs_f32()));
    }

    /// Seconds to an answer, as far as anything is known.
    pub(crate) fn seconds(&self, at: u32) -> Option<f32> {
        let (stamp, held) = unpack(self.0.load(Ordering::Relaxed))?;
        let faded = held * kept(stamp, at);
        (faded >= FADED_SECONDS).then_some(faded)
    }

    /// Forgets everything: the endpoint is another one now.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// `next` makes the new estimate of the held one and of how much that still counts.
    fn change(&self, at: u32, next: impl Fn(Option<f32>, f32) -> f32) {
        let changed = |word: u64| {
            let held = unpack(word);
            let kept = held.map_or(0.0, |(stamp, _)| kept(stamp, at));
            // Whoever looked at the clock first may come second: time does not go back.
            let stamp = held.map_or(at, |(stamp, _)| if is_before(at, stamp) { stamp } else { at });
            let seconds = next(held.map(|(_, seconds)| seconds), kept).max(FADED_SECONDS);
            Some(u64::from(stamp) << 32 | u64::from(seconds.to_bits()))
        };
        // `changed` refuses nothing.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
    }
}

fn unpack(word: u64) -> Option<(u32, f32)> {
    (word != 0).then(|| ((word >> 32) as u32, f32::from_bits(word as u32)))
}

/// How much of what was measured at `stamp` counts now, from 0 to 1.
fn kept(stamp: u32, at: u32) -> f32 {
    if is_before(at, stamp) {
        return 1.0;
    }
    let elapsed = at.wrapping_sub(stamp) as f32;
    let unrenewed = elapsed / UNRENEWED.as_millis() as f32;
    (-elapsed / DECAY.as_millis() as f32 - unrenewed * unrenewed).exp()
}

/// On a clock that overflows every 49 days. What looks later is, by a little, or is from weeks ago.
fn is_before(at: u32, stamp: u32) -> bool {
    let ahead = stamp.wrapping_sub(at);
    ahead > 0 && ahead < OUT_OF_ORDER_MILLIS_MAX
}

fn peak(held: Option<f32>, sample: f32) -> f32 {
    held.map_or(sample, |held| held.max(sample))
}

fn blend(held: f32, sample: f32, kept: f32) -> f32 {
    held * kept + sample * (1.0 - kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[track_caller]
    fn is_about(estimate: &Estimate, at: u32, seconds: f32) {
        let found = estimate.seconds(at).expect("measured");
        assert!((found / seconds - 1.0).abs() < 0.02, "{found}, not {seconds}");
    }

    #[test]
    fn what_was_never_measured_is_unknown_and_a_first_answer_counts_in_full() {
        let estimate = Estimate::default();
        assert_eq!(estimate.seconds(5), None);
        estimate.handle_answer(millis(20), 5);
        is_about(&estimate, 5, 0.02);
        estimate.reset();
        assert_eq!(estimate.seconds(5), None);
    }

    #[test]
    fn what_was_measured_weeks_ago_is_not_from_the_future() {
        let (estimate, day) = (Estimate::default(), 24 * 3_600 * 1_000);
        estimate.handle_answer(millis(2_000), day);
        assert_eq!(estimate.seconds(27 * day), None);
        estimate.handle_answer(millis(10), 27 * day);
        is_about(&estimate, 27 * day + 1, 0.01);
        is_about(&estimate, 27 * day - 1, 0.01);
    }

    #[test]
    fn a_peak_counts_at_once_and_fades_slowly() {
        let estimate = Estimate::default();
        estimate.handle_answer(millis(10), 0);
        estimate.handle_answer(millis(1_000), 10);
        is_about(&estimate, 10, 1.0);
        estimate.handle_answer(millis(10), 20);
        is_about(&estimate, 20, 0.999);
        // Each measurement fades it a little, and so does what comes between.
        for at in (30..10_020).step_by(10) {
            estimate.handle_answer(millis(0), at);
        }
        is_about(&estimate, 10_020, 0.999 / std::f32::consts::E);
        // Two minutes of good answers.
        for at in (10_020..120_000).step_by(100) {
            estimate.handle_answer(millis(10), at);
        }
        is_about(&estimate, 120_000, 0.01);
    }

    #[test]
    fn what_nobody_renews_is_forgotten_in_the_end() {
        let estimate = Estimate::default();
        estimate.handle_answer(millis(10), 0);
        assert!(estimate.seconds(10_000).is_some());
        assert_eq!(estimate.seconds(60_000), None);
    }

    /// How many of the requests that come every 300 ms go to an endpoint whose first answer took so long,
    /// and when the first does; all other answers, its own and another endpoint's, take 2 ms.
    fn trickle(stall: Duration) -> (usize, u32) {
        let (stalled, other) = (Estimate::default(), Estimate::default());
        stalled.handle_answer(stall, 0);
        other.handle_answer(millis(2), 0);
        let (mut count, mut first) = (0, None);
        for at in (300..30_000).step_by(300) {
            if stalled.seconds(at) < other.seconds(at) {
                (count, first) = (count + 1, first.or(Some(at)));
                stalled.handle_answer(millis(2), at + 2);
            } else {
                other.handle_answer(millis(2), at + 2);
            }
        }
        (count, first.unwrap_or(u32::MAX))
    }

    #[test]
    fn one_slow_answer_costs_an_endpoint_seconds_and_not_a_minute() {
        for (stall, first_max) in [(20, 6_000), (100, 8_000), (1_000, 10_000)] {
            let (count, first) = trickle(millis(stall));
            assert!(first <= first_max, "{first} ms after {stall} ms");
            // From then on it gets more with each answer.
            assert!(count >= 20, "{count} of 99 after {stall} ms");
        }
    }

    #[test]
    fn who_is_slow_for_good_is_tried_seldom() {
        let (slow, fast) = (Estimate::default(), Estimate::default());
        slow.handle_answer(millis(200), 0);
        let mut tried = 0;
        for at in (0..60_000).step_by(100) {
            fast.handle_answer(millis(2), at);
            if slow.seconds(at + 50) < fast.seconds(at + 50) {
                tried += 1;
                slow.handle_answer(millis(200), at + 50);
            }
        }
        assert!((5..=9).contains(&tried), "{tried} of 600");
    }

    #[test]
    fn failures_count_as_slow_however_fast_they_come() {
        let (fails, works) = (Estimate::default(), Estimate::default());
        for at in (0..2_000).step_by(10) {
            fails.handle_failure(millis(1), at);
            works.handle_answer(millis(1), at);
        }
        assert!(fails.seconds(2_000) > works.seconds(2_000).map(|works| works * 50.0));
        let seldom = Estimate::default();
        for at in 0..60_000 {
            match at % 100 {
                50 => seldom.handle_failure(millis(1), at),
                _ => seldom.handle_answer(millis(1), at),
            }
        }
        is_about(&seldom, 60_000, 0.011);
    }

    #[test]
    fn what_was_given_up_took_that_long_at_least() {
        let estimate = Estimate::default();
        estimate.handle_answer(millis(500), 0);
        estimate.handle_abandoned(millis(100), 0);
        is_about(&estimate, 0, 0.5);
        estimate.handle_abandoned(millis(2_000), 0);
        is_about(&estimate, 0, 2.0);
    }

    #[test]
    fn the_clock_may_overflow_and_be_read_out_of_order() {
        let estimate = Estimate::default();
        estimate.handle_answer(millis(10), u32::MAX - 5);
        is_about(&estimate, 4, 0.01);
        estimate.handle_answer(millis(10), 4);
        estimate.handle_answer(millis(10), u32::MAX - 2);
        is_about(&estimate, 4, 0.01);
    }
}
