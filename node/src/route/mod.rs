//! PURE: what a request for a service may use.
//!
//! [`compute`] turns a snapshot of the catalogue into a [`RouteTable`], off the request path. It
//! is total: what it leaves out is listed in the table with the reason, for people to ask. It
//! knows no connection and no failure of this node's own; those are `endpoint`'s.

pub mod neighbourhood;
pub(crate) mod retention;
pub mod subset;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;
use starling_gossip::record::{Health, Instance, Label, Locality, Owner, Protocol};
use starling_gossip::snapshot::{Presence, ServiceInstance, Snapshot};

pub use retention::Panic;

/// Every service's route, computed from one snapshot.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// Which snapshot it came from.
    pub generation: u64,
    /// By service.
    pub routes: BTreeMap<ServiceName, Route>,
    /// The services whose last known endpoints are kept; those are candidates of the last rank.
    pub panics: BTreeMap<ServiceName, Panic>,
}

/// Where calls of one service may go.
#[derive(Clone, Debug)]
pub struct Route {
    /// How the service speaks.
    pub protocol: Protocol,
    /// Usable instances, best rank first.
    pub candidates: Vec<Candidate>,
    /// The others, and why.
    pub excluded: Vec<Excluded>,
}

/// One instance that may take calls.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Which instance.
    pub target: Target,
    /// What its owner says of it.
    pub instance: Arc<Instance>,
    /// Where its node stands.
    pub locality: Locality,
    /// Which life its node is in.
    pub incarnation: u64,
    /// The one that this life goes on with, under a new key.
    pub continues: Option<u64>,
    /// Lower ranks are used first; a higher one only when no lower one works.
    pub rank: Rank,
    /// When this node learned the newest about it.
    pub learned_at: Instant,
}

/// Names an instance and where to reach it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Whose instance, and so who must answer.
    pub owner: Owner,
    /// Which of its owner's.
    pub instance: Label,
    /// Where the owner's node listens.
    pub address: SocketAddr,
}

/// How much a candidate is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// Its lease ran out, and it is kept because most of its service was lost at once.
    pub retained: bool,
    /// Its node is suspect, or nobody has probed it yet.
    pub doubtful: bool,
    /// How far away its node stands (see [`Locality::distance`]).
    pub distance: u8,
}

/// One instance that may not take calls.
#[derive(Clone, Debug)]
pub struct Excluded {
    /// Which instance.
    pub target: Target,
    /// Why not.
    pub reason: Exclusion,
}

/// Why an instance may not take calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// Its node's probes fail.
    Unhealthy,
    /// It finishes what it has.
    Draining,
    /// Its weight is 0.
    NoWeight,
    /// It speaks another protocol than most instances of its service.
    OtherProtocol,
    /// It is not of the part of the service that is asked for.
    OtherSubset,
    /// The service is large, and other callers use it.
    LeftToOthers,
}

impl Exclusion {
    /// A sentence for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unhealthy => "its node's probes fail",
            Self::Draining => "it is draining",
            Self::NoWeight => "its weight is 0",
            Self::OtherProtocol => "it speaks another protocol than most instances of the service",
            Self::OtherSubset => "its version or tags are not those that are asked for",
            Self::LeftToOthers => {
                "left to other callers: this node uses a share of a large service (endpoints_max)"
            }
        }
    }
}

/// Computes all routes as seen from `here`.
pub fn compute(snapshot: &Snapshot, here: &Locality) -> RouteTable {
    compute_keeping(snapshot, BTreeMap::new(), here)
}

/// The same, with endpoints that the snapshot does not have any more.
pub fn compute_keeping(
    snapshot: &Snapshot,
    panics: BTreeMap<ServiceName, Panic>,
    here: &Locality,
) -> RouteTable {
    let lost = panics.keys().filter(|service| !snapshot.services.contains_key(*service));
    let route = |service: &ServiceName| {
        let present = snapshot.services.get(service).into_iter().flatten().map(|offered| (offered, false));
        let kept = panics.get(service).into_iter().flat_map(|panic| &panic.instances);
        let instances: Vec<_> = present.chain(kept.map(|offered| (offered, true))).collect();
        (service.clone(), route_of(&instances, here))
    };
    let routes = snapshot.services.keys().chain(lost).map(route).collect();
    RouteTable { generation: snapshot.generation, routes, panics }
}

impl Route {
    /// Whether `other` says nothing else. Records are compared by whose copy they are: a snapshot shares what
    /// has not changed with the one before.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let is_same = |(one, other): (&Candidate, &Candidate)| {
            Arc::ptr_eq(&one.instance, &other.instance)
                && (one.rank, one.incarnation, one.learned_at)
                    == (other.rank, other.incarnation, other.learned_at)
                && one.target == other.target
                && one.locality == other.locality
        };
        let is_same_excluded =
            |(one, other): (&Excluded, &Excluded)| one.reason == other.reason && one.target == other.target;
        self.protocol == other.protocol
            && (self.candidates.len(), self.excluded.len()) == (other.candidates.len(), other.excluded.len())
            && self.candidates.iter().zip(&other.candidates).all(is_same)
            && self.excluded.iter().zip(&other.excluded).all(is_same_excluded)
    }
}

impl Target {
    fn of(offered: &ServiceInstance) -> Self {
        Self {
            owner: offered.owner.clone(),
            instance: offered.id.clone(),
            address: offered.node.addresses[0],
        }
    }
}

/// Each with whether it is kept against the snapshot.
fn route_of(instances: &[(&ServiceInstance, bool)], here: &Locality) -> Route {
    let protocol = common_protocol(instances);
    let mut route = Route { protocol, candidates: Vec::new(), excluded: Vec::new() };
    for (offered, retained) in instances {
        let target = Target::of(offered);
        match exclusion(offered, protocol) {
            Some(reason) => route.excluded.push(Excluded { target, reason }),
            None => route.candidates.push(Candidate {
                target,
                instance: offered.instance.clone(),
                locality: offered.node.locality.clone(),
                incarnation: offered.node.version.incarnation,
                continues: offered.node.continues,
                rank: Rank {
                    retained: *retained,
                    doubtful: offered.presence == Presence::Suspect
                        || offered.instance.health == Health::Unknown,
                    distance: here.distance(&offered.node.locality),
                },
                learned_at: offered.learned_at,
            }),
        }
    }
    route.candidates.sort_by(|a, b| (a.rank, &a.target).cmp(&(b.rank, &b.target)));
    route
}

/// What most instances speak; HTTP if as many speak either.
fn common_protocol(instances: &[(&ServiceInstance, bool)]) -> Protocol {
    let tcp = instances.iter().filter(|(offered, _)| offered.instance.protocol == Protocol::Tcp).count();
    if tcp * 2 > instances.len() { Protocol::Tcp } else { Protocol::Http }
}

fn exclusion(offered: &ServiceInstance, protocol: Protocol) -> Option<Exclusion> {
    let instance = &offered.instance;
    match instance.health {
        Health::Unhealthy => Some(Exclusion::Unhealthy),
        Health::Draining => Some(Exclusion::Draining),
        Health::Healthy | Health::Unknown if instance.weight == 0 => Some(Exclusion::NoWeight),
        Health::Healthy | Health::Unknown if instance.protocol != protocol => Some(Exclusion::OtherProtocol),
        Health::Healthy | Health::Unknown => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
