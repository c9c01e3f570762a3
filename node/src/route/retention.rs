//! STATE MACHINE: which endpoints this node goes on using although its view has lost them.
//!
//! Leases of a few nodes end because those nodes died. Leases of most of a service's nodes end at once
//! because this node was cut off, or because something went wrong with gossip, and then dropping them all
//! would turn a loss of news into an outage. So above a share the last known endpoints are *kept*, ranked
//! after all others, and this node asks each of them itself: one that it can reach stays, one that it has
//! failed to reach for long enough goes. Whoever is heard again is as usual; what its owner withdraws, or
//! an owner that leaves, goes at once, for that is the owner's own word.
//!
//! Snapshots, outcomes of attempts and settings go in; out come [`Retention::panics`], which
//! [`super::compute_keeping`] takes, targets to be tried, and beginnings and ends to be told. It connects
//! to nobody and reads no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;
use starling_gossip::record::{Health, Label, Owner};
use starling_gossip::snapshot::{Presence, ServiceInstance, Snapshot};

use super::Target;
use crate::config::Routing;

/// How often a kept endpoint is tried: half of the pool's longest pause between dials.
const ATTEMPT_PERIOD: Duration = Duration::from_secs(5);

/// Attempts at a time, each at most a dial long (8 s): a thousand dead ones are gone through in about four
/// minutes, and calls have 480 of the pool's 512 dials to themselves.
const ATTEMPTS_MAX: usize = 32;

/// Lost endpoints remembered for one service, and for all. The catalogue bounds what is there at a time, and
/// not what comes and goes; a member that invents instances fills its own service's room.
const LOST_PER_SERVICE_MAX: usize = 1_024;

/// See [`LOST_PER_SERVICE_MAX`].
const LOST_MAX: usize = 8_192;

/// A service whose last known endpoints are kept.
#[derive(Clone, Debug)]
pub struct Panic {
    /// Since when.
    pub since: Instant,
    /// How many endpoints it had lost then, within the window.
    pub lost: usize,
    /// Of how many.
    pub known: usize,
    /// Those that are kept now.
    pub instances: Vec<ServiceInstance>,
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// A service's endpoints are kept from now on.
    Began { service: ServiceName, lost: usize, known: usize },
    /// None of them is any more: each was heard again, withdrawn or given up.
    Ended { service: ServiceName, lasted: Duration },
}

/// An instance's owner, and its name among that one's.
type Key = (Owner, Label);

/// What one node keeps.
pub(crate) struct Retention {
    /// This node, which never loses itself: its own instances say nothing about its view of others.
    own: Owner,
    settings: Routing,
    last: Arc<Snapshot>,
    services: BTreeMap<ServiceName, Lost>,
    under_way: BTreeSet<Key>,
    transitions: VecDeque<Transition>,
    changed: bool,
}

/// What one service has lost by leases alone.
#[derive(Default)]
struct Lost {
    endpoints: BTreeMap<Key, Absent>,
    began: Option<Began>,
}

struct Began {
    since: Instant,
    lost: usize,
    known: usize,
}

/// A lost endpoint: kept, or forgotten when the window has passed.
struct Absent {
    instance: ServiceInstance,
    lost_at: Instant,
    is_kept: bool,
    /// Since when this node's own attempts fail, without a success between.
    failing_since: Option<Instant>,
    next_attempt: Instant,
}

impl Retention {
    /// For the node `own`, which has lost nothing yet.
    pub(crate) fn new(own: Owner, settings: Routing) -> Self {
        Self {
            own,
            settings,
            last: Arc::default(),
            services: BTreeMap::new(),
            under_way: BTreeSet::new(),
            transitions: VecDeque::new(),
            changed: false,
        }
    }

    /// Other settings from now on. Switching off gives up what is kept.
    pub(crate) fn set_settings(&mut self, settings: Routing, now: Instant) {
        self.settings = settings;
        if self.is_off() {
            self.retain(now, |_, _| false);
        }
    }

    /// The catalogue says this now.
    pub(crate) fn handle_snapshot(&mut self, snapshot: &Arc<Snapshot>, now: Instant) {
        self.retain(now, |(owner, _), absent| {
            // Who is not shown any more has been expired for long; that alone is no news.
            let is_gone =
                snapshot.members.get(owner).is_none_or(|member| member.presence == Presence::Expired);
            let place = snapshot.addresses.get(&absent.instance.node.addresses[0]);
            is_gone && !place.is_some_and(|claimed| claimed.contains(&owner.identity))
        });
        let before = std::mem::replace(&mut self.last, snapshot.clone());
        if self.is_off() {
            return;
        }
        let window = self.settings.panic_window;
        self.retain(now, |_, absent| {
            absent.is_kept || now.saturating_duration_since(absent.lost_at) <= window
        });
        for (service, instances) in &before.services {
            let lost: Vec<&ServiceInstance> = instances
                .iter()
                .filter(|offered| self.counts(offered) && has_expired(offered, snapshot))
                .collect();
            if !lost.is_empty() {
                self.lose(service, &lost, now);
            }
        }
    }

