//! What this node knows of using one service, beyond its single endpoints; outlives route tables.
//!
//! Which endpoints are out is decided by [`Outliers`]; this is the lock around it, the records it is fed
//! with, and the telling. A request touches atomics only, unless an endpoint fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;
use tracing::info;

use crate::outlier::{Outliers, Reason, Record, Settings, Verdict, Window};
use crate::route::Target;

/// The use of one service.
pub(crate) struct Usage {
    service: ServiceName,
    created: Instant,
    watched: Mutex<Watched>,
    /// Errors in a row after which the outliers are asked; 0 is never.
    consecutive_errors: AtomicU32,
    /// Milliseconds of an interval, and when this one ends, after `created`.
    interval: AtomicU64,
    interval_end: AtomicU64,
}

/// What was answered before nothing was asked for so many intervals says nothing of now. Work that comes in batches,
/// once a minute, is judged.
const INTERVALS_KEPT: u64 = 6;

/// When an interval ended that nobody has judged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Within the last [`INTERVALS_KEPT`].
    Now,
    /// Before that: nothing has been asked since.
    LongAgo,
}

struct Watched {
    outliers: Outliers<Target>,
    records: BTreeMap<Target, Arc<Record>>,
}

impl Watched {
    /// Endpoints that take no work at present; not those that are gone, though work may hold them.
    fn broken(&self) -> usize {
        self.records.values().filter(|record| record.is_broken()).count()
    }
}

impl Usage {
    /// Nothing has been used yet.
    pub(crate) fn new(service: ServiceName, settings: &Settings, now: Instant) -> Arc<Self> {
        let interval = settings.interval.as_millis() as u64;
        Arc::new(Self {
            service,
            created: now,
            watched: Mutex::new(Watched { outliers: Outliers::new(*settings), records: BTreeMap::new() }),
            consecutive_errors: AtomicU32::new(settings.consecutive_errors),
            interval: AtomicU64::new(interval),
            interval_end: AtomicU64::new(interval),
        })
    }

    /// Other settings from now on.
    pub(crate) fn set_settings(&self, settings: &Settings) {
        self.consecutive_errors.store(settings.consecutive_errors, Ordering::Relaxed);
        self.interval.store(settings.interval.as_millis() as u64, Ordering::Relaxed);
        self.lock().outliers.set_settings(*settings);
    }

