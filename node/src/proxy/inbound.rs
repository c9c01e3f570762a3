//! Inbound: streams from authenticated peers find the local workload.
//!
//! Who may not call is refused before anything else happens, and whenever its list changes. The
//! workload is connected before the stream is accepted, so a refusal costs the caller nothing
//! but a look elsewhere. HTTP is parsed, because the workload is told who calls; TCP is not.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_gossip::clock::Clock;
use starling_gossip::identity::{ServiceName, SpiffeId};
use starling_gossip::record::Protocol;
use starling_transport::header::{RefusalReason, StreamKind};
use starling_transport::incoming::{IncomingStream, UnansweredStream};
use tracing::{debug, warn};

use crate::authz::Reason;
use crate::deadline;
use crate::proxy::access::Admission;
use crate::proxy::aside::Aside;
use crate::proxy::body::{AnswerBody, AnswerGuard, RequestBody};
use crate::proxy::denials::Denials;
use crate::proxy::failure::{self, Failure, Flag, Reset};
use crate::proxy::forward::{self, Passing, Underway};
use crate::proxy::gate::{Gate, Held, Pass};
use crate::proxy::heads::PASSED_HEAD_BYTES_MAX;
use crate::proxy::spare::Spare;
use crate::proxy::workload::{CalledBy, Workload, Workloads, tcp_under};
use crate::proxy::{calling, headers, intake, messages, own_headers, reported_load, tunnel};
use crate::telemetry::exchange::{Exchange, Meter};
use crate::upstream::HttpVersion::{Http1, Http2};
use crate::upstream::hop::HopBody;
use crate::upstream::http2::Windows;
use crate::upstream::{ConnectFailure, HttpVersion, SendError, SendFailure};

/// Takes streams in for the local workloads.
pub(crate) struct Inbound {
    /// The local instances.
    pub(crate) workloads: Workloads,
    /// Requests and connections under way.
    pub(crate) gate: Gate,
    /// Callers that were denied, as far as the log has told.
    pub(crate) denials: Mutex<Denials>,
    /// Streams being served, idle ones included.
    pub(crate) streams: Gate,
    /// Unread bytes of a peer's HTTP/2 stream.
    pub(crate) windows: Windows,
    /// The node's time.
    pub(crate) clock: Clock,
}

/// In which words a peer's requests come.
#[derive(Clone, Copy)]
enum Spoken {
    /// HTTP's.
    Http(HttpVersion),
    /// Messages of that version.
    Messages(HttpVersion),
}

/// One peer's HTTP stream.
pub(super) struct Caller {
    inbound: Arc<Inbound>,
    instance: Arc<str>,
    workload: Arc<Workload>,
    admission: Arc<Admission>,
    meter: Arc<Meter>,
    held: Held,
}

impl Inbound {
    /// Serves one stream to its end, or until memory is critical.
    pub(crate) async fn handle(self: Arc<Self>, incoming: IncomingStream) {
        let Some(pass) = self.streams.enter() else {
            let detail = "this node has as many streams as it may";
            return incoming.stream.refuse(RefusalReason::Overloaded, detail).await;
        };
        let held = Held::new(pass, None);
        tokio::select! {
            biased;
            () = self.serve(incoming, held.clone()) => {}
            () = Aside::new(held.cut()) => debug!("stream cut off: memory is critical"),
        }
    }

    async fn serve(self: Arc<Self>, incoming: IncomingStream, held: Held) {
        let IncomingStream { peer, header, stream } = incoming;
        let (spoken, service, instance) = match header.kind {
            StreamKind::Tcp { service, instance } => (None, service, instance),
            StreamKind::Http1 { service, instance } => (Some(Spoken::Http(Http1)), service, instance),
            StreamKind::Http2 { service, instance } => (Some(Spoken::Http(Http2)), service, instance),
            StreamKind::Http1Messages { service, instance } => {
                (Some(Spoken::Messages(Http1)), service, instance)
            }
            StreamKind::Http2Messages { service, instance } => {
                (Some(Spoken::Messages(Http2)), service, instance)
            }
            // The transport hands gossip to its own link, and nothing else has a bidirectional stream.
            _ => return stream.refuse(RefusalReason::UnsupportedKind, "not a call").await,
        };
        let workload = match self.admit(&service, &instance) {
            Ok(workload) => workload,
            Err((reason, detail)) => return stream.refuse(reason, detail).await,
        };
        let admission = match workload.access.admit(&peer.id) {
            Ok(admission) => admission,
            Err(reason) => {
                let mut exchange = workload.meter_of_the_rest().start(&self.clock);
                let failure = self.deny(&workload, &peer.id, reason, &mut exchange);
                return stream.refuse(RefusalReason::Denied, failure.detail).await;
            }
        };
        if spoken.is_none() && workload.protocol == Protocol::Http {
            // Unparsed, its bytes could name any caller in `x-starling-peer`.
            return stream.refuse(RefusalReason::UnsupportedKind, "this service takes HTTP only").await;
        }
        let meter = workload.meter(&peer.id);
        // Each on the heap: a stream that carries bytes needs no room for HTTP.
        match spoken {
            None => Box::pin(self.carry(&workload, &admission, peer.address, &meter, stream)).await,
            Some(spoken) => {
                let instance = instance.into();
                let caller = Caller { inbound: self, instance, workload, admission, meter, held };
                match spoken {
                    Spoken::Http(version) => Box::pin(caller.serve(version, stream)).await,
                    Spoken::Messages(version) => Box::pin(caller.serve_messages(version, stream)).await,
                }
            }
        }
    }

