//! Outbound HTTP: a local program's request finds its way to an instance of a service.
//!
//! This is where it begins, and what all requests share; its journey from endpoint to endpoint is
//! [`journey`](crate::proxy::journey)'s.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{HOST, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response};
use starling_gossip::clock::{Clock, Instant};

use crate::balance::{Chance, HashOn};
use crate::circuit::{Kind, Room};
use crate::config::Timeouts;
use crate::deadline;
use crate::endpoint::Endpoint;
use crate::live::{Errand, HOLD_STEP, LiveRoute, LiveTable};
use crate::patience::Allowance;
use crate::proxy::affinity;
use crate::proxy::body::{AnswerBody, RequestBody};
use crate::proxy::failure::{Failure, Flag};
use crate::proxy::forward::{Passing, Underway};
use crate::proxy::gate::{Gate, Held, Pass};
use crate::proxy::journey::{Journey, Way};
use crate::proxy::{headers, intake, name};
use crate::retry::{self, Fate};
use crate::route::{Target, subset};
use crate::telemetry::exchange::{Direction, Exchange, Meter, count_retry};
use crate::upstream::HttpVersion;
use crate::upstream::http2::Windows;

/// Carries local programs' calls into the mesh.
pub(crate) struct Outbound {
    /// The routes in use.
    pub(crate) table: Arc<ArcSwap<LiveTable>>,
    /// Requests and connections under way.
    pub(crate) gate: Gate,
    /// Unread bytes of a local HTTP/2 connection.
    pub(crate) windows: Windows,
    /// Endpoints that one request tries at most.
    pub(crate) attempts_max: AtomicUsize,
    /// Draws endpoints and trace ids.
    pub(crate) chance: Chance,
    /// The node's time.
    pub(crate) clock: Clock,
    /// Whether a service that is not known may be one that has not been heard of yet.
    pub(crate) newcomer: Newcomer,
    /// Counts work for services that nobody announces.
    pub(crate) unknown: Arc<Meter>,
}

/// What is to go somewhere.
#[derive(Clone, Copy)]
pub(crate) struct Work<'w> {
    /// As what it counts.
    pub(crate) kind: Kind,
    /// Where it has been.
    pub(crate) tried: &'w [Target],
    /// What a hash decides by.
    pub(crate) key: Option<u64>,
    /// When it comes to be chosen for.
    pub(crate) now: Instant,
}

/// Where it goes next.
pub(crate) struct Chosen {
    pub(crate) endpoint: Arc<Endpoint>,
    /// What it takes up of its service; once, with the first endpoint.
    pub(crate) room: Option<Room>,
    /// When it was chosen.
    pub(crate) at: Instant,
}

/// Leave to try once more, and what that takes up if it is a retry.
pub(crate) struct Retry {
    _room: Option<Room>,
}

/// A node that has just started, which waits for news before it says that nobody serves something.
pub(crate) struct Newcomer {
    /// When it started; `None` for a node without seeds, which waits for nobody.
    pub(crate) started: Option<Instant>,
}

/// The mesh is told within this (a few round trips) once anybody of it has answered.
const NEWS: Duration = Duration::from_secs(2);

/// A node that nobody answers waits so long for its seeds (a dial that fails takes two seconds).
const SEEDS: Duration = Duration::from_secs(8);

impl Newcomer {
    /// `knows_nothing`: of any service.
    fn may_not_know(&self, knows_nothing: bool, now: Instant) -> bool {
        let wait = if knows_nothing { SEEDS } else { NEWS };
        self.started.is_some_and(|started| now < started + wait)
    }
}

impl Outbound {
    /// For requests under way, too.
    pub(crate) fn set_attempts_max(&self, attempts_max: usize) {
        self.attempts_max.store(attempts_max, Ordering::Relaxed);
    }

    fn attempts_max(&self) -> usize {
        self.attempts_max.load(Ordering::Relaxed)
    }

    /// Counts work for unannounced services.
    pub(crate) fn unknown_meter() -> Arc<Meter> {
        Meter::new(Direction::Outbound, None, "")
    }

