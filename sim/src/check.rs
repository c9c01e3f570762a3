//! Safety: what must hold of every snapshot of every node, at all times, whatever the network and
//! hostile members do. And progress: what must hold once faults have stopped.
//!
//! A catalogue holds nothing that its owner did not say, never goes back, and loses nobody on
//! others' word. What honest owners say is known from [`Truth`]; a hostile one may say of itself
//! what it likes, in its own services.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use starling::route;
use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;
use starling_gossip::limits::RENEWALS_MISSED_MAX;
use starling_gossip::record::{Locality, Owner, Version};
use starling_gossip::snapshot::{Member, Presence, ServiceInstance, Snapshot};

use crate::network::partition::APART;
use crate::truth::Truth;

/// The id of every host's one instance.
pub const INSTANCE_ID: &str = "main";

/// What a node decided is seen so much later at most: it publishes a changed catalogue every 20 ms, after the turn it is
/// in. So a doubt may be seen late and the lease's end, which is decided after, in time.
const SHOWN_WITHIN: Duration = Duration::from_millis(50);

/// A renewal that chance left out is asked for within so long.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// A snapshot that must not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node-{observer} {what} {subject}")]
pub struct Violation {
    /// Who published it.
    pub observer: usize,
    /// What it did.
    pub what: &'static str,
    /// About whom.
    pub subject: String,
    /// Its number, if it is anybody's.
    pub host: Option<usize>,
}

/// How one node sees another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The version of its node record.
    pub version: Option<Version>,
    /// Whether it is there; `None`: never heard of, or forgotten.
    pub presence: Option<Presence>,
    /// The number of the word it offers; 0 is none.
    pub shown: u64,
    /// Since when it is suspect.
    suspect_since: Option<Instant>,
}

/// A change of how one node sees another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Whom.
    pub subject: usize,
    /// Before.
    pub before: Seen,
    /// Now.
    pub after: Seen,
}

/// What every node has shown so far.
pub struct Checker {
    lease: Duration,
    renew: Duration,
    suspect_after: Duration,
    hears_all: bool,
    newest: BTreeMap<usize, Arc<Snapshot>>,
    /// By observer and subject.
    seen: BTreeMap<usize, Vec<Seen>>,
    passed: u64,
}