    fn admit(
        &self,
        service: &ServiceName,
        instance: &str,
    ) -> Result<Arc<Workload>, (RefusalReason, &'static str)> {
        if self.gate.is_closed() {
            return Err((RefusalReason::Draining, "this node is leaving"));
        }
        let workload = self.workloads.find(instance).filter(|workload| workload.service == *service);
        workload.ok_or((RefusalReason::NoSuchInstance, "no such instance of this service here"))
    }

    /// Room for one more piece of work.
    fn enter(&self) -> Result<Pass, Failure> {
        if self.gate.is_closed() {
            return Err(Failure::new(Flag::ConnectFailure, "the callee's node is leaving"));
        }
        let full = || Failure::new(Flag::Overflow, "the callee's node carries as much work as it may");
        self.gate.enter().ok_or_else(full)
    }

    /// Tells the log and the metrics that `peer` is denied; gives what the caller is told.
    fn deny(&self, workload: &Workload, peer: &SpiffeId, reason: Reason, exchange: &mut Exchange) -> Failure {
        exchange.set_caller(peer, None);
        exchange.set_flag(Flag::Denied);
        let (service, reason) = (&workload.service, reason.as_str());
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = denials.handle_denial(service, peer, self.clock.now()) {
            warn!(%service, %peer, reason, calls, "caller denied; service.allow says who may call");
        }
        Failure::new(Flag::Denied, format!("{reason}: {peer}"))
    }

    async fn carry(
        &self,
        workload: &Workload,
        admission: &Admission,
        from: SocketAddr,
        meter: &Arc<Meter>,
        stream: UnansweredStream,
    ) {
        let mut exchange = meter.start(&self.clock);
        exchange.set_caller(admission.peer(), Some(&admission.rule()));
        let Some(_pass) = self.gate.enter() else {
            exchange.set_flag(Flag::Overflow);
            let detail = "this node carries as much work as it may";
            return Box::pin(stream.refuse(RefusalReason::Overloaded, detail)).await;
        };
        let _workload_pass = workload.gate.enter();
        let caller = CalledBy { peer: admission.peer(), from };
        // On the heap: what is open needs no room for how it was opened.
        let opened = Box::pin(workload.upstream.connector().open(caller)).await;
        let (mut io, _passes) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                exchange.set_flag(flag_of(&failure));
                return Box::pin(refuse(stream, &failure)).await;
            }
        };
        tcp_under(&io).into_iter().for_each(tunnel::reset_unless_ended);
        let Ok(mut stream) = Box::pin(stream.accept()).await else { return };
        match tunnel::carry_admitted(&mut stream, &mut io, &mut exchange, admission).await {
            Ok(()) => tcp_under(&io).into_iter().for_each(tunnel::end),
            Err(error) => debug!(service = %workload.service, %error, "connection broken"),
        }
    }
}

