//! The route table in use: each candidate joined to its [`Endpoint`].
//!
//! A request reads one pointer and picks; it takes no lock and waits for no gossip. A new table is
//! built off the request path and swapped in, keeping the endpoints that both name.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use starling_gossip::identity::ServiceName;

use crate::balance::{self, Chance, Shares};
use crate::endpoint::{Claim, Endpoint};
use crate::retry::RetryBudget;
use crate::route::{Panic, Route, RouteTable, Target};
use crate::telemetry::exchange::{Direction, Meter};

/// When all of a service's endpoints fail at once, work waits so long for one to come back: a
/// restart, a lost packet. Later work fails at once, until one does.
pub(crate) const HOLD: Duration = Duration::from_secs(1);

/// How often held work looks again.
pub(crate) const HOLD_STEP: Duration = Duration::from_millis(25);

/// The route table in use.
#[derive(Default)]
pub(crate) struct LiveTable {
    /// Which snapshot it came from.
    pub(crate) generation: u64,
    routes: BTreeMap<ServiceName, Arc<LiveRoute>>,
    /// The services whose last known endpoints are kept.
    pub(crate) panics: BTreeMap<ServiceName, Panic>,
}

/// One service's route in use.
pub(crate) struct LiveRoute {
    /// As computed.
    pub(crate) route: Route,
    /// One for each candidate of `route`, in the same order.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    groups: Vec<Group>,
    meter: Arc<Meter>,
    hold: Arc<Hold>,
    retries: Arc<RetryBudget>,
}

/// Candidates of one rank, next to each other.
struct Group {
    range: Range<usize>,
    shares: Shares,
}

/// Since when a service has had no usable endpoint; outlives the route.
struct Hold {
    created: Instant,
    /// Milliseconds after `created`, plus one; 0 is "it has one".
    since: AtomicU64,
}

impl LiveTable {
    /// The table after this one. `endpoint` makes those that this one does not have.
    pub(crate) fn next(
        &self,
        table: RouteTable,
        clock: &Clock,
        endpoint: impl Fn(&ServiceName, &Target) -> Arc<Endpoint>,
    ) -> Self {
        let live = |(service, route): (ServiceName, Route)| {
            let previous = self.routes.get(&service);
            let live = LiveRoute::new(&service, route, previous, clock, &endpoint);
            (service, Arc::new(live))
        };
        Self {
            generation: table.generation,
            routes: table.routes.into_iter().map(live).collect(),
            panics: table.panics,
        }
    }

    /// Whether no service is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The route of `service`.
    pub(crate) fn route(&self, service: &str) -> Option<&Arc<LiveRoute>> {
        self.routes.get(service)
    }

    /// Every endpoint of every route.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.routes.values().flat_map(|route| &route.endpoints)
    }

    /// All routes.
    pub(crate) fn routes(&self) -> impl Iterator<Item = (&ServiceName, &Arc<LiveRoute>)> {
        self.routes.iter()
    }
}

impl LiveRoute {
    fn new(
        service: &ServiceName,
        route: Route,
        previous: Option<&Arc<LiveRoute>>,
        clock: &Clock,
        endpoint: impl Fn(&ServiceName, &Target) -> Arc<Endpoint>,
    ) -> Self {
        let known: BTreeMap<&Target, &Arc<Endpoint>> = previous
            .iter()
            .flat_map(|previous| previous.endpoints.iter())
            .map(|endpoint| (endpoint.target(), endpoint))
            .collect();
        let endpoints = route
            .candidates
            .iter()
            .map(|candidate| {
                let held = known.get(&candidate.target).map(|endpoint| (*endpoint).clone());
                let endpoint = held.unwrap_or_else(|| endpoint(service, &candidate.target));
                endpoint.handle_incarnation(candidate.incarnation);
                endpoint
            })
            .collect();
        let hold = match previous {
            Some(previous) => previous.hold.clone(),
            None => Arc::new(Hold { created: clock.now(), since: AtomicU64::new(0) }),
        };
        let retries = match previous {
            Some(previous) => previous.retries.clone(),
            None => Arc::new(RetryBudget::new(clock.now())),
        };
        let meter = match previous {
            Some(previous) => previous.meter.clone(),
            None => Meter::new(Direction::Outbound, Some(service), ""),
        };
        Self { groups: groups(&route), endpoints, route, meter, hold, retries }
    }

    /// Counts work that reached no endpoint.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// How much of its work may be sent again; outlives the route.
    pub(crate) fn retries(&self) -> &RetryBudget {
        &self.retries
    }

    /// Picks an endpoint that is not among `tried`, of the best rank that has a usable one.
    pub(crate) fn pick(&self, tried: &[Target], now: Instant, chance: &Chance) -> Option<Arc<Endpoint>> {
        for group in &self.groups {
            let endpoints = &self.endpoints[group.range.clone()];
            let usable = |index: usize| {
                let endpoint: &Arc<Endpoint> = &endpoints[index];
                endpoint.may_be_tried(now) && !tried.contains(endpoint.target())
            };
            let load = |index: usize| endpoints[index].in_flight();
            // One that is being tried in the background is not usable when asked again, so each
            // turn has one fewer.
            while let Some(index) = balance::pick(&group.shares, chance, usable, load) {
                if matches!(endpoints[index].claim(now), Claim::Granted) {
                    self.hold.end();
                    return Some(endpoints[index].clone());
                }
            }
        }
        None
    }

    /// Whether there is a usable endpoint that is not among `tried`.
    pub(crate) fn has_other(&self, tried: &[Target], now: Instant) -> bool {
        let usable =
            |endpoint: &Arc<Endpoint>| endpoint.may_be_tried(now) && !tried.contains(endpoint.target());
        self.endpoints.iter().any(usable)
    }

    /// Whether work for which [`Self::pick`] found nothing should wait a little and ask again.
    pub(crate) fn may_hold(&self, now: Instant) -> bool {
        !self.endpoints.is_empty() && self.hold.since(now) < HOLD
    }

    /// Each candidate's share of new work, in percent, if all of its rank are usable.
    pub(crate) fn shares(&self, now: Instant) -> Vec<f64> {
        let mut shares = vec![0.0; self.endpoints.len()];
        let usable = |index: &usize| self.endpoints[*index].may_be_tried(now);
        let Some(group) = self.groups.iter().find(|group| group.range.clone().any(|index| usable(&index)))
        else {
            return shares;
        };
        let weight = |index: usize| f64::from(self.route.candidates[index].instance.weight);
        let total: f64 = group.range.clone().filter(usable).map(weight).sum();
        for index in group.range.clone().filter(usable) {
            shares[index] = weight(index) * 100.0 / total;
        }
        shares
    }
}

impl Hold {
    fn end(&self) {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
    }

    /// How long there has been no usable endpoint; begins to count when first asked.
    fn since(&self, now: Instant) -> Duration {
        let millis = now.saturating_duration_since(self.created).as_millis() as u64 + 1;
        match self.since.compare_exchange(0, millis, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Duration::ZERO,
            Err(since) => Duration::from_millis(millis.saturating_sub(since)),
        }
    }
}

fn groups(route: &Route) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut start = 0;
    for same_rank in route.candidates.chunk_by(|a, b| a.rank == b.rank) {
        let end = start + same_rank.len();
        let shares = Shares::new(same_rank.iter().map(|candidate| candidate.instance.weight));
        groups.push(Group { range: start..end, shares });
        start = end;
    }
    groups
}