    /// These are the endpoints from now on, each with its record.
    pub(crate) fn set_members<'e>(
        &self,
        members: impl ExactSizeIterator<Item = (&'e Target, &'e Arc<Record>)> + Clone,
    ) {
        let mut watched = self.lock();
        let is_known = |(target, _): (&Target, _)| watched.records.contains_key(target);
        if watched.records.len() == members.len() && members.clone().all(is_known) {
            return;
        }
        watched.records = members.map(|(target, record)| (target.clone(), record.clone())).collect();
        let Watched { outliers, records } = &mut *watched;
        let out = outliers.out();
        for target in &outliers.set_members(records.len(), |target| records.contains_key(target)) {
            self.let_back(target, &records[target], "fewer may be out than are");
        }
        if out != watched.outliers.out() {
            self.show(&watched);
        }
    }

    /// Errors in a row after which an endpoint is out; 0 is never.
    pub(crate) fn consecutive_errors(&self) -> u32 {
        self.consecutive_errors.load(Ordering::Relaxed)
    }

    /// An endpoint has failed so often in a row. An endpoint that stays in for want of others is looked at
    /// again after as many errors more.
    pub(crate) fn handle_errors(&self, target: &Target, in_a_row: u32, now: Instant) {
        let limit = self.consecutive_errors();
        if limit == 0 || !in_a_row.is_multiple_of(limit) {
            return;
        }
        let mut watched = self.lock();
        // Work may be under way with one that is not used any more.
        if !watched.records.contains_key(target) {
            return;
        }
        let broken = watched.broken();
        if let Some(reason) = watched.outliers.handle_errors(target, in_a_row, broken, now) {
            self.put_out(&watched, target, reason, now);
        }
    }

    /// Whether an interval has ended; says so once for each. Whoever hears it has it judged.
    pub(crate) fn poll_interval(&self, now: Instant) -> Option<Ended> {
        let millis = now.saturating_duration_since(self.created).as_millis() as u64;
        let end = self.interval_end.load(Ordering::Relaxed);
        if millis < end {
            return None;
        }
        let interval = self.interval.load(Ordering::Relaxed);
        let next = millis + interval;
        self.interval_end.compare_exchange(end, next, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(if millis < end + interval * INTERVALS_KEPT { Ended::Now } else { Ended::LongAgo })
    }

    /// Compares what the endpoints have done in the interval that has ended. What they did before nobody asked
    /// anything for some of them is forgotten: it says nothing of them now.
    pub(crate) fn judge(&self, ended: Ended, now: Instant) {
        let mut watched = self.lock();
        let windows: Vec<(Target, Window)> =
            watched.records.iter().map(|(target, record)| (target.clone(), record.take_window())).collect();
        if ended == Ended::LongAgo {
            return;
        }
        let broken = watched.broken();
        for (target, reason) in watched.outliers.handle_interval(&windows, broken, now) {
            self.put_out(&watched, &target, reason, now);
        }
    }

    /// Whether an endpoint that is out may get work.
    pub(crate) fn verdict(&self, target: &Target, now: Instant) -> Verdict {
        self.lock().outliers.verdict(target, now)
    }

    /// Whether the asker may make the trial of one that is out: nobody else does meanwhile.
    pub(crate) fn begin_trial(&self, target: &Target, now: Instant) -> bool {
        self.lock().outliers.begin_trial(target, now)
    }

    /// How work went that an endpoint had `begun` then, and that is out. Gives the beginning of its trial if it is
    /// back.
    pub(crate) fn handle_trial(
        &self,
        target: &Target,
        record: &Record,
        is_good: bool,
        begun: Instant,
        now: Instant,
    ) -> Option<Instant> {
        let mut watched = self.lock();
        let trial = watched.outliers.handle_trial(target, is_good, begun, now);
        if trial.is_some() {
            self.let_back(target, record, "its trial was good");
            self.show(&watched);
        }
        trial
    }

    /// The endpoint is not what it was.
    pub(crate) fn forgive(&self, target: &Target, record: &Record) {
        let mut watched = self.lock();
        if watched.outliers.forgive(target) {
            self.let_back(target, record, "its node has begun anew");
            self.show(&watched);
        } else {
            record.set_out(false);
        }
    }

    /// Why an endpoint is out, and until when there is no trial.
    pub(crate) fn ejection(&self, target: &Target) -> Option<(Reason, Instant)> {
        self.lock().outliers.ejection(target)
    }

    fn put_out(&self, watched: &Watched, target: &Target, reason: Reason, now: Instant) {
        if let Some(record) = watched.records.get(target) {
            record.set_out(true);
        }
        let lasts = watched.outliers.ejection(target).map_or(Duration::ZERO, |(_, until)| until - now);
        let (service, node) = (self.service.to_string(), &target.owner.node);
        info!(service, %node, id = %target.instance, %reason, ?lasts, "endpoint ejected");
        metrics::counter!("starling_ejections_total", "service" => service, "reason" => reason.as_str())
            .increment(1);
        self.show(watched);
    }

    fn let_back(&self, target: &Target, record: &Record, why: &str) {
        record.set_out(false);
        info!(service = %self.service, node = %target.owner.node, id = %target.instance, why, "endpoint back");
    }

    fn show(&self, watched: &Watched) {
        let gauge = metrics::gauge!("starling_ejected_endpoints", "service" => self.service.to_string());
        gauge.set(watched.outliers.out() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use starling_gossip::clock::Clock;
    use starling_gossip::record::Owner;

    use super::*;

    fn target(nth: u8) -> Target {
        let identity = "spiffe://acme/svc/web".parse().expect("an identity");
        let owner = Owner { identity, node: format!("node-{nth}").parse().expect("a name") };
        Target { owner, instance: "web".parse().expect("a label"), address: ([127, 0, 0, 1], 7_400).into() }
    }

    #[test]
    fn an_interval_ends_once_and_one_that_ended_long_ago_is_known_for_it() {
        let (start, settings) = (Clock::System.now(), Settings::default());
        let usage = Usage::new("web".parse().expect("a name"), &settings, start);
        let at = |millis| usage.poll_interval(start + Duration::from_millis(millis));
        assert_eq!(at(9_999), None);
        assert_eq!((at(10_001), at(10_002)), (Some(Ended::Now), None));
        assert_eq!(at(29_000), Some(Ended::Now), "a few seconds late");
        assert_eq!(at(69_000), Some(Ended::Now), "the next batch");
        assert_eq!((at(139_001), at(139_002)), (Some(Ended::LongAgo), None));
        assert_eq!(at(149_001), Some(Ended::Now));
    }

    #[test]
    fn what_was_answered_before_a_pause_puts_nobody_out_after_it() {
        let (start, settings) = (Clock::System.now(), Settings::default());
        for (ended, out) in [(Ended::LongAgo, 0), (Ended::Now, 1)] {
            let usage = Usage::new("web".parse().expect("a name"), &settings, start);
            let members: Vec<(Target, Arc<Record>)> =
                (0..10).map(|nth| (target(nth), Arc::default())).collect();
            usage.set_members(members.iter().map(|(target, record)| (target, record)));
            for (nth, (_, record)) in members.iter().enumerate() {
                (0..100_u64).for_each(|at| {
                    let _ = if nth == 0 {
                        record.handle_error(at, at)
                    } else {
                        record.handle_answer(Duration::ZERO);
                        0
                    };
                });
            }
            usage.judge(ended, start + settings.interval);
            assert_eq!(usage.lock().outliers.out(), out, "{ended:?}");
            assert_eq!(members[0].1.take_window(), Window::default(), "an interval begins anew");
        }
    }
}