impl Caller {
    async fn serve(self, version: HttpVersion, stream: UnansweredStream) {
        if let Err(failure) = calling::warm(&self.workload, version, &self.inbound.clock).await {
            return refuse(stream, &failure).await;
        }
        let Ok(stream) = stream.accept().await else { return };
        let (gate, windows) = (self.inbound.gate.clone(), self.inbound.windows);
        let workload_gate = self.workload.gate.clone();
        let caller = Arc::new(self);
        let service = service_fn(move |request: Request<Incoming>| {
            let request = Box::new(request.map(|body| RequestBody::new(HopBody::from(body), None)));
            let (caller, passing) = (caller.clone(), Passing::new(request));
            // On the heap: hyper moves a request's future a dozen times, and this one is large. Made there, as
            // `listener` does.
            Box::into_pin(Box::write(Box::new_uninit(), async move {
                failure::reset_or(caller.answer(passing).await)
            }))
        });
        let io = TokioIo::new(stream);
        let ended = match version {
            HttpVersion::Http1 => {
                let mut builder = hyper::server::conn::http1::Builder::new();
                // No `half_close`: a peer's sidecar ends its half only together with its client's request.
                builder.max_buf_size(PASSED_HEAD_BYTES_MAX);
                builder.serve_connection(io, service).with_upgrades().await
            }
            HttpVersion::Http2 => {
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder
                    .max_header_list_size(PASSED_HEAD_BYTES_MAX as u32)
                    .max_concurrent_streams(u32::try_from(gate.limit()).unwrap_or(u32::MAX))
                    // What was taken back before it was looked at. A client that gives up all of its requests at
                    // once is no flood, and would end those of all others by this connection.
                    .max_pending_accept_reset_streams(windows.streams() as usize)
                    .initial_stream_window_size(windows.stream_bytes)
                    .initial_connection_window_size(windows.connection_bytes);
                let mut connection = pin!(builder.serve_connection(io, service));
                let retired = Aside::new(async {
                    tokio::select! {
                        () = gate.dismissed() => {}
                        () = workload_gate.dismissed() => {}
                    }
                });
                tokio::select! {
                    biased;
                    ended = connection.as_mut() => ended,
                    () = retired => {
                        // GOAWAY: what is under way ends here, what is new goes elsewhere.
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        if let Err(error) = ended {
            debug!(%error, "HTTP stream ended");
        }
    }

    async fn serve_messages(self, version: HttpVersion, stream: UnansweredStream) {
        if let Err(failure) = calling::warm(&self.workload, version, &self.inbound.clock).await {
            return refuse_messages(stream, &failure).await;
        }
        let Ok(stream) = stream.accept().await else { return };
        if let Err(error) = messages::serve(&self, version, stream).await {
            debug!(%error, "stream of messages ended");
        }
    }

    /// Whether nothing that comes now is looked at: it may go elsewhere.
    pub(super) fn takes_nothing(&self) -> bool {
        self.inbound.gate.is_closed() || self.workload_now().is_none()
    }

    /// Counts a request that was refused unread.
    pub(super) fn note_refused(&self, flag: Flag) {
        let mut exchange = self.meter.start(&self.inbound.clock);
        exchange.set_caller(self.admission.peer(), None);
        exchange.set_flag(flag);
    }

    /// What its workload answers, or this node in its place.
    pub(super) async fn answer(&self, passing: Passing) -> Response<AnswerBody> {
        let Passing { mut request, version, awaiting, spare } = passing;
        let mut exchange = self.meter.start(&self.inbound.clock);
        exchange.set_request(request.method(), request.uri().path());
        let (for_grpc, arrived) = (headers::is_grpc(request.headers()), exchange.started());
        // First: where nothing is served any more, nobody is let in either.
        let Some(workload) = self.workload_now() else {
            let withdrawn = Failure::new(Flag::ConnectFailure, "the instance has been withdrawn");
            let mut answer = fail(&withdrawn, for_grpc, true, AnswerGuard::counting(exchange));
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return answer;
        };
        if let Err(reason) = self.admission.check() {
            return self.deny(reason, for_grpc, version, exchange);
        }
        exchange.set_caller(self.admission.peer(), Some(&self.admission.rule()));
        let mut guard = AnswerGuard::counting(exchange);
        guard.admission = Some(self.admission.clone());
        guard.connection = awaiting.switched.is_some().then(|| self.held.clone());
        guard.pass = match self.inbound.enter() {
            Ok(pass) => Some(pass),
            Err(failure) => return fail(&failure, for_grpc, true, guard),
        };
        guard.workload_pass = workload.gate.enter();
        guard.exchange.iter_mut().for_each(|exchange| exchange.set_body_bytes(request.body().bytes()));
        if let Some(exchange) = &mut guard.exchange
            && let Err(failure) = intake::of_peer(&mut request, &self.admission, exchange)
        {
            return fail(&failure, for_grpc, false, guard);
        }
        if for_grpc && let Some(deadline) = deadline::of(request.headers()) {
            // The caller's sidecar gives up in time; the workload is told what is left.
            let spent = self.inbound.clock.now() - arrived;
            deadline::set(request.headers_mut(), deadline.saturating_sub(spent));
        }
        workload.repeats.handle_request(arrived);
        // How it came says nothing of how much time is left of it.
        let as_it_came = spare.filter(|_| !for_grpc);
        let spare = if as_it_came.is_some() { None } else { Spare::of(&request) };
        let again = || match as_it_came {
            Some(spare) => self.take_in_again(spare),
            None => spare?.request(),
        };
        let mut answered = match calling::send(&workload, request, version, again, &self.inbound.clock).await
        {
            Ok(answered) => answered,
            Err(error) => {
                let failure = failure_of(&error, version);
                return fail(&failure, for_grpc, calling::is_unsent(&error), guard);
            }
        };
        own_headers::remove_all(answered.response.headers_mut());
        let gate = &workload.gate;
        reported_load::tell(answered.response.headers_mut(), gate.under_way(), gate.entered());
        let mut answer = forward::answer(answered, awaiting, guard);
        if self.is_retired() && version == HttpVersion::Http1 {
            // The caller retires the stream with this answer instead of losing a race with our end.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    /// A request that was taken in and sent on, to be sent on once more.
    fn take_in_again(&self, as_it_came: Spare) -> Option<Underway> {
        let mut request = as_it_came.request()?;
        headers::remove_hop_by_hop(request.headers_mut(), None);
        intake::of_peer_again(&mut request, &self.admission).ok()?;
        Some(request)
    }

    /// The list has changed since the stream was accepted.
    fn deny(
        &self,
        reason: Reason,
        for_grpc: bool,
        version: HttpVersion,
        mut exchange: Exchange,
    ) -> Response<AnswerBody> {
        let failure = self.inbound.deny(&self.workload, self.admission.peer(), reason, &mut exchange);
        let mut answer = fail(&failure, for_grpc, true, AnswerGuard::counting(exchange));
        if version == HttpVersion::Http1 {
            // The next stream is refused before a request is spent on it.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    /// The workload for the next request: the instance may live elsewhere than when this stream
    /// began, or no longer.
    fn workload_now(&self) -> Option<Arc<Workload>> {
        if !self.workload.gate.is_draining() {
            return Some(self.workload.clone());
        }
        let now = self.inbound.workloads.find(&self.instance)?;
        self.workload.continues_in(&now).then_some(now)
    }

    /// Whether the peer should begin a new stream for its next request.
    pub(super) fn is_retired(&self) -> bool {
        self.inbound.gate.is_draining() || self.workload.gate.is_draining()
    }
}

/// The workload was not reached: that is its node's word to the caller.
async fn refuse(stream: UnansweredStream, failure: &ConnectFailure) {
    let reason = match failure {
        ConnectFailure::Refused(reason, _) => *reason,
        ConnectFailure::Unreachable(_) | ConnectFailure::HungUp => RefusalReason::WorkloadUnreachable,
    };
    stream.refuse(reason, failure.to_string()).await;
}

/// The same where `UnsupportedKind` says that messages are not understood at all.
async fn refuse_messages(stream: UnansweredStream, failure: &ConnectFailure) {
    if failure.is_other_version() {
        return stream.refuse(RefusalReason::WorkloadUnreachable, failure.to_string()).await;
    }
    refuse(stream, failure).await;
}

fn flag_of(failure: &ConnectFailure) -> Flag {
    match failure {
        ConnectFailure::Refused(RefusalReason::Overloaded, _) => Flag::Overflow,
        ConnectFailure::Refused(..) | ConnectFailure::Unreachable(_) | ConnectFailure::HungUp => {
            Flag::ConnectFailure
        }
    }
}

/// What the caller, who speaks `version`, is told.
fn failure_of(error: &SendError, version: HttpVersion) -> Failure {
    match &error.failure {
        SendFailure::Connect(failure) => Failure::new(flag_of(failure), failure.to_string()),
        SendFailure::Broken(broken) | SendFailure::Stale(broken) => {
            let detail = format!("the workload ended the connection before its answer: {broken}");
            let reset = error.failure.reset_code().filter(|_| version == HttpVersion::Http2).map(Reset);
            Failure { reset, ..Failure::new(Flag::ConnectionEnded, detail) }
        }
        SendFailure::Unprocessed(error) => {
            Failure::new(Flag::Overflow, format!("the workload did not process the request: {error}"))
        }
        SendFailure::Silent => {
            Failure::new(Flag::ConnectionEnded, "the workload fell silent before its answer")
        }
    }
}

fn fail(
    failure: &Failure,
    for_grpc: bool,
    unsent: bool,
    mut guard: Box<AnswerGuard>,
) -> Response<AnswerBody> {
    let mut response = failure.answer(for_grpc);
    if unsent {
        response.headers_mut().insert(headers::UNSENT.clone(), HeaderValue::from_static("1"));
    }
    if failure.flag == Flag::Malformed {
        // Nobody knows where the next request begins.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(exchange) = &mut guard.exchange {
        exchange.set_flag(failure.flag);
        exchange.set_status(response.status());
    }
    response.body_mut().set_guard(guard);
    response
}
