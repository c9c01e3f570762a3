//! One route in use, and the choice among its endpoints.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;

use super::hold::{HOLD, Hold};
use crate::balance::{Asked, Chance, Field, Group, Load, stable_hash};
use crate::circuit::{Circuit, Kind, Room};
use crate::config::UpstreamSettings;
use crate::endpoint::{Claim, Endpoint};
use crate::proxy::failure::{Failure, Flag};
use crate::retry::RetryBudget;
use crate::route::{Candidate, Route, Target};
use crate::telemetry::exchange::{Direction, Meter, count_overflow};
use crate::usage::Usage;

/// Endpoints looked at for the least bad one, where none is good.
const LAST_LOOKS_MAX: usize = 64;

/// What a newcomer takes of its share at the least: enough to become warm by; as in Envoy.
const READINESS_MIN: f32 = 0.1;

/// One service's route in use, or that of a part of it.
pub(crate) struct LiveRoute {
    /// As computed, as far as it is used.
    pub(crate) route: Arc<Route>,
    /// As computed for the whole service.
    pub(super) basis: Arc<Route>,
    /// One for each candidate of `route`, in the same order.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// How it is used.
    pub(crate) settings: UpstreamSettings,
    service: ServiceName,
    tiers: Vec<Tier>,
    meter: Arc<Meter>,
    usage: Arc<Usage>,
    lasting: Arc<Lasting>,
}

/// What outlives the route.
struct Lasting {
    hold: Hold,
    retries: RetryBudget,
    circuit: Arc<Circuit>,
}

/// What a route is made with.
pub(super) struct Plan<'p> {
    pub(super) service: &'p ServiceName,
    pub(super) usage: &'p Arc<Usage>,
    pub(super) basis: &'p Arc<Route>,
    pub(super) settings: UpstreamSettings,
    pub(super) now: Instant,
}

/// Candidates of one rank, next to each other.
struct Tier {
    range: Range<usize>,
    group: Group,
    /// Who joined since then is a newcomer: others have been here, and warm.
    warm_since: Instant,
}

/// One piece of work on its way.
#[derive(Clone, Copy)]
pub(crate) struct Errand<'e> {
    /// Where it has been.
    pub(crate) tried: &'e [Target],
    /// What a hash decides by.
    pub(crate) key: Option<u64>,
    pub(crate) now: Instant,
    pub(crate) chance: &'e Chance,
}

/// What the balancer asks of a tier's endpoints.
struct Candidates<'c> {
    endpoints: &'c [Arc<Endpoint>],
    errand: Errand<'c>,
    /// Only those are usable that need not be reached first.
    at_once: bool,
    slow_start: Duration,
    warm_since: Instant,
    circuit: &'c Circuit,
}

impl LiveRoute {
    pub(super) fn new(
        plan: Plan<'_>,
        route: Arc<Route>,
        endpoints: Vec<Arc<Endpoint>>,
        previous: Option<&Self>,
    ) -> Self {
        let Plan { service, usage, basis, settings, now } = plan;
        let lasting = match previous {
            Some(previous) => previous.lasting.clone(),
            None => Arc::new(Lasting {
                hold: Hold::new(now),
                retries: RetryBudget::new(now),
                circuit: Arc::default(),
            }),
        };
        let meter = match previous {
            Some(previous) => previous.meter.clone(),
            None => Meter::new(Direction::Outbound, Some(service), ""),
        };
        let tiers = tiers(&route, &endpoints, &settings, previous);
        let (service, usage, basis) = (service.clone(), usage.clone(), basis.clone());
        Self { route, basis, endpoints, settings, service, tiers, meter, usage, lasting }
    }

    /// The service that it is a route of.
    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    /// What is known of using the service.
    pub(super) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Counts work that reached no endpoint.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// How much of its work may be sent again; outlives the route.
    pub(crate) fn retries(&self) -> &RetryBudget {
        &self.lasting.retries
    }

    /// What is under way by it; outlives the route.
    pub(crate) fn circuit(&self) -> &Arc<Circuit> {
        &self.lasting.circuit
    }

    /// Room for one more of `kind`, or what is to be said.
    pub(crate) fn enter(&self, kind: Kind) -> Result<Room, Failure> {
        self.lasting.circuit.enter(kind, &self.settings.limits).ok_or_else(|| {
            count_overflow(self.service.as_str(), kind);
            let (kind, most) = (kind.as_str(), self.settings.limits.of(kind));
            let detail = format!(
                "this node has as much under way with {:?} as it may: {kind}_max is {most}",
                self.service.as_str()
            );
            Failure::new(Flag::Overflow, detail)
        })
    }

    /// Picks an endpoint where the work has not been, of the best rank that has a usable one. If none is,
    /// one that is out for the answers it gave is better than nobody.
    pub(crate) fn pick(&self, errand: Errand<'_>) -> Option<Arc<Endpoint>> {
        let Errand { key, now, chance, .. } = errand;
        for tier in &self.tiers {
            let field = self.candidates(tier, errand);
            // One that is being tried in the background is not usable when asked again, so each
            // turn has one fewer.
            while let Some(index) = tier.group.pick(&field, Asked { chance, key, now }) {
                if matches!(field.endpoints[index].claim(now), Claim::Granted) {
                    self.lasting.hold.end();
                    return Some(field.endpoints[index].clone());
                }
            }
        }
        self.least_bad(errand, |endpoint| endpoint.is_only_ejected())
    }

