//! The route table in use: each candidate joined to its [`Endpoint`].
//!
//! A request reads one pointer and picks; it takes no lock and waits for no gossip. A new table is
//! built off the request path and swapped in, keeping the endpoints that both name.

mod hold;
mod route;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use starling_gossip::clock::{Clock, Instant};
use starling_gossip::identity::{NodeName, ServiceName};

use crate::config::{UpstreamSettings, Upstreams};
use crate::endpoint::Endpoint;
use crate::route::subset::{self, Subset};
use crate::route::{Panic, Route, RouteTable, Target, neighbourhood};
use crate::usage::Usage;

pub(crate) use hold::{HOLD, HOLD_STEP};
pub(crate) use route::{Errand, LiveRoute};

/// The route table in use.
#[derive(Default)]
pub(crate) struct LiveTable {
    /// Which snapshot it came from.
    pub(crate) generation: u64,
    /// By name: a service's own, and those of its parts.
    routes: BTreeMap<Arc<str>, Arc<LiveRoute>>,
    /// Whether any of them wants to know what a request asks for.
    hashes: bool,
    /// What they were made by.
    upstreams: Upstreams,
    /// The services whose last known endpoints are kept.
    pub(crate) panics: BTreeMap<ServiceName, Panic>,
}

/// The routes of one service by their names.
type Held<'t> = Vec<(&'t Arc<str>, &'t Arc<LiveRoute>)>;

/// Makes an endpoint of a service.
type MakeEndpoint<'m> = dyn Fn(&ServiceName, &Target, Arc<Usage>) -> Arc<Endpoint> + 'm;

/// What a table is made with, beside the routes.
pub(crate) struct Making<'m> {
    /// How services are used.
    pub(crate) upstreams: &'m Upstreams,
    /// This node, whose share of large services it is.
    pub(crate) own: &'m NodeName,
    /// Makes the endpoints that the table before does not have.
    pub(crate) endpoint: &'m MakeEndpoint<'m>,
    pub(crate) clock: &'m Clock,
}

/// The endpoints of one service while its routes are made.
struct Endpoints<'t> {
    held: BTreeMap<&'t Target, &'t Arc<Endpoint>>,
    used: BTreeMap<Target, Arc<Endpoint>>,
}

impl LiveTable {
    /// The table after this one. A service of which nothing has changed keeps its routes as they are.
    pub(crate) fn next(&self, table: RouteTable, making: &Making<'_>) -> Self {
        let held = self.by_service();
        let is_used_alike = self.upstreams == *making.upstreams;
        let mut routes = BTreeMap::new();
        for (service, route) in table.routes {
            let held = held.get(&service).map(Vec::as_slice).unwrap_or_default();
            let is_same = |(_, live): &(_, &Arc<LiveRoute>)| is_used_alike && live.basis.is_same(&route);
            match held.first().is_some_and(is_same) {
                true => routes.extend(held.iter().map(|(name, live)| (Arc::clone(name), Arc::clone(live)))),
                false => self.add(&mut routes, (&service, route), held, making),
            }
        }
        let hashes = routes.values().any(|route: &Arc<LiveRoute>| route.settings.policy.hash_on().is_some());
        let upstreams = making.upstreams.clone();
        Self { generation: table.generation, routes, hashes, upstreams, panics: table.panics }
    }

    /// Adds the routes of one service, of which this table has those in `held`.
    fn add(
        &self,
        routes: &mut BTreeMap<Arc<str>, Arc<LiveRoute>>,
        (service, route): (&ServiceName, Route),
        held: &[(&Arc<str>, &Arc<LiveRoute>)],
        making: &Making<'_>,
    ) {
        let now = making.clock.now();
        let settings = making.upstreams.of(service);
        let usage = match held.first() {
            Some((_, held)) => held.usage().clone(),
            None => Usage::new(service.clone(), &settings.outliers, now),
        };
        usage.set_settings(&settings.outliers);
        let of_held = held.iter().flat_map(|(_, route)| &route.endpoints);
        let mut endpoints = Endpoints {
            held: of_held.map(|endpoint| (endpoint.target(), endpoint)).collect(),
            used: BTreeMap::new(),
        };
        let basis = Arc::new(route);
        let mut make = |name: Arc<str>, settings: &UpstreamSettings, subset: &Subset| {
            let route = part_of(&basis, subset, settings, making.own);
            let joined =
                endpoints.join(&route, now, |target| (making.endpoint)(service, target, usage.clone()));
            let previous = self.routes.get(&name).filter(|previous| previous.service() == service);
            let plan = route::Plan { service, usage: &usage, basis: &basis, settings: settings.clone(), now };
            let live = LiveRoute::new(plan, route, joined, previous.map(|previous| &**previous));
            routes.insert(name, Arc::new(live));
        };
        for part in making.upstreams.parts_of(service) {
            make(part.name.clone(), &part.settings, &part.subset);
        }
        // A part that is called like a service hides it, as its owner wants.
        if !making.upstreams.hides(service) {
            make(service.as_str().into(), settings, &Subset::default());
        }
        usage.set_members(endpoints.used.iter().map(|(target, endpoint)| (target, endpoint.record())));
    }

    fn by_service(&self) -> BTreeMap<ServiceName, Held<'_>> {
        let mut services: BTreeMap<ServiceName, Held<'_>> = BTreeMap::new();
        for (name, route) in &self.routes {
            services.entry(route.service().clone()).or_default().push((name, route));
        }
        services
    }

    /// Whether no service is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The route called `name`.
    pub(crate) fn route(&self, name: &str) -> Option<&Arc<LiveRoute>> {
        self.routes.get(name)
    }

    /// The route called `name`, if it goes by what a request asks for.
    pub(crate) fn hashing_route(&self, name: &str) -> Option<&Arc<LiveRoute>> {
        if self.hashes { self.route(name) } else { None }
    }

    /// Every endpoint of every route; those of a service's parts more than once.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.routes.values().flat_map(|route| &route.endpoints)
    }

    /// All routes by their names.
    pub(crate) fn routes(&self) -> impl Iterator<Item = (&str, &Arc<LiveRoute>)> {
        self.routes.iter().map(|(name, route)| (&**name, route))
    }
}

/// What of a service's route is used.
fn part_of(basis: &Arc<Route>, subset: &Subset, settings: &UpstreamSettings, own: &NodeName) -> Arc<Route> {
    let most = settings.endpoints_max().unwrap_or(usize::MAX);
    if subset.is_whole() && basis.candidates.len() <= most {
        return basis.clone();
    }
    let mut route = Route::clone(basis);
    subset::restrict(&mut route, subset);
    neighbourhood::narrow(&mut route, own, most);
    Arc::new(route)
}

impl Endpoints<'_> {
    /// One for each candidate of `route`, in the same order.
    fn join(
        &mut self,
        route: &Route,
        now: Instant,
        make: impl Fn(&Target) -> Arc<Endpoint>,
    ) -> Vec<Arc<Endpoint>> {
        let join = |candidate: &crate::route::Candidate| {
            let target = &candidate.target;
            let held = self.used.get(target).or_else(|| self.held.get(target).copied());
            let endpoint = held.cloned().unwrap_or_else(|| make(target));
            endpoint.handle_incarnation(candidate.incarnation, candidate.continues, now);
            self.used.entry(target.clone()).or_insert_with(|| endpoint.clone());
            endpoint
        };
        route.candidates.iter().map(join).collect()
    }
}
