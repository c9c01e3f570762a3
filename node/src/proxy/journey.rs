//! A request on its way to an instance: endpoint after endpoint, until one answers.
//!
//! An endpoint that took nothing of a request is passed over for another; one that may have taken
//! it is not, unless the request may be sent twice and the service's retries are not used up.

use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use starling_gossip::clock::Instant;

use crate::circuit::{Kind, Room};
use crate::deadline;
use crate::patience::{Allowance, Elapsed};
use crate::proxy::attempt::{failure_of, failure_of_elapsed, failure_of_refusal, fate_of};
use crate::proxy::body::{AnswerBody, AnswerGuard, BodyTime, RequestBody};
use crate::proxy::failure::{Failure, Flag};
use crate::proxy::forward::{self, Awaiting, Underway};
use crate::proxy::gate::{Held, Pass};
use crate::proxy::outbound::{Chosen, Outbound, Retry, Work};
use crate::proxy::spare::Spare;
use crate::proxy::timer::Timer;
use crate::proxy::{headers, reported_load};
use crate::retry::Fate;
use crate::route::Target;
use crate::telemetry::exchange::Exchange;
use crate::upstream::{Answered, HttpVersion, Word};

/// What is left of a request, and what has been tried.
pub(crate) struct Journey<'a> {
    outbound: &'a Outbound,
    service: &'a str,
    connection: &'a Held,
    version: HttpVersion,
    for_grpc: bool,
    /// Whether that client reads how a call ended in HTTP/2's trailers.
    for_grpc_in_http2: bool,
    exchange: Exchange,
    tried: Vec<Target>,
    /// What decides where it goes, where a hash does.
    key: Option<u64>,
    /// What it takes up of its service.
    room: Option<Room>,
    /// Leave to be sent once more, after the first time.
    retry: Option<Retry>,
    allowance: Allowance,
    tunnel_idle: Option<Duration>,
    may_be_sent_twice: bool,
}

/// Where a request goes, and by what.
pub(crate) struct Way<'a> {
    /// To an instance of this service.
    pub(crate) service: &'a str,
    /// The connection that it came by.
    pub(crate) connection: &'a Held,
    /// How the next hop is spoken to.
    pub(crate) version: HttpVersion,
    /// Whether a gRPC client waits for the answer.
    pub(crate) for_grpc: bool,
    /// Whether it reads HTTP/2's trailers.
    pub(crate) for_grpc_in_http2: bool,
    /// How long it may take.
    pub(crate) allowance: Allowance,
    /// How long it may stand still once it has become a tunnel.
    pub(crate) tunnel_idle: Option<Duration>,
}

impl<'a> Journey<'a> {
    /// Nothing has been tried yet.
    pub(crate) fn new(outbound: &'a Outbound, way: Way<'a>, exchange: Exchange) -> Self {
        let Way { service, connection, version, for_grpc, for_grpc_in_http2, allowance, tunnel_idle } = way;
        let (tried, key, room, retry) = (Vec::new(), None, None, None);
        Self {
            outbound,
            service,
            connection,
            version,
            for_grpc,
            for_grpc_in_http2,
            exchange,
            tried,
            key,
            room,
            retry,
            allowance,
            tunnel_idle,
            may_be_sent_twice: false,
        }
    }

