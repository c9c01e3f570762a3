//! One instance as this node uses it: its connections, its load, and what went wrong with it.
//!
//! A route table says which instances may be used; an [`Endpoint`] knows how using one has gone.
//! It outlives route tables: the next table takes over the endpoints it still names.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Request;
use starling_gossip::clock::{Clock, Instant};
use starling_gossip::identity::ServiceName;
use starling_transport::answer::AnswerError;
use starling_transport::connection::{Connection, OpenError};
use starling_transport::header::{RefusalReason, StreamHeader, StreamKind};
use starling_transport::pool::{Pool, Target as Peer};
use starling_transport::stream::MeshStream;
use starling_transport::verify::Expected;

use crate::breaker::{Breaker, Fault, Verdict};
use crate::proxy::body::RequestBody;
use crate::route::Target;
use crate::telemetry::exchange::{Direction, Meter};
use crate::upstream::{
    Answered, Connect, ConnectFailure, HttpUpstream, HttpVersion, NextHop, SendError, SendFailure,
    UpstreamLimits,
};

/// A request waits so long for a connection to a new peer (two round trips) before it looks
/// elsewhere; the dial goes on behind it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// A callee that accepts a stream connects to its workload first, which on one machine takes
/// less than a millisecond.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);

/// One instance as this node uses it.
pub(crate) struct Endpoint {
    target: Target,
    meter: Arc<Meter>,
    upstream: HttpUpstream<MeshConnect>,
    clock: Clock,
    created: Instant,
    in_flight: AtomicU32,
    requests: AtomicU64,
    /// Milliseconds after `created`, plus one; 0 is never.
    last_attempt: AtomicU64,
    breaker: Mutex<Breaker>,
    /// Which life of its node this endpoint has dealt with.
    incarnation: AtomicU64,
    /// Whether the breaker is open: read without its lock on every request.
    troubled: AtomicBool,
}

/// Opens streams to an instance over the mesh.
pub(crate) struct MeshConnect {
    pool: Pool,
    peer: Peer,
    service: ServiceName,
    instance: String,
    connection: ArcSwapOption<Connection>,
}

/// Counts one piece of work as long as it lives.
pub(crate) struct Flight(Arc<Endpoint>);

/// What may be done with an endpoint that was picked.
pub(crate) enum Claim {
    /// Use it.
    Granted,
    /// Not now: whether it works again is being tried, by a dial in the background or by somebody
    /// else's work.
    BeingTried,
}

impl Endpoint {
    /// An endpoint that has not been used yet.
    pub(crate) fn new(
        target: Target,
        service: ServiceName,
        pool: Pool,
        limits: UpstreamLimits,
        clock: Clock,
    ) -> Arc<Self> {
        let meter = Meter::new(Direction::Outbound, Some(&service), target.owner.identity.as_str());
        let connect = MeshConnect {
            pool,
            peer: Peer {
                address: target.address,
                expected: Expected::Exactly(target.owner.identity.clone()),
            },
            service,
            instance: target.instance.to_string(),
            connection: ArcSwapOption::empty(),
        };
        Arc::new(Self {
            target,
            meter,
            upstream: HttpUpstream::new(connect, limits),
            created: clock.now(),
            clock,
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            last_attempt: AtomicU64::new(0),
            breaker: Mutex::default(),
            incarnation: AtomicU64::new(0),
            troubled: AtomicBool::new(false),
        })
    }

