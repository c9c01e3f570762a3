//! Outbound HTTP: a local program's request finds its way to an instance of a service.
//!
//! An endpoint that took nothing of a request is passed over for another; one that may have taken
//! it is not, unless the request may be sent twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{HOST, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use starling_gossip::clock::{Clock, Instant};

use crate::balance::Chance;
use crate::endpoint::Endpoint;
use crate::live::{HOLD_STEP, LiveRoute, LiveTable};
use crate::proxy::body::{AnswerBody, AnswerGuard, RequestBody};
use crate::proxy::failure::{Failure, Flag, Reset};
use crate::proxy::forward::{self, Passing};
use crate::proxy::gate::{Gate, Held, Pass};
use crate::proxy::{headers, name};
use crate::route::Target;
use crate::telemetry::exchange::{Direction, Exchange, Meter};
use crate::upstream::http2::Windows;
use crate::upstream::{Answered, ConnectFailure, HttpVersion, SendFailure};

use starling_transport::header::RefusalReason;

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

/// A node that has just started, which waits for news before it says that nobody serves something.
pub(crate) struct Newcomer {
    /// When it started; `None` for a node without seeds, which waits for nobody.
    pub(crate) started: Option<Instant>,
}

/// The mesh is told within this (a few round trips) once anybody of it has answered.
const NEWS: Duration = Duration::from_secs(2);

/// A node that nobody answers waits so long for its seeds (a dial that fails takes two seconds).
const SEEDS: Duration = Duration::from_secs(8);

/// A request on its way: what is left of it, and what has been tried.
struct Journey<'a> {
    outbound: &'a Outbound,
    service: &'a str,
    connection: &'a Held,
    version: HttpVersion,
    exchange: Exchange,
    tried: Vec<Target>,
    /// The request's head, kept if the request may be sent twice.
    spare: Option<http::request::Parts>,
}

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

    /// Answers one request for `service`, which came by `connection`, by the mesh if nobody else can.
    pub(crate) async fn handle(
        &self,
        service: &str,
        request: Request<Incoming>,
        connection: &Held,
    ) -> Response<AnswerBody> {
        let mut exchange = self.unknown.start(&self.clock);
        exchange.set_request(request.method(), request.uri().path());
        let for_grpc = headers::is_grpc(request.headers());
        let Passing { mut request, version, switched } = Passing::new(request);
        exchange.set_body_bytes(request.body().bytes());
        let tried = Vec::new();
        let journey = Journey { outbound: self, service, connection, version, exchange, tried, spare: None };
        headers::start_trace(request.headers_mut(), &self.chance);
        match self.enter().and_then(|pass| Ok((pass, address_for_hop(request, version, service)?))) {
            Ok((pass, request)) => journey.run(request, switched, for_grpc, pass).await,
            Err(failure) => journey.fail(&failure, for_grpc),
        }
    }

    /// Room for one more piece of work.
    pub(crate) fn enter(&self) -> Result<Pass, Failure> {
        let full =
            || Failure::new(Flag::Overflow, "this node carries as much work as it may; try again later");
        self.gate.enter().ok_or_else(full)
    }

    /// The next endpoint for work that `tried` some already. If all have just failed, the first
    /// attempt waits a little for one to come back.
    pub(crate) async fn choose(
        &self,
        service: &str,
        tried: &[Target],
        exchange: &mut Exchange,
    ) -> Result<Arc<Endpoint>, Failure> {
        if tried.len() >= self.attempts_max() {
            return Err(Failure::new(Flag::NoHealthyUpstream, "every endpoint that was tried failed"));
        }
        loop {
            let table = self.table.load();
            let Some(route) = table.route(service) else {
                if self.newcomer.may_not_know(table.is_empty(), self.clock.now()) {
                    drop(table);
                    tokio::time::sleep(HOLD_STEP).await;
                    continue;
                }
                let detail = format!("nobody in the mesh announces the service {service:?}");
                return Err(Failure::new(Flag::NoRoute, detail));
            };
            if tried.is_empty() {
                exchange.set_meter(route.meter());
            }
            let now = self.clock.now();
            if let Some(endpoint) = route.pick(tried, now, &self.chance) {
                return Ok(endpoint);
            }
            if !tried.is_empty() || !route.may_hold(now) {
                return Err(no_healthy_upstream(service, route));
            }
            drop(table);
            tokio::time::sleep(HOLD_STEP).await;
        }
    }
}