    /// To the answer, by the mesh if nobody else gives one.
    pub(crate) async fn run(
        mut self,
        request: Underway,
        awaiting: Awaiting,
        pass: Pass,
    ) -> Response<AnswerBody> {
        self.may_be_sent_twice = forward::may_be_sent_twice(&request);
        self.key = self.outbound.key_of(self.service, &request, self.connection.source());
        let mut timer = Timer::new(self.allowance, self.exchange.started(), &self.outbound.clock);
        let mut request = Some(request);
        let mut last = None;
        // The request's head, as it was sent last.
        let mut spare = None;
        // Nothing has been waited for since.
        let mut now = self.exchange.started();
        while let Some(mut sendable) = request.take() {
            // Pinned here, futures are not moved into those that wait for them: they are large.
            let work = Work { kind: Kind::Requests, tried: &self.tried, key: self.key, now };
            let next = self.outbound.choose(self.service, work, &mut self.exchange);
            let next = timer.limit(pin!(next)).await;
            let endpoint = match next {
                Ok(Ok(Chosen { endpoint, room, at })) => {
                    self.room = self.room.or(room);
                    now = at;
                    endpoint
                }
                Ok(Err(failure)) => return self.fail(last.as_ref().unwrap_or(&failure)),
                Err(elapsed) => {
                    let failure = failure_of_elapsed(elapsed, self.service);
                    return self.fail(&failure);
                }
            };
            let flight = endpoint.begin(now);
            self.exchange.set_attempt(endpoint.meter(), endpoint.target().owner.node.as_str());
            self.tried.push(endpoint.target().clone());
            self.prepare(&mut sendable, &mut timer, now);
            let give_up = || self.may_be_sent_twice && self.could_go_elsewhere();
            let pending = || self.outbound.enter_pending(self.service);
            let sent = timer
                .limit(pin!(endpoint.send(sendable, self.version, now, &mut spare, give_up, pending)))
                .await;
            timer.end_attempt();
            match sent {
                Ok(Ok(answered)) => {
                    let word = answered.word();
                    if let Word::Refusal(refusal) = word {
                        let refused = failure_of_refusal(refusal, &endpoint);
                        if self.may_retry(&mut timer).await {
                            last = Some(refused);
                            request = again(spare.take());
                            now = self.outbound.clock.now();
                            continue;
                        }
                        self.exchange.set_flag(refused.flag);
                    }
                    let mut guard = AnswerGuard::counting(self.exchange);
                    guard.flight = Some(flight.holding(self.room));
                    guard.connection = awaiting.switched.is_some().then(|| self.connection.clone());
                    guard.pass = Some(pass);
                    // gRPC-Web, and whoever speaks HTTP/1.1, would take trailers for a proper end.
                    let in_trailers = self.for_grpc_in_http2;
                    guard.time = Some(BodyTime { timer, for_grpc: in_trailers });
                    guard.tunnel_idle = self.tunnel_idle;
                    return arrive(answered, word, awaiting, guard);
                }
                Ok(Err(error)) => {
                    drop(flight);
                    last = Some(failure_of(&error.failure, &endpoint));
                    request =
                        self.request_again(fate_of(&error), error.unsent, spare.take(), &mut timer).await;
                }
                Err(elapsed) => {
                    if self.is_to_blame(elapsed, &timer) {
                        endpoint.handle_timeout(&flight);
                    }
                    drop(flight);
                    let node = format!("node {}", endpoint.target().owner.node);
                    last = Some(failure_of_elapsed(elapsed, &node));
                    if elapsed == Elapsed::Attempt {
                        request = self.request_again(Fate::Lost, None, spare.take(), &mut timer).await;
                    }
                }
            }
            now = self.outbound.clock.now();
        }
        let failure = last.unwrap_or_else(|| Failure::new(Flag::NoHealthyUpstream, "no attempt was made"));
        self.fail(&failure)
    }

    /// Readies a request to be sent, once more perhaps: its time runs, and it says what is left.
    fn prepare(&self, request: &mut Request<RequestBody>, timer: &mut Timer, now: Instant) {
        timer.begin_attempt(now);
        request.body_mut().note_in(|| timer.elsewhere());
        if self.for_grpc
            && let Some(left) = timer.left(now)
        {
            deadline::set(request.headers_mut(), left);
        }
    }

    /// Whether an endpoint is to blame for the time that has run out, and not who waits for it: a caller may give
    /// less time than anybody needs, or take its own with a body.
    fn is_to_blame(&self, elapsed: Elapsed, timer: &Timer) -> bool {
        match elapsed {
            Elapsed::Attempt => !timer.awaits_caller(),
            Elapsed::Total => !self.for_grpc && self.may_be_sent_twice,
            Elapsed::Idle => false,
        }
    }

    /// What is to be sent elsewhere after an attempt with this `fate`, if anything.
    async fn request_again(
        &mut self,
        fate: Fate,
        unsent: Option<Underway>,
        spare: Option<Spare>,
        timer: &mut Timer,
    ) -> Option<Underway> {
        let has_request = unsent.is_some() || spare.is_some();
        if has_request && self.may_go_elsewhere(fate, timer).await {
            unsent.or_else(|| again(spare))
        } else {
            None
        }
    }

    /// Whether a request that was refused, and may be sent twice, goes elsewhere.
    async fn may_retry(&mut self, timer: &mut Timer) -> bool {
        self.may_be_sent_twice && self.may_go_elsewhere(Fate::Refused, timer).await
    }

    /// Whether the request goes elsewhere; returns when it is time to.
    async fn may_go_elsewhere(&mut self, fate: Fate, timer: &mut Timer) -> bool {
        if !self.could_go_elsewhere() {
            return false;
        }
        // What the last one took up, if there was one, it gives back first.
        self.retry = None;
        let leave = self.outbound.may_retry(self.service, fate, self.tried.len());
        self.retry = timer.limit(leave).await.ok().flatten();
        self.retry.is_some()
    }

    /// Whether somebody else could take the request now.
    fn could_go_elsewhere(&self) -> bool {
        self.outbound.has_other(self.service, &self.tried)
    }

    /// The mesh's own answer.
    pub(crate) fn fail(mut self, failure: &Failure) -> Response<AnswerBody> {
        let mut response = failure.answer(self.for_grpc);
        self.exchange.set_flag(failure.flag);
        self.exchange.set_status(response.status());
        response.body_mut().set_guard(AnswerGuard::counting(self.exchange));
        response
    }
}

fn again(spare: Option<Spare>) -> Option<Underway> {
    spare.and_then(Spare::request)
}

/// Passes the answer on, without what sidecars told one another.
fn arrive(
    answered: Answered,
    word: Word,
    awaiting: Awaiting,
    guard: Box<AnswerGuard>,
) -> Response<AnswerBody> {
    let mut answer = forward::answer(answered, awaiting, guard);
    if word != Word::Nothing {
        answer.headers_mut().remove(&headers::UNSENT);
        answer.headers_mut().remove(&reported_load::LOAD);
    }
    answer
}