    /// Which instance this is.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Counts work with it.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Work under way.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Work begun since the endpoint is known.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How long ago work was last begun.
    pub(crate) fn last_attempt_age(&self, now: Instant) -> Option<Duration> {
        let millis = self.last_attempt.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.created + Duration::from_millis(millis)))
    }

    /// Why it gets no new work at present, for people.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        if self.is_silent() {
            return Some("its node has fallen silent");
        }
        self.troubled.load(Ordering::Relaxed).then_some("it refused, or could not be reached")
    }

    /// Whether it may get new work. Cheap: asked for every candidate of every request.
    pub(crate) fn may_be_tried(&self, now: Instant) -> bool {
        if self.troubled.load(Ordering::Relaxed) {
            return self.lock().verdict(now) != Verdict::Open;
        }
        !self.is_silent()
    }

    /// Its node's record says which life it is in: a new one has nothing to do with the old one's
    /// trouble.
    pub(crate) fn handle_incarnation(&self, incarnation: u64) {
        if self.incarnation.swap(incarnation, Ordering::Relaxed) != incarnation {
            self.reset_trouble();
        }
    }

    /// Takes the endpoint for one piece of work.
    pub(crate) fn claim(self: &Arc<Self>, now: Instant) -> Claim {
        if !self.troubled.load(Ordering::Relaxed) {
            return Claim::Granted;
        }
        let mut breaker = self.lock();
        match breaker.verdict(now) {
            Verdict::Closed => Claim::Granted,
            Verdict::Trial(Fault::Refused) => {
                breaker.begin_trial(now);
                Claim::Granted
            }
            Verdict::Open => Claim::BeingTried,
            Verdict::Trial(Fault::Unreachable) => {
                breaker.begin_trial(now);
                drop(breaker);
                tokio::spawn(self.clone().try_to_reach());
                Claim::BeingTried
            }
        }
    }

    /// Counts a piece of work that begins now.
    pub(crate) fn begin(self: &Arc<Self>) -> Flight {
        let millis = (self.clock.now() - self.created).as_millis() as u64;
        self.last_attempt.store(millis + 1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Flight(self.clone())
    }

    /// Closes connections that nobody has used since the last sweep.
    pub(crate) fn sweep(&self) {
        self.upstream.sweep();
    }

    /// Sends a request. When the node has fallen silent and `give_up` says so, its answer is waited
    /// for no longer.
    pub(crate) async fn send(
        &self,
        request: Request<RequestBody>,
        version: HttpVersion,
        give_up: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answered, SendError> {
        let sent = self.upstream.send(request, version, give_up).await;
        match &sent {
            // It works; it only has no room, or not for this caller.
            Ok(answered) if answered.is_denial() || answered.is_overload() => self.reset_trouble(),
            Ok(answered) if answered.is_refusal() => self.fail(Fault::Refused),
            Ok(_) => self.reset_trouble(),
            Err(error) => self.handle_failure(&error.failure),
        }
        sent
    }

    /// Opens an opaque stream; the workload has been reached when it returns.
    pub(crate) async fn open_tcp(&self) -> Result<MeshStream, ConnectFailure> {
        let connect = self.upstream.connector();
        let (service, instance) = (connect.service.clone(), connect.instance.clone());
        match connect.open(StreamKind::Tcp { service, instance }).await {
            Ok((stream, _)) => {
                self.reset_trouble();
                Ok(stream)
            }
            Err(failure) => {
                self.handle_connect_failure(&failure);
                Err(failure)
            }
        }
    }

    fn reset_trouble(&self) {
        if self.troubled.load(Ordering::Relaxed) {
            self.lock().handle_success();
            self.troubled.store(false, Ordering::Relaxed);
        }
    }

    fn handle_failure(&self, failure: &SendFailure) {
        match failure {
            SendFailure::Connect(failure) => self.handle_connect_failure(failure),
            SendFailure::Silent => self.fail(Fault::Unreachable),
            // The request may have been the fault; the next one will tell.
            SendFailure::Broken(_) | SendFailure::Stale(_) => {}
            // It only has no room, or is about to leave, which its node will say.
            SendFailure::Unprocessed(_) => self.reset_trouble(),
        }
    }

    fn handle_connect_failure(&self, failure: &ConnectFailure) {
        match failure {
            ConnectFailure::Unreachable(_) => self.fail(Fault::Unreachable),
            // The endpoint is fine, and says why it does nothing for this caller. A pause would
            // hide that; nor does being asked cost its workload anything.
            ConnectFailure::Refused(RefusalReason::Denied | RefusalReason::Overloaded, _) => {
                self.reset_trouble();
            }
            ConnectFailure::Refused(..) => self.fail(Fault::Refused),
        }
    }

    fn fail(&self, fault: Fault) {
        self.lock().handle_failure(fault, self.clock.now());
        self.troubled.store(true, Ordering::Relaxed);
    }

    async fn try_to_reach(self: Arc<Self>) {
        match self.upstream.connector().connection().await {
            Ok(connection) if connection.is_usable() => self.reset_trouble(),
            Ok(_) | Err(_) => self.fail(Fault::Unreachable),
        }
    }

    fn is_silent(&self) -> bool {
        let connection = self.upstream.connector().connection.load();
        connection.as_ref().is_some_and(|connection| !connection.is_closed() && !connection.is_responsive())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl MeshConnect {
    async fn connection(&self) -> Result<Connection, ConnectFailure> {
        let dial = tokio::time::timeout(CONNECT_PATIENCE, self.pool.connect(&self.peer));
        match dial.await {
            Ok(Ok(connection)) => {
                self.connection.store(Some(Arc::new(connection.clone())));
                Ok(connection)
            }
            Ok(Err(error)) => Err(ConnectFailure::Unreachable(error.to_string())),
            Err(_elapsed) => Err(ConnectFailure::Unreachable(format!(
                "no connection to {} within {CONNECT_PATIENCE:?}",
                self.peer.address
            ))),
        }
    }

    async fn open(&self, kind: StreamKind) -> Result<(MeshStream, Connection), ConnectFailure> {
        let connection = self.connection().await?;
        let unreachable = |error: &dyn std::fmt::Display| ConnectFailure::Unreachable(error.to_string());
        let opened = connection.open(&StreamHeader::new(kind)).await;
        let mut stream = opened.map_err(|error| match error {
            // It is there and has no room: nothing speaks against the streams it carries already.
            OpenError::TooManyStreams { .. } => {
                ConnectFailure::Refused(RefusalReason::Overloaded, error.to_string())
            }
            error => unreachable(&error),
        })?;
        let answer = tokio::select! {
            answer = tokio::time::timeout(ACCEPT_PATIENCE, stream.accepted()) => answer,
            () = connection.unresponsive() => {
                return Err(ConnectFailure::Unreachable("the peer has fallen silent".into()));
            }
        };
        match answer {
            Ok(Ok(())) => Ok((stream, connection)),
            Ok(Err(AnswerError::Refused(refusal))) => {
                Err(ConnectFailure::Refused(refusal.reason, refusal.detail))
            }
            Ok(Err(error)) => Err(unreachable(&error)),
            Err(_elapsed) => Err(unreachable(&"the peer did not answer in time")),
        }
    }
}

impl Connect for MeshConnect {
    type Io = MeshStream;

    async fn connect(&self, version: HttpVersion) -> Result<(MeshStream, NextHop), ConnectFailure> {
        let (service, instance) = (self.service.clone(), self.instance.clone());
        let kind = match version {
            HttpVersion::Http1 => StreamKind::Http1 { service, instance },
            HttpVersion::Http2 => StreamKind::Http2 { service, instance },
        };
        let (stream, connection) = self.open(kind).await?;
        Ok((stream, NextHop::Peer(connection)))
    }
}