type Wrong = (&'static str, Owner);

impl Checker {
    /// For a mesh of such leases.
    pub fn new(lease: Duration, renew: Duration) -> Self {
        Self {
            lease,
            renew,
            suspect_after: (renew * (RENEWALS_MISSED_MAX + 1)).min(lease * 3 / 4),
            hears_all: false,
            newest: BTreeMap::new(),
            seen: BTreeMap::new(),
            passed: 0,
        }
    }

    /// The network loses nothing between those who reach each other: whoever is there has been heard lately, so that
    /// it is known when a lease can end at the earliest, whatever watchers said before.
    pub fn hearing_all(mut self, hears_all: bool) -> Self {
        self.hears_all = hears_all;
        self
    }

    /// How many snapshots were good.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// How `observer` sees all others, by host; nothing if it has shown nothing in this life.
    pub fn seen_by(&self, observer: usize) -> &[Seen] {
        self.seen.get(&observer).map_or(&[], Vec::as_slice)
    }

    /// The newest snapshot of `observer`.
    pub fn newest_of(&self, observer: usize) -> Option<&Arc<Snapshot>> {
        self.newest.get(&observer)
    }

    /// `observer` begins a new life, which need not know what the last one knew.
    pub fn forget(&mut self, observer: usize) {
        self.newest.remove(&observer);
        self.seen.remove(&observer);
    }

    /// Judges the next snapshot of `observer`. Returns what changed.
    pub fn observe(
        &mut self,
        truth: &Truth,
        observer: usize,
        now: Instant,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Vec<Sight>, Violation> {
        let before = self.newest.insert(observer, snapshot.clone()).unwrap_or_default();
        let mut seen = self.seen.remove(&observer).unwrap_or_default();
        seen.resize(truth.hosts().len(), Seen::default());
        let mut changed: BTreeMap<usize, Seen> = BTreeMap::new();
        let judged = judge_members(truth, &before, snapshot, &seen, &mut changed)
            .and_then(|()| judge_instances(truth, &before, snapshot, &seen, &mut changed));
        let sights = judged.and_then(|()| {
            let sights = changed.into_iter().map(|(subject, after)| {
                let before = std::mem::replace(&mut seen[subject], after);
                Sight { subject, before, after }
            });
            let mut sights: Vec<Sight> = sights.collect();
            for sight in &mut sights {
                sight.after = self.judge_sight(truth, observer, now, sight)?;
                seen[sight.subject] = sight.after;
            }
            Ok(sights)
        });
        self.seen.insert(observer, seen);
        self.passed += u64::from(sights.is_ok());
        sights.map_err(|(what, owner)| Violation {
            observer,
            what,
            host: truth.host_of(&owner),
            subject: truth.host_of(&owner).map_or_else(|| owner.to_string(), |host| format!("node-{host}")),
        })
    }

    /// Whether the presence may have become so.
    fn judge_sight(
        &self,
        truth: &Truth,
        observer: usize,
        now: Instant,
        sight: &Sight,
    ) -> Result<Seen, Wrong> {
        let Sight { subject, before, mut after } = *sight;
        let host = truth.host(subject);
        let wrong = |what| Err((what, host.owner.clone()));
        if after.presence == before.presence {
            after.suspect_since = before.suspect_since;
        } else if after.presence == Some(Presence::Suspect) {
            after.suspect_since = Some(now);
        }
        let was_awake = truth.together(observer, observer, now - self.lease);
        // Who has not been up for a lease, but knew the subject while that was there, must have doubted it first too.
        let must_have_doubted = || {
            let up_since = truth.host(observer).up_since.unwrap_or(now);
            let has_met = truth.last_together(observer, subject, Duration::ZERO) >= Some(up_since);
            was_awake || has_met && truth.together(observer, observer, up_since)
        };
        let doubted = before.suspect_since.map(|since| now.duration_since(since) + SHOWN_WITHIN);
        // Watchers doubt long before renewals are missed; that brings no lease to an earlier end.
        let heard = truth.last_together(observer, subject, self.renew * 2).filter(|_| self.hears_all);
        let ends = heard.map(|heard| heard + self.lease);
        // Who has not reached it for a lease may hear in the end how old that lease is.
        let apart_since = truth.last_together(observer, subject, Duration::ZERO);
        let has_ended = apart_since.is_some_and(|since| now >= since + self.lease);
        let left_once = host.left_life.is_some() && host.left_life == after.version.map(|it| it.incarnation);
        match (before.presence, after.presence) {
            (_, Some(Presence::Left))
                if !host.has_left && !left_once && !host.is_hostile && observer != subject =>
            {
                wrong("believes to have left")
            }
            (Some(Presence::Alive), Some(Presence::Expired)) if must_have_doubted() => {
                wrong("gave up without a doubt")
            }
            (Some(Presence::Suspect), Some(Presence::Expired))
                if was_awake
                    && (!has_ended && doubted < Some(self.lease - self.suspect_after)
                        || ends.is_some_and(|ends| now + HEARD_WITHIN < ends)) =>
            {
                wrong("gave up before its lease ended")
            }
            (Some(Presence::Alive | Presence::Suspect), None) => wrong("forgot, though it was present,"),
            _ => Ok(after),
        }
    }

    /// Whether all honest nodes that reach each other see the same, and that as it is: what is up is there
    /// with its newest word, what is down is not. Otherwise the first difference.
    pub fn difference(&self, truth: &Truth) -> Option<Difference> {
        let components = truth.components();
        let honest_up = |host: &usize| components[*host] != APART && !truth.host(*host).is_hostile;
        let all: Vec<usize> = (0..components.len()).collect();
        let observers: Vec<usize> = all.iter().copied().filter(honest_up).collect();
        for subject in all.into_iter().filter(|host| !truth.host(*host).is_hostile) {
            let host = truth.host(subject);
            let mut version = None;
            for observer in observers.iter().copied() {
                let seen = self.seen_by(observer).get(subject).copied().unwrap_or_default();
                let is_present = seen.presence.is_some_and(Presence::is_present);
                let what = match host.up_since {
                    None if is_present => Some("still believes in"),
                    None => None,
                    Some(_) if components[subject] != components[observer] => None,
                    Some(_) if !is_present => Some("does not know"),
                    Some(_) if seen.shown != host.should_be_shown() => {
                        Some("does not know the newest word of")
                    }
                    Some(_) if *version.get_or_insert(seen.version) != seen.version => {
                        Some("has another record of")
                    }
                    Some(_) => None,
                };
                if let Some(what) = what {
                    return Some(Difference { observer, what, subject });
                }
            }
        }
        None
    }

    /// Whether all honest nodes that reach each other compute equal routes, and none that leads to
    /// somebody who may not serve. Otherwise the first difference.
    pub fn route_difference(&self, truth: &Truth) -> Option<Difference> {
        let components = truth.components();
        let mut tables: BTreeMap<u16, (usize, Routes)> = BTreeMap::new();
        for (observer, component) in components.iter().enumerate() {
            if *component == APART || truth.host(observer).is_hostile {
                continue;
            }
            let Some(snapshot) = self.newest.get(&observer) else { continue };
            let routes = match routes(truth, snapshot) {
                Ok(routes) => routes,
                Err(subject) => {
                    return Some(Difference {
                        observer,
                        what: "routes to a service that is not of",
                        subject,
                    });
                }
            };
            match tables.get(component) {
                Some((first, table)) if *table != routes => {
                    return Some(Difference {
                        observer,
                        what: "computes other routes than",
                        subject: *first,
                    });
                }
                Some(_) => {}
                None => drop(tables.insert(*component, (observer, routes))),
            }
        }
        None
    }
}

/// Something that keeps a mesh from being converged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node-{observer} {what} node-{subject}")]
pub struct Difference {
    /// Who differs.
    pub observer: usize,
    /// In what.
    pub what: &'static str,
    /// About whom.
    pub subject: usize,
}

/// By service, the honest hosts that a caller anywhere would be led to, best rank first.
type Routes = BTreeMap<ServiceName, Vec<(bool, usize, u64)>>;

/// The route table as a caller computes it that is near to nobody. `Err` is a host that is led to for a
/// service that its identity may not announce.
fn routes(truth: &Truth, snapshot: &Snapshot) -> Result<Routes, usize> {
    let table = route::compute(snapshot, &Locality::default());
    let mut routes = Routes::new();
    for (service, route) in &table.routes {
        let mut candidates = Vec::new();
        for candidate in &route.candidates {
            let Some(host) = truth.host_of(&candidate.target.owner) else { continue };
            if !truth.host(host).owner.identity.may_announce(service) {
                return Err(host);
            }
            if !truth.host(host).is_hostile {
                candidates.push((candidate.rank.doubtful, host, candidate.instance.since_unix_millis));
            }
        }
        candidates.sort_unstable();
        if !candidates.is_empty() {
            routes.insert(service.clone(), candidates);
        }
    }
    Ok(routes)
}

fn judge_members(
    truth: &Truth,
    before: &Snapshot,
    after: &Snapshot,
    seen: &[Seen],
    changed: &mut BTreeMap<usize, Seen>,
) -> Result<(), Wrong> {
    let is_same = |one: &Member, other: &Member| {
        one.presence == other.presence && Arc::ptr_eq(&one.record, &other.record)
    };
    differences(&before.members, &after.members, is_same, |owner, member| {
        let Some(subject) = truth.host_of(owner) else {
            let wrong = ("holds a record that nobody signed, of", owner.clone());
            return if truth.may_be_invented(owner) { Ok(()) } else { Err(wrong) };
        };
        let now = changed.entry(subject).or_insert(seen[subject]);
        let Some(member) = member else {
            now.presence = None;
            return Ok(());
        };
        let host = truth.host(subject);
        let record = &member.record;
        let is_true = host.addresses.contains(&record.addresses[0]) && record.locality == host.locality;
        if !host.is_hostile && (!is_true || record.owner != *owner) {
            return Err(("holds a node record that was not signed by", owner.clone()));
        }
        if now.version.is_some_and(|version| record.version < version) {
            return Err(("went back in time about", owner.clone()));
        }
        now.version = Some(record.version);
        now.presence = Some(member.presence);
        Ok(())
    })
}

fn judge_instances(
    truth: &Truth,
    before: &Snapshot,
    after: &Snapshot,
    seen: &[Seen],
    changed: &mut BTreeMap<usize, Seen>,
) -> Result<(), Wrong> {
    let is_same = |one: &Vec<ServiceInstance>, other: &Vec<ServiceInstance>| {
        let mut pairs = one.iter().zip(other);
        one.len() == other.len() && pairs.all(|(one, other)| Arc::ptr_eq(&one.instance, &other.instance))
    };
    let nobody = Vec::new();
    differences(&before.services, &after.services, is_same, |service, offered| {
        let offered = offered.unwrap_or(&nobody);
        for it in offered {
            let subject = judge_instance(truth, service, it)?;
            let shown = it.instance.since_unix_millis;
            let now = changed.entry(subject).or_insert(seen[subject]);
            if !truth.host(subject).is_hostile && shown < now.shown {
                return Err(("went back in time about the instance of", it.owner.clone()));
            }
            now.shown = shown;
        }
        for it in before.services.get(service).into_iter().flatten() {
            if offered.iter().any(|other| other.owner == it.owner) {
                continue;
            }
            if let Some(subject) = truth.host_of(&it.owner) {
                let now = changed.entry(subject).or_insert(seen[subject]);
                judge_vanished(truth, subject, seen[subject], now)?;
                now.shown = 0;
            }
        }
        Ok(())
    })
}

/// Whose instance it is, if it may be offered.
fn judge_instance(truth: &Truth, service: &ServiceName, offered: &ServiceInstance) -> Result<usize, Wrong> {
    let owner = &offered.owner;
    let subject = truth.host_of(owner).ok_or(("offers an instance that nobody signed, of", owner.clone()))?;
    let host = truth.host(subject);
    if !owner.identity.may_announce(service) {
        return Err(("offers a service that may not be announced by", owner.clone()));
    }
    let said = host.word(offered.instance.since_unix_millis).and_then(|word| word.instance.as_ref());
    let is_said = said == Some(&*offered.instance) && offered.id.as_str() == INSTANCE_ID;
    if !host.is_hostile && !is_said {
        return Err(("offers what was never signed by", owner.clone()));
    }
    Ok(subject)
}

/// An instance is gone: its owner withdrew it, or began another life, or is not present itself.
fn judge_vanished(truth: &Truth, subject: usize, before: Seen, now: &Seen) -> Result<(), Wrong> {
    let host = truth.host(subject);
    let was_withdrawn = host.withdrawn_after(before.shown).is_some();
    let is_another_life =
        now.version.map(|version| version.incarnation) != before.version.map(|version| version.incarnation);
    let is_present = now.presence.is_some_and(Presence::is_present);
    if is_present && !is_another_life && !was_withdrawn && !host.is_hostile {
        return Err(("lost the instance of", host.owner.clone()));
    }
    Ok(())
}

/// Calls `on` for each key whose value differs, with the value after.
fn differences<'m, K: Ord, V>(
    before: &'m BTreeMap<K, V>,
    after: &'m BTreeMap<K, V>,
    is_same: impl Fn(&V, &V) -> bool,
    mut on: impl FnMut(&'m K, Option<&'m V>) -> Result<(), Wrong>,
) -> Result<(), Wrong> {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        match (before.peek(), after.peek()) {
            (None, None) => return Ok(()),
            (Some((old, _)), next) if next.is_none_or(|(new, _)| old < new) => {
                on(old, None)?;
                before.next();
            }
            (Some((old, was)), Some((new, is))) if old == new => {
                if !is_same(was, is) {
                    on(new, Some(is))?;
                }
                before.next();
                after.next();
            }
            (_, Some((new, is))) => {
                on(new, Some(is))?;
                after.next();
            }
            (Some(_), None) => unreachable!("the second arm takes it"),
        }
    }
}
