//! Runs a call's [`Patience`]: one timer for all its limits, set when the call first has to wait.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use tokio::time::Sleep;

use crate::patience::{Allowance, Elapsed, Patience};

/// A call's time.
pub(crate) struct Timer {
    patience: Patience,
    clock: Clock,
    sleep: Option<Pin<Box<Sleep>>>,
    has_moved: bool,
    /// What moves elsewhere than where the time is taken.
    elsewhere: Option<Moved>,
}

/// What moves elsewhere; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Moved(Arc<Upload>);

#[derive(Default)]
struct Upload {
    /// Whether bytes have moved since somebody last asked.
    has_moved: AtomicBool,
    /// Whether its caller is to send more before anything can move.
    is_awaited: AtomicBool,
    /// Whether its caller broke it off.
    is_broken: AtomicBool,
}

impl Timer {
    /// A call that has just `begun`.
    pub(crate) fn new(allowance: Allowance, begun: Instant, clock: &Clock) -> Self {
        let patience = Patience::new(allowance, begun);
        Self { patience, clock: clock.clone(), sleep: None, has_moved: false, elsewhere: None }
    }

    /// What is left of the whole call's time, if that has an end.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        self.patience.left(now)
    }

    /// The call is sent, perhaps once more.
    pub(crate) fn begin_attempt(&mut self, now: Instant) {
        self.patience.begin_attempt(now);
    }

    /// The attempt is over.
    pub(crate) fn end_attempt(&mut self) {
        self.patience.end_attempt();
    }

    /// Something has moved here.
    pub(crate) fn note(&mut self) {
        self.has_moved = true;
    }

    /// Where to note what moves elsewhere.
    pub(crate) fn elsewhere(&mut self) -> Moved {
        self.elsewhere.get_or_insert_default().clone()
    }

    /// Whether it is the caller that has to send more.
    pub(crate) fn awaits_caller(&self) -> bool {
        self.elsewhere.as_ref().is_some_and(|moved| moved.0.is_awaited.load(Ordering::Relaxed))
    }

    /// Whether the caller broke off what it sent.
    pub(crate) fn is_broken_off(&self) -> bool {
        self.elsewhere.as_ref().is_some_and(|moved| moved.0.is_broken.load(Ordering::Relaxed))
    }

    /// Does `work`, as far as there is time.
    pub(crate) async fn limit<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            elapsed = std::future::poll_fn(|context| self.poll_elapsed(context)) => Err(elapsed),
        }
    }

    /// What has run out.
    pub(crate) fn poll_elapsed(&mut self, context: &mut Context<'_>) -> Poll<Elapsed> {
        // Each turn is a look later, or ends.
        while let Some(next) = self.patience.poll_timeout() {
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if sleep.deadline() != next {
                sleep.as_mut().reset(next);
            }
            ready!(sleep.as_mut().poll(context));
            let has_moved_elsewhere = self.elsewhere.as_ref().is_some_and(Moved::take);
            let has_moved = std::mem::take(&mut self.has_moved) || has_moved_elsewhere;
            if let Some(elapsed) = self.patience.handle_timeout(self.clock.now(), has_moved) {
                return Poll::Ready(elapsed);
            }
        }
        Poll::Pending
    }
}

impl Moved {
    /// Something has moved.
    pub(crate) fn note(&self) {
        self.0.has_moved.store(true, Ordering::Relaxed);
    }

    /// Whether more of an upload was asked for than its caller has sent.
    pub(crate) fn set_awaited(&self, is_awaited: bool) {
        self.0.is_awaited.store(is_awaited, Ordering::Relaxed);
    }

    /// The caller of an upload has broken it off.
    pub(crate) fn set_broken(&self) {
        self.0.is_broken.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.0.has_moved.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_millis(400);

    fn timer() -> Timer {
        let idle = Allowance { idle: Some(IDLE), ..Allowance::default() };
        Timer::new(idle, Clock::System.now(), &Clock::System)
    }

    #[tokio::test]
    async fn work_that_stands_still_is_given_up_in_time() {
        let start = Clock::System.now();
        let given_up = timer().limit(std::future::pending::<()>()).await;
        assert_eq!(given_up, Err(Elapsed::Idle));
        let took = Clock::System.now() - start;
        assert!((IDLE..IDLE * 10).contains(&took), "{took:?}");
    }

    #[tokio::test]
    async fn work_that_moves_may_take_as_long_as_it_does() {
        let mut timer = timer();
        let moved = timer.elsewhere();
        let work = async {
            for _ in 0..40 {
                tokio::time::sleep(IDLE / 10).await;
                moved.note();
            }
        };
        assert_eq!(timer.limit(work).await, Ok(()));
    }
}
