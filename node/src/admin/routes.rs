//! What the admin API shows of routes: whom a call may reach, and why.

use serde::{Deserialize, Serialize};
use starling_gossip::clock::Instant;

use super::view::age;
use crate::app::Shown;
use crate::circuit::Kind;
use crate::endpoint::Endpoint;
use crate::live::LiveRoute;
use crate::route::{Candidate, Target};

/// One of `/v1/routes`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouteView {
    /// What it is called: the service's name, or that of a part of it.
    pub name: String,
    /// The service.
    pub service: String,
    /// `http` or `tcp`.
    pub protocol: String,
    /// Which snapshot of the catalogue it was computed from.
    pub generation: u64,
    /// By what the next candidate is chosen: `peak_ewma`, `least_request`, `round_robin` or
    /// `consistent_hash`.
    pub policy: String,
    /// What is hashed, if anything is.
    pub hash_on: Option<String>,
    /// What is under way by it, and how much may be.
    pub under_way: CircuitView,
    /// Who may take calls, best rank first.
    pub candidates: Vec<CandidateView>,
    /// Who may not, and why.
    pub excluded: Vec<ExcludedView>,
}

/// What is under way by a route
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CircuitView {
    /// TCP connections.
    pub connections: UsedView,
    /// What waits for an instance, or for a connection to its node.
    pub pending: UsedView,
    /// HTTP requests.
    pub requests: UsedView,
    /// What is being sent once more.
    pub retries: UsedView,
}

/// How much of something there is, and how much may be
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UsedView {
    /// So much is.
    pub used: u32,
    /// So much may be.
    pub max: u32,
}

/// Why and for how long a candidate gets nothing
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EjectedView {
    /// Why, in words.
    pub reason: String,
    /// When it is tried again.
    pub trial_in_ms: u64,
}

/// One who may take calls
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CandidateView {
    /// The instance.
    pub id: String,
    /// Its node.
    pub node: String,
    /// Who must answer there.
    pub identity: String,
    /// Where its node listens.
    pub address: String,
    /// Its share of new work at this moment, in percent.
    pub share: f64,
    /// How far its node stands: 0 near to 3 far.
    pub distance: u8,
    /// Its lease ran out, and it is kept because most of the service was lost at once: used last.
    pub retained: bool,
    /// Why it gets no new work at present although it may.
    pub trouble: Option<String>,
    /// Out for the answers that it gave; `null` is no.
    pub ejected: Option<EjectedView>,
    /// How much of its share it takes yet as a newcomer, in percent.
    pub readiness: f64,
    /// How long its answers take, as the balancer sees it; `null` while nothing is known.
    pub estimate_ms: Option<f64>,
    /// Work under way.
    pub in_flight: u32,
    /// Work begun since this node knows it.
    pub requests: u64,
    /// Since work was last begun with it.
    pub last_attempt_age_ms: Option<u64>,
    /// Since this node learned the newest about it.
    pub age_ms: u64,
}

/// One who may not take calls
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExcludedView {
    /// The instance.
    pub id: String,
    /// Its node.
    pub node: String,
    /// Why not.
    pub reason: String,
}

pub(super) fn routes(shown: &Shown) -> Vec<RouteView> {
    let table = shown.table.load();
    let now = shown.clock.now();
    table.routes().map(|(name, route)| route_of(name, route, table.generation, now)).collect()
}

pub(super) fn route(shown: &Shown, name: &str) -> Option<RouteView> {
    let table = shown.table.load();
    let route = table.route(name)?;
    Some(route_of(name, route, table.generation, shown.clock.now()))
}

fn route_of(name: &str, live: &LiveRoute, generation: u64, now: Instant) -> RouteView {
    let candidates = live.route.candidates.iter().zip(&live.endpoints).zip(live.shares(now));
    let candidates = candidates.map(|((candidate, endpoint), (share, readiness))| CandidateView {
        share,
        readiness,
        ..candidate_of(candidate, endpoint, now)
    });
    let excluded = live.route.excluded.iter().map(|excluded| ExcludedView {
        id: excluded.target.instance.to_string(),
        node: excluded.target.owner.node.to_string(),
        reason: excluded.reason.as_str().to_owned(),
    });
    let policy = &live.settings.policy;
    RouteView {
        name: name.to_owned(),
        service: live.service().to_string(),
        protocol: live.route.protocol.as_str().to_owned(),
        generation,
        policy: policy.as_str().to_owned(),
        hash_on: policy.hash_on().map(ToString::to_string),
        under_way: circuit_of(live),
        candidates: candidates.collect(),
        excluded: excluded.collect(),
    }
}

fn circuit_of(live: &LiveRoute) -> CircuitView {
    let used = |kind| UsedView { used: live.circuit().count(kind), max: live.settings.limits.of(kind) };
    CircuitView {
        connections: used(Kind::Connections),
        pending: used(Kind::Pending),
        requests: used(Kind::Requests),
        retries: used(Kind::Retries),
    }
}

/// But for its share, which is one of the whole route's.
fn candidate_of(candidate: &Candidate, endpoint: &Endpoint, now: Instant) -> CandidateView {
    let Target { owner, instance, address } = &candidate.target;
    let ejected = endpoint.ejection().map(|(reason, until)| EjectedView {
        reason: reason.to_string(),
        trial_in_ms: until.saturating_duration_since(now).as_millis() as u64,
    });
    let load = endpoint.load(now);
    CandidateView {
        id: instance.to_string(),
        node: owner.node.to_string(),
        identity: owner.identity.to_string(),
        address: address.to_string(),
        share: 0.0,
        distance: candidate.rank.distance,
        retained: candidate.rank.retained,
        trouble: endpoint.trouble().map(str::to_owned),
        ejected,
        readiness: 100.0,
        estimate_ms: load.seconds.map(|seconds| f64::from(seconds) * 1e3),
        in_flight: load.in_flight,
        requests: endpoint.requests(),
        last_attempt_age_ms: endpoint.last_attempt_age(now).map(|age| age.as_millis() as u64),
        age_ms: age(now, candidate.learned_at),
    }
}
