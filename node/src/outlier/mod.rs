//! STATE MACHINE: how a service's endpoints answer -> which of them is left out for a while?
//!
//! `breaker` judges endpoints that take no work. These take it and do it badly: they fail several times in
//! a row, fail more often than the others, or take far longer. An endpoint that is *ejected* gets nothing
//! for a time that grows with each ejection; then one trial decides.
//!
//! Where many endpoints are bad, it is not the endpoints: no more than a share of them is out at a time,
//! and never the last that could take work.

mod record;
mod window;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use starling_gossip::clock::Instant;

pub(crate) use record::{Record, Window};

/// A trial that nobody reported on does not block the next one for longer.
const TRIAL_MAX: Duration = Duration::from_secs(5);

/// When a service's endpoints are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Errors in a row after which an endpoint is out; 0 is never. As in Envoy.
    pub consecutive_errors: u32,
    /// Whether those are out that fail far more often than the others.
    pub success_rate: bool,
    /// Whether those are out that take far longer than the others.
    pub latency: bool,
    /// Over how long success rates and latencies are compared; as in Envoy.
    pub interval: Duration,
    /// Answers in an interval without which an endpoint's are not compared: of fewer nothing follows.
    pub requests_min: u32,
    /// How long the first ejection lasts; the second twice as long, and so on. As in Envoy.
    pub ejection_time: Duration,
    /// How long one lasts at most; as in Envoy.
    pub ejection_time_max: Duration,
    /// The share of a service's endpoints that may be out, in percent; one may, however few there are, and 0
    /// is none. At a third, the others have half as much again to do.
    pub ejected_max: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            success_rate: true,
            latency: true,
            interval: Duration::from_secs(10),
            requests_min: 50,
            ejection_time: Duration::from_secs(30),
            ejection_time_max: Duration::from_secs(300),
            ejected_max: 33,
        }
    }
}

/// Why an endpoint is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// So many errors in a row.
    ConsecutiveErrors(u32),
    /// So many percent of its answers were good, and of the others'.
    SuccessRate { percent: u8, others: u8 },
    /// So long its answers took in the mean, and those of most.
    Latency { mean: Duration, median: Duration },
}

/// Whether an endpoint may get work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As usual.
    In,
    /// Not yet.
    Out,
    /// Once, by whoever begins the trial first.
    Trial,
}

/// What is known of a service's endpoints, which are called `K`.
#[derive(Debug)]
pub(crate) struct Outliers<K> {
    settings: Settings,
    members: usize,
    /// Those that are out, and those that have been.
    known: BTreeMap<K, Ejected>,
}

#[derive(Debug)]
struct Ejected {
    reason: Reason,
    /// How often lately.
    times: u32,
    until: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Out,
    /// Since when.
    OnTrial(Instant),
    /// It is back, and its past not forgotten yet.
    Back,
}

impl Reason {
    /// As in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveErrors(_) => "consecutive_errors",
            Self::SuccessRate { .. } => "success_rate",
            Self::Latency { .. } => "latency",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveErrors(errors) => write!(f, "{errors} errors in a row"),
            Self::SuccessRate { percent, others } => {
                write!(f, "{percent} % of its answers were good, and {others} % of the others'")
            }
            Self::Latency { mean, median } => {
                let (mean, median) = (mean.as_millis(), median.as_millis());
                write!(f, "its answers took {mean} ms in the mean, and {median} ms with most")
            }
        }
    }
}