    /// Answers one request for `service`, which came by `connection`, within its time, by the mesh if
    /// nobody else can.
    pub(crate) async fn handle(
        &self,
        service: &str,
        request: Underway,
        connection: &Held,
        timeouts: &Timeouts,
    ) -> Response<AnswerBody> {
        let mut exchange = self.unknown.start(&self.clock);
        exchange.set_request(request.method(), request.uri().path());
        let for_grpc = headers::is_grpc(request.headers());
        let Passing { mut request, version, awaiting, .. } = Passing::new(request);
        let for_grpc_in_http2 =
            for_grpc && version == HttpVersion::Http2 && headers::needs_http2(request.headers());
        exchange.set_body_bytes(request.body().bytes());
        let taken = intake::of_program(&mut request, &self.chance, &mut exchange);
        let deadline = for_grpc.then(|| deadline::of(request.headers())).flatten();
        let allowance = Allowance {
            total: [timeouts.total, deadline].into_iter().flatten().min(),
            attempt: timeouts.attempt,
            idle: timeouts.idle_of_requests(),
        };
        let tunnel_idle = timeouts.idle_of_connections();
        let way = Way { service, connection, version, for_grpc, for_grpc_in_http2, allowance, tunnel_idle };
        let journey = Journey::new(self, way, exchange);
        match taken
            .and_then(|()| address_for_hop(&mut request, version, subset::service_of(service)))
            .and_then(|()| self.enter())
        {
            Ok(pass) => journey.run(request, awaiting, pass).await,
            Err(failure) => journey.fail(&failure),
        }
    }

    /// Room for one more piece of work.
    pub(crate) fn enter(&self) -> Result<Pass, Failure> {
        let full =
            || Failure::new(Flag::Overflow, "this node carries as much work as it may; try again later");
        self.gate.enter().ok_or_else(full)
    }

    /// The next endpoint for work that `tried` some already, and at first the room that it takes up of its
    /// service. If all have just failed, the first attempt waits a little for one to come back.
    pub(crate) async fn choose(
        &self,
        route_name: &str,
        work: Work<'_>,
        exchange: &mut Exchange,
    ) -> Result<Chosen, Failure> {
        let Work { kind, tried, key, mut now } = work;
        if tried.len() >= self.attempts_max() {
            return Err(Failure::new(Flag::NoHealthyUpstream, "every endpoint that was tried failed"));
        }
        let is_first = tried.is_empty();
        let mut pending = None;
        loop {
            let table = self.table.load();
            let Some(route) = table.route(route_name) else {
                if self.newcomer.may_not_know(table.is_empty(), now) {
                    drop(table);
                    tokio::time::sleep(HOLD_STEP).await;
                    now = self.clock.now();
                    continue;
                }
                let detail = format!("nobody in the mesh announces the service {route_name:?}");
                return Err(Failure::new(Flag::NoRoute, detail));
            };
            let errand = Errand { tried, key, now, chance: &self.chance };
            // First: to pick an endpoint that is tried again begins its trial, which is for work that goes there.
            let room = match is_first.then(|| route.enter(kind)).transpose() {
                Ok(room) => room,
                Err(full) => {
                    exchange.set_meter(route.meter());
                    return Err(full);
                }
            };
            if let Some(endpoint) = pick(route, errand) {
                if is_first {
                    route.retries().handle_request(now);
                }
                return Ok(Chosen { endpoint, room, at: now });
            }
            // The meter of its endpoint counts it where there is one.
            if is_first {
                exchange.set_meter(route.meter());
            }
            if !is_first || !route.may_hold(now) {
                return Err(no_healthy_upstream(route_name, route));
            }
            drop(room);
            if pending.is_none() {
                pending = Some(route.enter(Kind::Pending)?);
            }
            drop(table);
            tokio::time::sleep(HOLD_STEP).await;
            now = self.clock.now();
        }
    }

    /// What decides where a request goes, if something of it does.
    pub(crate) fn key_of<B>(
        &self,
        route_name: &str,
        request: &Request<B>,
        source: Option<IpAddr>,
    ) -> Option<u64> {
        let table = self.table.load();
        let on = table.hashing_route(route_name)?.settings.policy.hash_on()?;
        affinity::key_of(on, request.uri(), request.headers(), source)
    }

    /// The same of a connection.
    pub(crate) fn key_of_connection(&self, route_name: &str, source: Option<IpAddr>) -> Option<u64> {
        let table = self.table.load();
        let is_by_source =
            table.hashing_route(route_name)?.settings.policy.hash_on() == Some(&HashOn::Source);
        if is_by_source { affinity::key_of_source(source) } else { None }
    }

