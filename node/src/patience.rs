//! STATE MACHINE: how long one call is waited for: altogether, for each attempt, and while nothing
//! moves. It never sees a clock; [`crate::proxy::timer`] runs it.

use std::time::Duration;

use starling_gossip::clock::Instant;

/// Looks in which nothing has moved before a call is idle. What moves need not tell the time, so a call
/// is given up a quarter too late at most.
const QUIET_LOOKS: u32 = 4;

/// What has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elapsed {
    /// The time of the whole call.
    Total,
    /// The time of one attempt.
    Attempt,
    /// Nothing has moved for long.
    Idle,
}

/// What one call may take; `None` is without an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Altogether.
    pub total: Option<Duration>,
    /// From the beginning of an attempt to its end.
    pub attempt: Option<Duration>,
    /// While nothing moves.
    pub idle: Option<Duration>,
}

/// How long one call is waited for still.
#[derive(Debug)]
pub struct Patience {
    total_until: Option<Instant>,
    attempt: Option<Duration>,
    attempt_until: Option<Instant>,
    idle: Option<Idle>,
}

#[derive(Debug)]
struct Idle {
    step: Duration,
    next_look: Instant,
    quiet_looks: u32,
}

impl Patience {
    /// A call that begins now.
    pub fn new(allowance: Allowance, now: Instant) -> Self {
        let idle = allowance.idle.map(|idle| idle / QUIET_LOOKS);
        Self {
            total_until: allowance.total.and_then(|total| now.checked_add(total)),
            attempt: allowance.attempt,
            attempt_until: None,
            idle: idle.map(|step| Idle { step, next_look: now + step, quiet_looks: 0 }),
        }
    }

    /// What is left of the whole call's time, if that has an end.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.total_until.map(|until| until.saturating_duration_since(now))
    }

    /// The call is sent, perhaps once more.
    pub fn begin_attempt(&mut self, now: Instant) {
        self.attempt_until = self.attempt.and_then(|attempt| now.checked_add(attempt));
    }

    /// The attempt is over: failed, or answered.
    pub fn end_attempt(&mut self) {
        self.attempt_until = None;
    }

    /// When to call [`Self::handle_timeout`]; `None` is never.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let look = self.idle.as_ref().map(|idle| idle.next_look);
        [self.total_until, self.attempt_until, look].into_iter().flatten().min()
    }

    /// What has run out, if anything; `has_moved` says whether a byte has since the last time.
    pub fn handle_timeout(&mut self, now: Instant, has_moved: bool) -> Option<Elapsed> {
        let is_over = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        if is_over(self.total_until) {
            return Some(Elapsed::Total);
        }
        if is_over(self.attempt_until) {
            return Some(Elapsed::Attempt);
        }
        let idle = self.idle.as_mut().filter(|idle| has_moved || idle.next_look <= now)?;
        // One look however late it is: whoever is asked late was not the one who stood still.
        idle.quiet_looks = if has_moved { 0 } else { idle.quiet_looks + 1 };
        idle.next_look = now + idle.step;
        (idle.quiet_looks >= QUIET_LOOKS).then_some(Elapsed::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use starling_gossip::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs it until something has run out, and says when; `moves` says whether bytes do at that time.
    fn run(
        patience: &mut Patience,
        start: Instant,
        moves: impl Fn(Duration) -> bool,
    ) -> Option<(Elapsed, Duration)> {
        for _ in 0..1_000 {
            let now = patience.poll_timeout()?;
            if let Some(elapsed) = patience.handle_timeout(now, moves(now - start)) {
                return Some((elapsed, now - start));
            }
        }
        None
    }

    #[test]
    fn a_call_without_limits_waits_for_ever() {
        let start = Clock::System.now();
        assert_eq!(Patience::new(Allowance::default(), start).poll_timeout(), None);
    }

    #[test]
    fn the_first_limit_counts() {
        let start = Clock::System.now();
        let all = Allowance { total: Some(SECOND * 10), attempt: Some(SECOND * 2), idle: Some(SECOND * 4) };
        let mut patience = Patience::new(all, start);
        patience.begin_attempt(start + SECOND);
        assert_eq!(run(&mut patience, start, |_| false), Some((Elapsed::Attempt, SECOND * 3)));
        patience.begin_attempt(start + SECOND * 3);
        patience.end_attempt();
        assert_eq!(run(&mut patience, start, |_| true), Some((Elapsed::Total, SECOND * 10)));
        assert_eq!(patience.left(start + SECOND * 4), Some(SECOND * 6));
        assert_eq!(patience.left(start + SECOND * 40), Some(Duration::ZERO));
    }

    #[test]
    fn what_stands_still_is_given_up_and_what_moves_is_not() {
        let start = Clock::System.now();
        let idle = Allowance { idle: Some(SECOND * 4), ..Allowance::default() };
        assert_eq!(run(&mut Patience::new(idle, start), start, |_| false), Some((Elapsed::Idle, SECOND * 4)));
        assert_eq!(run(&mut Patience::new(idle, start), start, |_| true), None);
        let stops = |at: Duration| at <= SECOND * 20;
        let given_up = run(&mut Patience::new(idle, start), start, stops);
        assert_eq!(given_up, Some((Elapsed::Idle, SECOND * 24)));
    }

    #[test]
    fn whoever_is_asked_late_is_not_given_up_for_that() {
        let start = Clock::System.now();
        let idle = Allowance { idle: Some(SECOND * 4), ..Allowance::default() };
        let mut patience = Patience::new(idle, start);
        assert_eq!(patience.handle_timeout(start + SECOND * 600, false), None);
    }
}