    /// What this node's own attempt to reach `target` has shown; `None` if nothing, for the fault was its own.
    pub(crate) fn handle_attempt(&mut self, target: &Target, reached: Option<bool>, now: Instant) {
        let key = (target.owner.clone(), target.instance.clone());
        self.under_way.remove(&key);
        let max_stale = self.settings.max_stale;
        for lost in self.services.values_mut() {
            let Some(absent) = lost.endpoints.get_mut(&key) else { continue };
            absent.next_attempt = now + ATTEMPT_PERIOD;
            match reached {
                Some(true) => absent.failing_since = None,
                Some(false) => drop(absent.failing_since.get_or_insert(now)),
                None => {}
            }
        }
        self.retain(now, |held, absent| {
            let since = absent.failing_since.filter(|_| *held == key);
            since.is_none_or(|since| now.saturating_duration_since(since) < max_stale)
        });
    }

    /// The next kept endpoint to be tried; whoever takes it reports by [`Self::handle_attempt`].
    pub(crate) fn poll_attempt(&mut self, now: Instant) -> Option<Target> {
        if self.under_way.len() >= ATTEMPTS_MAX {
            return None;
        }
        let (key, absent) = self.waiting().min_by_key(|(_, absent)| absent.next_attempt)?;
        if absent.next_attempt > now {
            return None;
        }
        let (key, target) = (key.clone(), Target::of(&absent.instance));
        self.under_way.insert(key);
        Some(target)
    }

    /// When [`Self::poll_attempt`] may have one.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.under_way.len() >= ATTEMPTS_MAX {
            return None;
        }
        self.waiting().map(|(_, absent)| absent.next_attempt).min()
    }

    /// Whether [`Self::panics`] says something else than when this was asked last.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What has begun and ended, in this order.
    pub(crate) fn poll_transition(&mut self) -> Option<Transition> {
        self.transitions.pop_front()
    }

    /// What is kept, by service.
    pub(crate) fn panics(&self) -> BTreeMap<ServiceName, Panic> {
        let panic = |(service, lost): (&ServiceName, &Lost)| {
            let began = lost.began.as_ref()?;
            let kept = lost.endpoints.values().filter(|absent| absent.is_kept);
            let instances = kept.map(|absent| absent.instance.clone()).collect();
            let Began { since, lost, known } = *began;
            Some((service.clone(), Panic { since, lost, known, instances }))
        };
        self.services.iter().filter_map(panic).collect()
    }

    fn is_off(&self) -> bool {
        matches!(self.settings.panic_threshold, 0 | 100..)
    }

    /// Whether losing it is a loss: others than this node's own, that might have taken calls.
    fn counts(&self, offered: &ServiceInstance) -> bool {
        offered.owner != self.own && matches!(offered.instance.health, Health::Healthy | Health::Unknown)
    }

    fn lose(&mut self, service: &ServiceName, instances: &[&ServiceInstance], now: Instant) {
        let mut room = LOST_MAX - self.services.values().map(|lost| lost.endpoints.len()).sum::<usize>();
        let present = self.last.services.get(service).into_iter().flatten();
        let present = present.filter(|offered| self.counts(offered)).count();
        let lost = self.services.entry(service.clone()).or_default();
        room = room.min(LOST_PER_SERVICE_MAX - lost.endpoints.len());
        for instance in instances.iter().take(room) {
            let absent = Absent {
                instance: (*instance).clone(),
                lost_at: now,
                is_kept: false,
                failing_since: None,
                next_attempt: now,
            };
            lost.endpoints.insert((instance.owner.clone(), instance.id.clone()), absent);
        }
        let count = lost.endpoints.len();
        let known = present + count;
        if count * 100 <= usize::from(self.settings.panic_threshold) * known {
            return;
        }
        lost.endpoints.values_mut().for_each(|absent| absent.is_kept = true);
        self.changed = true;
        if lost.began.is_none() {
            lost.began = Some(Began { since: now, lost: count, known });
            self.transitions.push_back(Transition::Began { service: service.clone(), lost: count, known });
        }
    }

    /// Kept endpoints that nobody tries at this moment.
    fn waiting(&self) -> impl Iterator<Item = (&Key, &Absent)> {
        let all = self.services.values().flat_map(|lost| &lost.endpoints);
        all.filter(|(key, absent)| absent.is_kept && !self.under_way.contains(*key))
    }

    /// Forgets what `keep` does not hold for, and with the last kept endpoint the panic.
    fn retain(&mut self, now: Instant, keep: impl Fn(&Key, &Absent) -> bool) {
        for (service, lost) in &mut self.services {
            let gone = lost.endpoints.extract_if(.., |key, absent| !keep(key, absent));
            self.changed |= gone.filter(|(_, absent)| absent.is_kept).count() > 0;
            if lost.endpoints.values().any(|absent| absent.is_kept) {
                continue;
            }
            if let Some(began) = lost.began.take() {
                let lasted = now.saturating_duration_since(began.since);
                self.transitions.push_back(Transition::Ended { service: service.clone(), lasted });
            }
        }
        self.services.retain(|_, lost| !lost.endpoints.is_empty());
    }
}

/// Whether the only thing that `snapshot` has against an instance is its owner's lease.
fn has_expired(offered: &ServiceInstance, snapshot: &Snapshot) -> bool {
    let member = snapshot.members.get(&offered.owner);
    member.is_some_and(|member| member.presence == Presence::Expired)
}

#[cfg(test)]
mod tests;