    /// Room for one that waits for a connection to its endpoint.
    pub(crate) fn enter_pending(&self, route_name: &str) -> Option<Room> {
        self.table.load().route(route_name)?.enter(Kind::Pending).ok()
    }

    /// Whether somebody else than `tried` could take work now, and may still be tried.
    pub(crate) fn has_other(&self, route_name: &str, tried: &[Target]) -> bool {
        let errand = Errand { tried, key: None, now: self.clock.now(), chance: &self.chance };
        tried.len() < self.attempts_max()
            && self.table.load().route(route_name).is_some_and(|route| route.has_other(errand))
    }

    /// Whether work that `attempts` were made for, the last with this `fate`, may be sent again;
    /// returns when it is time to, with the room that it takes up meanwhile.
    pub(crate) async fn may_retry(&self, route_name: &str, fate: Fate, attempts: usize) -> Option<Retry> {
        if !fate.costs() {
            return Some(Retry { _room: None });
        }
        let now = self.clock.now();
        let room = self.table.load().route(route_name).and_then(|route| {
            let room = route.enter(Kind::Retries).ok()?;
            route.retries().take_retry(now).then_some(room)
        });
        count_retry(Direction::Outbound, subset::service_of(route_name), room.is_some());
        if room.is_some() && fate.waits() {
            let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
            tokio::time::sleep(retry::pause(attempts, &self.chance)).await;
        }
        room.map(|room| Retry { _room: Some(room) })
    }
}

/// Picks an endpoint; for a first attempt that nobody else is left for, and that has waited or need not, one that
/// answers at all.
fn pick(route: &LiveRoute, errand: Errand<'_>) -> Option<Arc<Endpoint>> {
    let is_last_hope = || errand.tried.is_empty() && !route.may_hold(errand.now);
    route.pick(errand).or_else(|| if is_last_hope() { route.pick_refusing(errand) } else { None })
}

/// Addresses a request for the next hop: HTTP/1.1 in origin form with a `Host` (RFC 9112, section
/// 3.2.1), HTTP/2 with scheme and authority (RFC 9113, section 8.3.1).
fn address_for_hop(
    request: &mut Request<RequestBody>,
    version: HttpVersion,
    service: &str,
) -> Result<(), Failure> {
    let wrong = || Failure::new(Flag::Malformed, "the request's target cannot be passed on");
    if request.method() == Method::CONNECT {
        return Err(Failure::new(Flag::Malformed, "CONNECT belongs to the port that serves by name"));
    }
    let target = std::mem::take(request.uri_mut()).into_parts();
    let path = target.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    let headers = request.headers_mut();
    let addressed = match version {
        HttpVersion::Http1 => {
            if let Some(authority) = &target.authority {
                // Never with a user's name (RFC 9110, section 4.2.4).
                let host = authority.as_str().rsplit('@').next().unwrap_or_default();
                headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| wrong())?);
            } else if !headers.contains_key(HOST) {
                // HTTP/1.0 needs none; what is passed on is HTTP/1.1, which does.
                let host = HeaderValue::from_str(&name::host_of(service)).map_err(|_| wrong())?;
                headers.insert(HOST, host);
            }
            Uri::from(path)
        }
        HttpVersion::Http2 => {
            let authority = match target.authority {
                Some(authority) => authority,
                None => authority_of_host(headers, service).ok_or_else(wrong)?,
            };
            let builder = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path);
            builder.build().map_err(|_| wrong())?
        }
    };
    *request.uri_mut() = addressed;
    Ok(())
}

/// The authority of an HTTP/2 request that has none: its `Host`, which says the same (RFC 9113, section
/// 8.3.1) and goes, for what is sent on says it once; or the service's name.
fn authority_of_host(headers: &mut HeaderMap, service: &str) -> Option<Authority> {
    let host = headers.remove(HOST);
    match &host {
        Some(host) => Authority::try_from(host.as_bytes()).ok(),
        None => Authority::try_from(name::host_of(service)).ok(),
    }
}

fn no_healthy_upstream(service: &str, route: &LiveRoute) -> Failure {
    let (usable, excluded) = (route.endpoints.len(), route.route.excluded.len());
    Failure::new(
        Flag::NoHealthyUpstream,
        format!(
            "{service:?} is announced and nobody can take work: {usable} healthy by their word but failing here, \
             {excluded} excluded; see `starling routes {service}`"
        ),
    )
}
