//! STATE MACHINE: requests and retries of one service -> may one more be sent again, and how soon?
//!
//! A retry is work that the service gets on top of what it was asked for. Whoever fails because it has
//! too much to do gets more of it by every retry, and each caller of a chain multiplies: three tries
//! over three hops are 27 requests. So retries are a share of the requests of the last ten seconds, and
//! where there are hardly any requests, a few. It never sees a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use starling_gossip::clock::Instant;

use crate::balance::Chance;

/// Requests for each retry: a service that fails altogether is asked 1.2 times as often.
const REQUESTS_PER_RETRY: u64 = 5;

/// Where this is more than its share, a service gets so many retries all the same: below ten requests a
/// second nothing is hit hard by them, and a share of nothing would let the first failure through.
const RETRIES_PER_SECOND_MIN: u64 = 2;

/// What is counted together, as in Finagle's and linkerd's budgets: long enough that the work of an
/// instance that dies finds room elsewhere at once.
const WINDOW_SECONDS: u64 = 10;

/// A first retry waits half of this in the mean, later ones longer; as in Envoy.
const PAUSE_BASE: Duration = Duration::from_millis(25);

/// No retry waits longer; as in Envoy.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// What became of an attempt, as far as sending the request elsewhere goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The endpoint is not there, and took nothing: looking elsewhere is no retry.
    PassedOver,
    /// Whoever serves it refused, and others may have as much to do.
    Refused,
    /// It may have reached the workload.
    Lost,
}

/// How many retries one service gets.
#[derive(Debug)]
pub struct RetryBudget {
    created: Instant,
    requests: Window,
    retries: Window,
}

/// A count of each of the last [`WINDOW_SECONDS`], without a lock: every request counts.
#[derive(Debug, Default)]
struct Window {
    /// The second, plus one, above [`COUNT_BITS`] bits of what was counted in it.
    slots: [AtomicU64; WINDOW_SECONDS as usize],
}

/// Nobody carries four billion requests a second.
const COUNT_BITS: u32 = 32;

impl Fate {
    /// Whether sending the request again is a retry.
    pub fn costs(self) -> bool {
        self != Self::PassedOver
    }

    /// Whether it is better sent a little later.
    pub fn waits(self) -> bool {
        self == Self::Refused
    }
}

impl RetryBudget {
    /// Nothing has been asked yet.
    pub fn new(now: Instant) -> Self {
        Self { created: now, requests: Window::default(), retries: Window::default() }
    }

    /// A request is sent for the first time.
    pub fn handle_request(&self, now: Instant) {
        self.requests.add(self.second(now));
    }

    /// Whether a request may be sent again; counts it if so.
    pub fn take_retry(&self, now: Instant) -> bool {
        let second = self.second(now);
        let share = self.requests.sum(second) / REQUESTS_PER_RETRY;
        let room = share.max(RETRIES_PER_SECOND_MIN * WINDOW_SECONDS);
        let has_room = self.retries.sum(second) < room;
        if has_room {
            self.retries.add(second);
        }
        has_room
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.created).as_secs()
    }
}

impl Window {
    fn add(&self, second: u64) {
        let slot = &self.slots[(second % WINDOW_SECONDS) as usize];
        let first = (second + 1) << COUNT_BITS;
        let next = |held: u64| Some(held.max(first) + 1);
        // `next` refuses nothing.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn sum(&self, second: u64) -> u64 {
        let count = |slot: &AtomicU64| {
            let held = slot.load(Ordering::Relaxed);
            let counted = held >> COUNT_BITS;
            let is_recent = counted > 0 && counted + WINDOW_SECONDS > second + 1;
            if is_recent { held & ((1 << COUNT_BITS) - 1) } else { 0 }
        };
        self.slots.iter().map(count).sum()
    }
}

/// How long a request that `attempts` were made for waits before the next: anything up to a time that
/// doubles ("full jitter"), so that requests that failed together do not come back together.
pub fn pause(attempts: u32, chance: &Chance) -> Duration {
    let doubled = PAUSE_BASE * (1_u32 << attempts.min(8)).saturating_sub(1);
    doubled.min(PAUSE_MAX).mul_f64(chance.fraction())
}

#[cfg(test)]
mod tests {
    use super::*;
    use starling_gossip::clock::Clock;

    const FLOOR: u64 = RETRIES_PER_SECOND_MIN * WINDOW_SECONDS;

    fn taken(budget: &RetryBudget, wanted: u64, now: Instant) -> u64 {
        (0..wanted).filter(|_| budget.take_retry(now)).count() as u64
    }

    #[test]
    fn a_service_that_always_fails_is_asked_once_for_each_five_requests_more() {
        let start = Clock::System.now();
        for per_second in [20, 100, 5_000] {
            let budget = RetryBudget::new(start);
            let mut retries = 0;
            for millis in (0..60_000).step_by(100) {
                let now = start + Duration::from_millis(millis);
                for _ in 0..per_second / 10 {
                    budget.handle_request(now);
                    // As three attempts would.
                    retries += taken(&budget, 2, now);
                }
            }
            let share = per_second * 60 / REQUESTS_PER_RETRY;
            assert!((share * 9 / 10..=share + FLOOR).contains(&retries), "{retries} of {share}");
        }
    }

    #[test]
    fn a_service_that_is_hardly_asked_gets_a_few_retries() {
        let start = Clock::System.now();
        let budget = RetryBudget::new(start);
        budget.handle_request(start);
        assert_eq!(taken(&budget, 1_000, start), FLOOR);
        let just_before = start + Duration::from_millis(9_999);
        assert_eq!(taken(&budget, 1_000, just_before), 0);
        assert_eq!(taken(&budget, 1_000, start + Duration::from_secs(10)), FLOOR);
    }

    #[test]
    fn what_was_asked_long_ago_gives_no_retries_now() {
        let start = Clock::System.now();
        let budget = RetryBudget::new(start);
        (0..10_000).for_each(|_| budget.handle_request(start));
        assert_eq!(taken(&budget, 10, start + Duration::from_secs(9)), 10);
        let later = start + Duration::from_secs(1_000);
        assert_eq!(taken(&budget, 10_000, later), FLOOR);
        // A clock that reads an earlier time on another thread takes nothing away.
        budget.handle_request(start);
        assert_eq!(taken(&budget, 1, later), 0);
    }

    #[test]
    fn pauses_are_spread_and_grow_to_a_bound() {
        let chance = Chance::new(3);
        let mean = |attempts: u32| {
            let all: Vec<Duration> = (0..2_000).map(|_| pause(attempts, &chance)).collect();
            assert!(all.iter().all(|pause| *pause <= PAUSE_MAX), "{all:?}");
            all.iter().sum::<Duration>().as_millis() / 2_000
        };
        assert!((11..=14).contains(&mean(1)), "{}", mean(1));
        assert!((34..=41).contains(&mean(2)), "{}", mean(2));
        for attempts in [5, 100, u32::MAX] {
            assert!((115..=135).contains(&mean(attempts)), "{}", mean(attempts));
        }
    }
}