impl<K: Ord + Clone> Outliers<K> {
    /// Nobody is out.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, members: 0, known: BTreeMap::new() }
    }

    /// Other settings from now on.
    pub(crate) fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// There are so many endpoints now, and none but those that `is_member` holds for. Gives those that come
    /// back because fewer may be out.
    pub(crate) fn set_members(&mut self, count: usize, is_member: impl Fn(&K) -> bool) -> Vec<K> {
        self.members = count;
        self.known.retain(|who, _| is_member(who));
        let mut back = Vec::new();
        while self.out() > self.most() {
            let out = self.known.iter_mut().filter(|(_, ejected)| ejected.state != State::Back);
            let Some((who, ejected)) = out.min_by_key(|(_, ejected)| ejected.until) else { break };
            ejected.state = State::Back;
            back.push(who.clone());
        }
        back
    }

    /// Errors in a row, of one endpoint, when so many others are `broken` anyway. `Some` if it is out for
    /// that.
    pub(crate) fn handle_errors(
        &mut self,
        who: &K,
        in_a_row: u32,
        broken: usize,
        now: Instant,
    ) -> Option<Reason> {
        let limit = self.settings.consecutive_errors;
        let reason = (limit > 0 && in_a_row >= limit).then_some(Reason::ConsecutiveErrors(in_a_row))?;
        self.eject(who, reason, broken, now).then_some(reason)
    }

    /// What all have done in an interval. Gives those that are out for it, the worst first.
    pub(crate) fn handle_interval(
        &mut self,
        windows: &[(K, Window)],
        broken: usize,
        now: Instant,
    ) -> Vec<(K, Reason)> {
        self.known.retain(|_, ejected| {
            let is_back = ejected.state == State::Back;
            ejected.times -= u32::from(is_back);
            !is_back || ejected.times > 0
        });
        let compared: Vec<_> = windows
            .iter()
            .filter(|(who, window)| window.answers >= self.settings.requests_min.max(1) && self.is_in(who))
            .collect();
        let only: Vec<Window> = compared.iter().map(|(_, window)| *window).collect();
        let rates = if self.settings.success_rate { window::failing(&only) } else { Vec::new() };
        let latencies = if self.settings.latency { window::slow(&only) } else { Vec::new() };
        let mut out = Vec::new();
        for (index, reason) in rates.into_iter().chain(latencies) {
            let who = &compared[index].0;
            if self.eject(who, reason, broken, now) {
                out.push((who.clone(), reason));
            }
        }
        out
    }

    /// Whether it may get work. Gives no trial away.
    pub(crate) fn verdict(&self, who: &K, now: Instant) -> Verdict {
        match self.known.get(who) {
            Some(ejected) if ejected.state != State::Back && now < ejected.until => Verdict::Out,
            Some(ejected) if ejected.state != State::Back => Verdict::Trial,
            _ => Verdict::In,
        }
    }

    /// Whether the asker may give it work. A trial is the asker's then: nobody else makes it until it is reported or
    /// overdue.
    pub(crate) fn begin_trial(&mut self, who: &K, now: Instant) -> bool {
        match self.known.get_mut(who).filter(|ejected| ejected.state != State::Back) {
            Some(ejected) if now < ejected.until => false,
            Some(ejected) => {
                ejected.until = now + TRIAL_MAX;
                // One that takes longer than the next begins is as good.
                let since = if let State::OnTrial(since) = ejected.state { since } else { now };
                ejected.state = State::OnTrial(since);
                true
            }
            None => true,
        }
    }

    /// How work of one that is out went, which had `begun` then. What was under way before its trial says nothing
    /// new. Gives the beginning of its trial if it is back.
    pub(crate) fn handle_trial(
        &mut self,
        who: &K,
        is_good: bool,
        begun: Instant,
        now: Instant,
    ) -> Option<Instant> {
        let settings = self.settings;
        let ejected = self.known.get_mut(who)?;
        let State::OnTrial(since) = ejected.state else { return None };
        if begun < since {
            return None;
        }
        if is_good {
            ejected.state = State::Back;
            return Some(since);
        }
        ejected.times = ejected.times.saturating_add(1);
        ejected.until = now + ejection_time(&settings, ejected.times);
        ejected.state = State::Out;
        None
    }

    /// It is not what it was: nothing speaks against it. `true` if it was out.
    pub(crate) fn forgive(&mut self, who: &K) -> bool {
        self.known.remove(who).is_some_and(|ejected| ejected.state != State::Back)
    }

    /// Why one is out, and until when there is no trial.
    pub(crate) fn ejection(&self, who: &K) -> Option<(Reason, Instant)> {
        let ejected = self.known.get(who).filter(|ejected| ejected.state != State::Back)?;
        Some((ejected.reason, ejected.until))
    }

    /// How many are out.
    pub(crate) fn out(&self) -> usize {
        self.known.values().filter(|ejected| ejected.state != State::Back).count()
    }

    fn most(&self) -> usize {
        match self.settings.ejected_max {
            0 => 0,
            percent => (self.members * usize::from(percent) / 100).max(1),
        }
    }

    fn is_in(&self, who: &K) -> bool {
        self.known.get(who).is_none_or(|ejected| ejected.state == State::Back)
    }

    fn eject(&mut self, who: &K, reason: Reason, broken: usize, now: Instant) -> bool {
        let out = self.out();
        let usable = self.members.saturating_sub(out + broken);
        if !self.is_in(who) || out >= self.most() || usable < 2 {
            return false;
        }
        let times = self.known.get(who).map_or(0, |ejected| ejected.times).saturating_add(1);
        let until = now + ejection_time(&self.settings, times);
        self.known.insert(who.clone(), Ejected { reason, times, until, state: State::Out });
        true
    }
}

fn ejection_time(settings: &Settings, times: u32) -> Duration {
    settings.ejection_time.saturating_mul(times).min(settings.ejection_time_max)
}

#[cfg(test)]
mod tests;