    /// The last attempt of work for which nobody else is left: somebody who answers, though not well of
    /// late. Nothing is lost by it, for who refuses takes nothing.
    pub(crate) fn pick_refusing(&self, errand: Errand<'_>) -> Option<Arc<Endpoint>> {
        self.least_bad(errand, |endpoint| endpoint.is_only_refusing())
    }

    /// Whether there is an endpoint where the work has not been, and could go at once.
    pub(crate) fn has_other(&self, errand: Errand<'_>) -> bool {
        let Errand { key, now, chance, .. } = errand;
        let has_usable = |tier: &Tier| {
            let field = Candidates { at_once: true, ..self.candidates(tier, errand) };
            tier.group.has_usable(&field, Asked { chance, key, now })
        };
        self.tiers.iter().any(has_usable)
    }

    /// Whether work for which [`Self::pick`] found nothing should wait a little and ask again.
    pub(crate) fn may_hold(&self, now: Instant) -> bool {
        !self.endpoints.is_empty() && self.lasting.hold.since(now) < HOLD
    }

    /// Each candidate's share of new work, in percent, by weights alone if all of its rank are usable; and
    /// how much of its share it takes yet.
    pub(crate) fn shares(&self, now: Instant) -> Vec<(f64, f64)> {
        let mut shares = vec![(0.0, 100.0); self.endpoints.len()];
        let chance = &Chance::new(0);
        let is_usable = |index: &usize| self.endpoints[*index].may_be_tried(now);
        let mut is_first = true;
        for tier in &self.tiers {
            let field = self.candidates(tier, Errand { tried: &[], key: None, now, chance });
            let weight = |index: usize| {
                let readiness = f64::from(field.readiness(index - tier.range.start));
                (f64::from(self.route.candidates[index].instance.weight) * readiness, readiness * 100.0)
            };
            let takes_all = is_first && tier.range.clone().any(|index| is_usable(&index));
            let total: f64 = tier.range.clone().filter(is_usable).map(|index| weight(index).0).sum();
            for index in tier.range.clone() {
                let (weight, readiness) = weight(index);
                let share = if takes_all && is_usable(&index) { weight * 100.0 / total } else { 0.0 };
                shares[index] = (share, readiness);
            }
            is_first &= !takes_all;
        }
        shares
    }

    fn least_bad(
        &self,
        errand: Errand<'_>,
        is_bearable: impl Fn(&Endpoint) -> bool,
    ) -> Option<Arc<Endpoint>> {
        let len = self.endpoints.len();
        let start = (errand.chance.fraction() * len as f64) as usize;
        let looked_at = (0..len.min(LAST_LOOKS_MAX)).map(|step| &self.endpoints[(start + step) % len]);
        let left =
            looked_at.filter(|endpoint| !errand.tried.contains(endpoint.target()) && is_bearable(endpoint));
        left.min_by_key(|endpoint| endpoint.in_flight()).cloned()
    }

    fn candidates<'c>(&'c self, tier: &Tier, errand: Errand<'c>) -> Candidates<'c> {
        Candidates {
            endpoints: &self.endpoints[tier.range.clone()],
            errand,
            at_once: false,
            slow_start: self.settings.slow_start,
            warm_since: tier.warm_since,
            circuit: &self.lasting.circuit,
        }
    }
}

impl Field for Candidates<'_> {
    fn is_usable(&self, index: usize) -> bool {
        let (endpoint, now) = (&self.endpoints[index], self.errand.now);
        if self.at_once { endpoint.may_be_moved_to(now) } else { endpoint.may_be_tried(now) }
    }

    fn was_tried(&self, index: usize) -> bool {
        // Compared only where there is something to compare with.
        !self.errand.tried.is_empty() && self.errand.tried.contains(self.endpoints[index].target())
    }

    fn readiness(&self, index: usize) -> f32 {
        let joined = self.endpoints[index].joined();
        let age = self.errand.now.saturating_duration_since(joined);
        if age >= self.slow_start || joined < self.warm_since {
            return 1.0;
        }
        (age.as_secs_f32() / self.slow_start.as_secs_f32()).max(READINESS_MIN)
    }

    fn load(&self, index: usize) -> Load {
        self.endpoints[index].load(self.errand.now)
    }

    fn total_in_flight(&self) -> u32 {
        self.circuit.count(Kind::Requests) + self.circuit.count(Kind::Connections)
    }
}

fn tiers(
    route: &Route,
    endpoints: &[Arc<Endpoint>],
    settings: &UpstreamSettings,
    previous: Option<&LiveRoute>,
) -> Vec<Tier> {
    let mut tiers: Vec<Tier> = Vec::new();
    let mut start = 0;
    for same_rank in route.candidates.chunk_by(|a, b| a.rank == b.rank) {
        let range = start..start + same_rank.len();
        let members = same_rank.iter().map(|candidate| (name_hash(candidate), candidate.instance.weight));
        let before = previous.and_then(|previous| previous.tiers.get(tiers.len()));
        let place = Arc::as_ptr(&endpoints[start]) as u64;
        let group =
            Group::new(members.collect(), &settings.policy, place, before.map(|before| &before.group));
        // While nobody is warm, nobody is spared.
        let eldest = endpoints[range.clone()].iter().map(|endpoint| endpoint.joined()).min();
        let warm_since = eldest.expect("a tier has members") + settings.slow_start;
        start = range.end;
        tiers.push(Tier { range, group, warm_since });
    }
    tiers
}

fn name_hash(candidate: &Candidate) -> u64 {
    let Target { owner, instance, .. } = &candidate.target;
    stable_hash(&[owner.node.as_str().as_bytes(), instance.as_str().as_bytes()])
}
