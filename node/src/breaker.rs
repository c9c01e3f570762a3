//! STATE MACHINE: failures of one endpoint -> may it be tried?
//!
//! A failed endpoint is left alone for a while that doubles with every failure in a row, then one
//! trial at a time decides. It counts nothing and averages nothing; it never sees a clock.

use std::time::Duration;

use starling_gossip::clock::Instant;

/// Left alone after the first failure. A workload that restarts is back within a second.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Left alone at most: an endpoint that comes back is found within this.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A trial that nobody reported on does not block the next one for longer.
const TRIAL_MAX: Duration = Duration::from_secs(5);

/// What kind of failure it was, which decides who makes the trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node cannot be reached: a dial in the background is trial enough.
    Unreachable,
    /// The node answers, but its workload does not: only a request can tell.
    Refused,
}

/// Whether an endpoint may be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As usual.
    Closed,
    /// Not yet.
    Open,
    /// Once, by whoever begins the trial first and reports on it.
    Trial(Fault),
}

/// The state of one endpoint.
#[derive(Debug, Default)]
pub struct Breaker {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    fault: Fault,
    failures: u32,
    until: Instant,
    trial: bool,
}

impl Breaker {
    /// Whether the endpoint may be tried. Gives no trial away.
    pub fn verdict(&self, now: Instant) -> Verdict {
        match &self.open {
            None => Verdict::Closed,
            Some(open) if now < open.until => Verdict::Open,
            Some(open) => Verdict::Trial(open.fault),
        }
    }

    /// What it failed by, if it has not taken work since.
    pub fn fault(&self) -> Option<Fault> {
        self.open.as_ref().map(|open| open.fault)
    }

    /// Nothing has failed, and yet the node may not be there: a trial is due at once. `false` if a failure is known.
    pub fn suspect(&mut self, now: Instant) -> bool {
        if self.open.is_some() {
            return false;
        }
        self.open = Some(Open { fault: Fault::Unreachable, failures: 0, until: now, trial: false });
        true
    }

    /// The asker makes the trial: nobody else does until it is reported or overdue.
    pub fn begin_trial(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.until = now + TRIAL_MAX;
            open.trial = true;
        }
    }

    /// The endpoint took work.
    pub fn handle_success(&mut self) {
        self.open = None;
    }

    /// The endpoint failed before it took any work. Work that was under way when it first failed
    /// fails with it; only a failed trial makes the pause longer.
    pub fn handle_failure(&mut self, fault: Fault, now: Instant) {
        if let Some(open) = &mut self.open
            && now < open.until
            && !open.trial
        {
            open.fault = fault;
            return;
        }
        let failures = self.open.as_ref().map_or(0, |open| open.failures).saturating_add(1);
        let pause = PAUSE_MIN.saturating_mul(1 << (failures - 1).min(16)).min(PAUSE_MAX);
        self.open = Some(Open { fault, failures, until: now + pause, trial: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use starling_gossip::clock::Clock;

    #[test]
    fn a_failed_endpoint_gets_one_trial_at_a_time_after_growing_pauses() {
        let start = Clock::System.now();
        let mut breaker = Breaker::default();
        assert_eq!(breaker.verdict(start), Verdict::Closed);

        breaker.handle_failure(Fault::Refused, start);
        assert_eq!(breaker.verdict(start + PAUSE_MIN / 2), Verdict::Open);
        assert_eq!(breaker.verdict(start + PAUSE_MIN), Verdict::Trial(Fault::Refused));
        breaker.begin_trial(start + PAUSE_MIN);
        assert_eq!(breaker.verdict(start + PAUSE_MIN), Verdict::Open, "the trial is taken");

        breaker.handle_failure(Fault::Unreachable, start + PAUSE_MIN);
        assert_eq!(breaker.verdict(start + PAUSE_MIN * 2), Verdict::Open, "the second pause is longer");
        assert_eq!(breaker.verdict(start + PAUSE_MIN * 3), Verdict::Trial(Fault::Unreachable));
        breaker.handle_success();
        assert_eq!(breaker.verdict(start + PAUSE_MIN * 3), Verdict::Closed);
    }

    #[test]
    fn a_suspect_gets_a_trial_at_once_and_a_pause_only_if_that_fails() {
        let start = Clock::System.now();
        let mut breaker = Breaker::default();
        assert!(breaker.suspect(start));
        assert!(!breaker.suspect(start), "it is one already");
        assert_eq!(breaker.verdict(start), Verdict::Trial(Fault::Unreachable));
        breaker.begin_trial(start);
        assert_eq!(breaker.verdict(start), Verdict::Open, "the trial is taken");
        breaker.handle_failure(Fault::Unreachable, start);
        assert_eq!(breaker.verdict(start + PAUSE_MIN / 2), Verdict::Open);
        assert_eq!(breaker.verdict(start + PAUSE_MIN), Verdict::Trial(Fault::Unreachable), "its first pause");
    }

    #[test]
    fn pauses_have_an_end() {
        let start = Clock::System.now();
        let mut breaker = Breaker::default();
        let mut now = start;
        for _ in 0..100 {
            breaker.handle_failure(Fault::Refused, now);
            now += PAUSE_MAX;
            assert_eq!(breaker.verdict(now), Verdict::Trial(Fault::Refused));
            breaker.begin_trial(now);
        }
    }

    #[test]
    fn work_that_fails_together_is_one_failure() {
        let start = Clock::System.now();
        let mut breaker = Breaker::default();
        for _ in 0..50 {
            breaker.handle_failure(Fault::Refused, start);
        }
        assert_eq!(breaker.verdict(start + PAUSE_MIN), Verdict::Trial(Fault::Refused));
    }
}