impl Journey<'_> {
    async fn run(
        mut self,
        request: Request<RequestBody>,
        switched: Option<OnUpgrade>,
        for_grpc: bool,
        pass: Pass,
    ) -> Response<AnswerBody> {
        self.spare = forward::spare(&request);
        let mut request = Some(request);
        let mut last = None;
        while let Some(sendable) = request.take() {
            let next = self.outbound.choose(self.service, &self.tried, &mut self.exchange).await;
            let endpoint = match next {
                Ok(endpoint) => endpoint,
                Err(failure) => return self.fail(last.as_ref().unwrap_or(&failure), for_grpc),
            };
            let flight = endpoint.begin();
            self.exchange.set_attempt(endpoint.meter(), endpoint.target().owner.node.as_str());
            self.tried.push(endpoint.target().clone());
            let give_up = || self.spare.is_some() && self.could_go_elsewhere();
            match endpoint.send(sendable, self.version, give_up).await {
                Ok(answered) if answered.is_refusal() && self.spare.is_some() => {
                    last = Some(failure_of_refusal(&answered, &endpoint));
                    request = self.again();
                }
                Ok(answered) => {
                    if answered.is_refusal() {
                        self.exchange.set_flag(failure_of_refusal(&answered, &endpoint).flag);
                    }
                    let mut guard = AnswerGuard::counting(self.exchange);
                    guard.flight = Some(flight);
                    guard.connection = Some(self.connection.clone());
                    guard.pass = Some(pass);
                    let mut answer = forward::answer(answered, switched, guard);
                    answer.headers_mut().remove(headers::UNSENT);
                    return answer;
                }
                Err(error) => {
                    last = Some(failure_of(&error.failure, &endpoint));
                    request = error.unsent.or_else(|| self.again());
                }
            }
        }
        let failure = last.unwrap_or_else(|| Failure::new(Flag::NoHealthyUpstream, "no attempt was made"));
        self.fail(&failure, for_grpc)
    }

    /// Whether somebody else could take the request now.
    fn could_go_elsewhere(&self) -> bool {
        let now = self.outbound.clock.now();
        let table = self.outbound.table.load();
        self.tried.len() < self.outbound.attempts_max()
            && table.route(self.service).is_some_and(|route| route.has_other(&self.tried, now))
    }

    fn again(&self) -> Option<Request<RequestBody>> {
        self.spare.clone().map(|parts| Request::from_parts(parts, RequestBody::Empty))
    }

    fn fail(mut self, failure: &Failure, for_grpc: bool) -> Response<AnswerBody> {
        let mut response = failure.answer(for_grpc);
        self.exchange.set_flag(failure.flag);
        self.exchange.set_status(response.status());
        response.body_mut().guard_mut().exchange = Some(self.exchange);
        response
    }
}

/// Addresses a request for the next hop: HTTP/1.1 in origin form with a `Host` (RFC 9112, section
/// 3.2.1), HTTP/2 with scheme and authority (RFC 9113, section 8.3.1).
fn address_for_hop(
    request: Request<RequestBody>,
    version: HttpVersion,
    service: &str,
) -> Result<Request<RequestBody>, Failure> {
    let wrong = || Failure::new(Flag::Malformed, "the request's target cannot be passed on");
    if request.method() == Method::CONNECT {
        return Err(Failure::new(Flag::Malformed, "CONNECT belongs to the port that serves by name"));
    }
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    if let (HttpVersion::Http1, Some(authority)) = (version, parts.uri.authority()) {
        // Never with a user's name (RFC 9110, section 4.2.4).
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        parts.headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| wrong())?);
    }
    if version == HttpVersion::Http1 && !parts.headers.contains_key(HOST) {
        // HTTP/1.0 needs none; what is passed on is HTTP/1.1, which does.
        let host = HeaderValue::from_str(&name::host_of(service)).map_err(|_| wrong())?;
        parts.headers.insert(HOST, host);
    }
    let builder = match version {
        HttpVersion::Http1 => Uri::builder().path_and_query(path),
        HttpVersion::Http2 => {
            let authority = match parts.uri.authority() {
                Some(authority) => authority.clone(),
                None => authority_of_host(&mut parts.headers, service).ok_or_else(wrong)?,
            };
            Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path)
        }
    };
    parts.uri = builder.build().map_err(|_| wrong())?;
    Ok(Request::from_parts(parts, body))
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

fn failure_of(failure: &SendFailure, endpoint: &Endpoint) -> Failure {
    let node = &endpoint.target().owner.node;
    match failure {
        SendFailure::Connect(failure) => failure_of_connect(failure, endpoint),
        SendFailure::Broken(error) => {
            let detail = format!("node {node} ended the connection before its answer: {error}");
            Failure { reset: failure.reset_code().map(Reset), ..Failure::new(Flag::ConnectionEnded, detail) }
        }
        SendFailure::Unprocessed(error) => Failure::new(
            Flag::Overflow,
            format!("node {node} took the request and did not process it: {error}"),
        ),
        SendFailure::Silent => {
            Failure::new(Flag::ConnectionEnded, format!("node {node} fell silent before its answer"))
        }
    }
}

/// What a client is told when the callee's sidecar answers that its workload took nothing.
fn failure_of_refusal(answered: &Answered, endpoint: &Endpoint) -> Failure {
    let node = &endpoint.target().owner.node;
    if answered.is_denial() {
        Failure::new(Flag::Denied, format!("node {node} no longer lets this caller in"))
    } else if answered.is_overload() {
        Failure::new(Flag::Overflow, format!("node {node} carries as much work as it may"))
    } else {
        Failure::new(Flag::ConnectFailure, "the workload does not accept connections")
    }
}

/// What a client is told of an endpoint that took nothing.
pub(crate) fn failure_of_connect(failure: &ConnectFailure, endpoint: &Endpoint) -> Failure {
    let node = &endpoint.target().owner.node;
    let (flag, what) = match failure {
        ConnectFailure::Unreachable(_) => (Flag::ConnectFailure, "cannot be reached"),
        ConnectFailure::Refused(RefusalReason::Denied, _) => (Flag::Denied, "does not let this caller in"),
        ConnectFailure::Refused(RefusalReason::Overloaded, _) => {
            (Flag::Overflow, "has as much work as it may")
        }
        ConnectFailure::Refused(..) => (Flag::ConnectFailure, "refused"),
    };
    Failure::new(flag, format!("node {node} {what}: {failure}"))
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
