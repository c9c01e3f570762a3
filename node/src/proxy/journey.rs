//! A request on its way to an instance: endpoint after endpoint, until one answers.
//!
//! An endpoint that took nothing of a request is passed over for another; one that may have taken
//! it is not, unless the request may be sent twice and the service's retries are not used up.

use http::{Request, Response};
use hyper::upgrade::OnUpgrade;

use crate::proxy::attempt::{failure_of, failure_of_refusal, fate_of};
use crate::proxy::body::{AnswerBody, AnswerGuard, RequestBody};
use crate::proxy::failure::{Failure, Flag};
use crate::proxy::forward;
use crate::proxy::gate::{Held, Pass};
use crate::proxy::headers;
use crate::proxy::outbound::Outbound;
use crate::retry::Fate;
use crate::route::Target;
use crate::telemetry::exchange::Exchange;
use crate::upstream::{Answered, HttpVersion, SendError};

/// What is left of a request, and what has been tried.
pub(crate) struct Journey<'a> {
    outbound: &'a Outbound,
    service: &'a str,
    connection: &'a Held,
    version: HttpVersion,
    for_grpc: bool,
    exchange: Exchange,
    tried: Vec<Target>,
    /// The request's head, kept if the request may be sent twice.
    spare: Option<http::request::Parts>,
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
}

impl<'a> Journey<'a> {
    /// Nothing has been tried yet.
    pub(crate) fn new(outbound: &'a Outbound, way: Way<'a>, exchange: Exchange) -> Self {
        let Way { service, connection, version, for_grpc } = way;
        let tried = Vec::new();
        Self { outbound, service, connection, version, for_grpc, exchange, tried, spare: None }
    }

    /// To the answer, by the mesh if nobody else gives one.
    pub(crate) async fn run(
        mut self,
        request: Request<RequestBody>,
        switched: Option<OnUpgrade>,
        pass: Pass,
    ) -> Response<AnswerBody> {
        self.spare = forward::spare(&request);
        let mut request = Some(request);
        let mut last = None;
        while let Some(sendable) = request.take() {
            let next = self.outbound.choose(self.service, &self.tried, &mut self.exchange).await;
            let endpoint = match next {
                Ok(endpoint) => endpoint,
                Err(failure) => return self.fail(last.as_ref().unwrap_or(&failure)),
            };
            let flight = endpoint.begin();
            self.exchange.set_attempt(endpoint.meter(), endpoint.target().owner.node.as_str());
            self.tried.push(endpoint.target().clone());
            let give_up = || self.spare.is_some() && self.could_go_elsewhere();
            match endpoint.send(sendable, self.version, give_up).await {
                Ok(answered) if answered.is_refusal() && self.may_retry(Fate::Refused).await => {
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
                    return arrive(answered, switched, guard);
                }
                Err(error) => {
                    drop(flight);
                    last = Some(failure_of(&error.failure, &endpoint));
                    request = self.request_again(error).await;
                }
            }
        }
        let failure = last.unwrap_or_else(|| Failure::new(Flag::NoHealthyUpstream, "no attempt was made"));
        self.fail(&failure)
    }

    /// What is to be sent elsewhere after an attempt without an answer, if anything.
    async fn request_again(&self, error: SendError) -> Option<Request<RequestBody>> {
        let fate = fate_of(&error);
        let has_request = error.unsent.is_some() || self.spare.is_some();
        if !has_request || !self.may_go_elsewhere(fate).await {
            return None;
        }
        error.unsent.or_else(|| self.again())
    }

    /// Whether a request that may be sent twice goes elsewhere.
    async fn may_retry(&self, fate: Fate) -> bool {
        self.spare.is_some() && self.may_go_elsewhere(fate).await
    }

    /// Whether the request goes elsewhere; returns when it is time to.
    async fn may_go_elsewhere(&self, fate: Fate) -> bool {
        self.could_go_elsewhere() && self.outbound.may_retry(self.service, fate, self.tried.len()).await
    }

    /// Whether somebody else could take the request now.
    fn could_go_elsewhere(&self) -> bool {
        self.outbound.has_other(self.service, &self.tried)
    }

    fn again(&self) -> Option<Request<RequestBody>> {
        self.spare.clone().map(|parts| Request::from_parts(parts, RequestBody::Empty))
    }

    /// The mesh's own answer.
    pub(crate) fn fail(mut self, failure: &Failure) -> Response<AnswerBody> {
        let mut response = failure.answer(self.for_grpc);
        self.exchange.set_flag(failure.flag);
        self.exchange.set_status(response.status());
        response.body_mut().guard_mut().exchange = Some(self.exchange);
        response
    }
}

/// Passes the answer on, without what sidecars told one another.
fn arrive(answered: Answered, switched: Option<OnUpgrade>, guard: AnswerGuard) -> Response<AnswerBody> {
    let mut answer = forward::answer(answered, switched, guard);
    answer.headers_mut().remove(headers::UNSENT);
    answer
}
