//! One instance as this node uses it: its connections, its load, and what went wrong with it.
//!
//! A route table says which instances may be used; an [`Endpoint`] knows how using one has gone.
//! It outlives route tables: the next table takes over the endpoints it still names.

mod connect;
mod flight;
mod measure;
mod peer;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use starling_gossip::identity::ServiceName;
use starling_transport::header::RefusalReason;
use starling_transport::pool::Pool;
use starling_transport::stream::MeshStream;

use crate::balance::{Estimate, Load, Reported};
use crate::breaker::{Breaker, Fault, Verdict};
use crate::circuit::Room;
use crate::outlier::{self, Reason, Record};
use crate::proxy::forward::Underway;
use crate::proxy::reported_load;
use crate::proxy::spare::Spare;
use crate::route::Target;
use crate::telemetry::exchange::{Direction, Meter};
use crate::upstream::{
    Answered, ConnectFailure, HttpVersion, Refusal, SendError, SendFailure, UpstreamLimits, Word,
};
use crate::usage::Usage;

use connect::MeshConnect;
use measure::Measure;
use peer::PeerUpstream;

pub(crate) use flight::Flight;

/// One instance as this node uses it.
pub(crate) struct Endpoint {
    target: Target,
    meter: Arc<Meter>,
    upstream: PeerUpstream,
    clock: Clock,
    created: Instant,
    in_flight: AtomicU32,
    estimate: Estimate,
    reported: Reported,
    record: Arc<Record>,
    usage: Arc<Usage>,
    /// Since when it is no newcomer: milliseconds after `created`.
    joined: AtomicU64,
    requests: AtomicU64,
    /// Milliseconds after `created`, plus one; 0 is never.
    last_attempt: AtomicU64,
    breaker: Mutex<Breaker>,
    /// Which life of its node this endpoint has dealt with.
    incarnation: AtomicU64,
}

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
        usage: Arc<Usage>,
        pool: Pool,
        limits: UpstreamLimits,
        clock: Clock,
    ) -> Arc<Self> {
        let meter = Meter::new(Direction::Outbound, Some(&service), target.owner.identity.as_str());
        let connect = MeshConnect::new(pool, service, &target);
        Arc::new(Self {
            target,
            meter,
            upstream: PeerUpstream::new(connect, limits),
            created: clock.now(),
            clock,
            in_flight: AtomicU32::new(0),
            estimate: Estimate::default(),
            reported: Reported::default(),
            record: Arc::default(),
            usage,
            joined: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            last_attempt: AtomicU64::new(0),
            breaker: Mutex::default(),
            incarnation: AtomicU64::new(0),
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

    /// How busy it is.
    pub(crate) fn load(&self, now: Instant) -> Load {
        let at = self.stamp(now);
        Load {
            seconds: self.estimate.seconds(at),
            in_flight: self.in_flight(),
            others: self.reported.others(at),
        }
    }

    /// How it has answered of late.
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Since when it is used, or used again after it was another one, or out.
    pub(crate) fn joined(&self) -> Instant {
        self.created + Duration::from_millis(self.joined.load(Ordering::Relaxed))
    }

    /// Why it is out for the answers it gave, and until when at least.
    pub(crate) fn ejection(&self) -> Option<(Reason, Instant)> {
        self.record.is_out().then(|| self.usage.ejection(&self.target)).flatten()
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
        if self.connector().is_silent() {
            return Some("its node has fallen silent");
        }
        self.is_troubled().then_some("it refused, or could not be reached")
    }

    /// Whether it may get new work. Cheap: asked for every candidate of every request.
    pub(crate) fn may_be_tried(&self, now: Instant) -> bool {
        if self.record.is_out() && self.usage.verdict(&self.target, now) == outlier::Verdict::Out {
            return false;
        }
        if self.is_troubled() {
            return self.lock().verdict(now) != Verdict::Open;
        }
        !self.connector().is_silent()
    }

    /// Whether it would get new work at once: who cannot be reached is tried without any.
    pub(crate) fn may_be_moved_to(&self, now: Instant) -> bool {
        let must_be_reached = || match self.is_troubled() {
            true => self.lock().fault() == Some(Fault::Unreachable),
            false => self.connector().is_given_up(),
        };
        self.may_be_tried(now) && !must_be_reached()
    }

    /// Whether it takes work, and is out for what it makes of it: better than nobody.
    pub(crate) fn is_only_ejected(&self) -> bool {
        self.record.is_out() && !self.is_troubled() && !self.connector().is_silent()
    }

    /// Whether its node answers, and its workload did not when asked last: asking again costs a round trip.
    pub(crate) fn is_only_refusing(&self) -> bool {
        self.is_troubled() && self.lock().fault() == Some(Fault::Refused) && !self.connector().is_silent()
    }

    /// Its node's record says which life it is in, and which one that `continues` under a new key. Another one has nothing
    /// to do with the old one's trouble, nor with its speed.
    pub(crate) fn handle_incarnation(&self, incarnation: u64, continues: Option<u64>, now: Instant) {
        let before = self.incarnation.swap(incarnation, Ordering::Relaxed);
        if before == incarnation || continues == Some(before) {
            return;
        }
        self.connector().forget_silent();
        self.upstream.forget_program();
        self.reset_trouble();
        if before != 0 {
            self.estimate.reset();
            self.usage.forgive(&self.target, &self.record);
            self.join(now);
        }
    }

    /// Takes the endpoint for one piece of work.
    pub(crate) fn claim(self: &Arc<Self>, now: Instant) -> Claim {
        if self.record.is_out() && !self.usage.begin_trial(&self.target, now) {
            return Claim::BeingTried;
        }
        if !self.is_troubled() && !self.connector().is_given_up() {
            return Claim::Granted;
        }
        let mut breaker = self.lock();
        if self.connector().is_given_up() && breaker.suspect(now) {
            self.record.set_broken(true);
        }
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

    /// Counts a piece of work that begins `now`.
    pub(crate) fn begin(self: &Arc<Self>, now: Instant) -> Flight {
        let millis = (now - self.created).as_millis() as u64;
        self.last_attempt.store(millis + 1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Flight::new(self.clone(), now)
    }

    /// Closes connections that nobody has used since the last sweep.
    pub(crate) fn sweep(&self) {
        self.upstream.sweep();
    }

    /// Sends a request, `now`. When the node has fallen silent and `give_up` says so, its answer is waited
    /// for no longer. While there is no connection yet, the request waits in the room that `pending` gives. What may be
    /// sent twice is left in `spare`, before it is waited for.
    pub(crate) async fn send(
        &self,
        request: Underway,
        version: HttpVersion,
        now: Instant,
        spare: &mut Option<Spare>,
        give_up: impl Fn() -> bool + Send + Sync,
        pending: impl FnOnce() -> Option<Room> + Send,
    ) -> Result<Answered, SendError> {
        let is_first = !self.connector().is_connected();
        if is_first {
            // Whoever waits no longer takes the request along.
            *spare = Spare::of(&request);
            if let Err(failure) = Box::pin(self.connect(pending)).await {
                return Err(SendError { failure: failure.into(), unsent: Some(request) });
            }
        }
        let measure = Measure::new(self, is_first, if is_first { self.clock.now() } else { now });
        let sent = self.upstream.send(request, version, spare, give_up).await;
        match &sent {
            Ok(answered) => self.handle_answer(measure, answered),
            Err(error) => {
                match &error.failure {
                    SendFailure::Broken(error) if error.is_callers() => measure.leave_out(),
                    SendFailure::Broken(_) => measure.handle_error(),
                    // Whether it can be reached is the breaker's question.
                    SendFailure::Silent | SendFailure::Connect(_) => measure.handle_refusal(),
                    SendFailure::Stale(_) | SendFailure::Unprocessed(_) => measure.leave_out(),
                }
                self.handle_failure(&error.failure);
            }
        }
        sent
    }

    fn handle_answer(&self, measure: Measure<'_>, answered: &Answered) {
        match answered.word() {
            Word::Nothing => measure.handle_head(&answered.response, None),
            Word::Something => {
                let load = reported_load::of(answered.response.headers());
                measure.handle_head(&answered.response, load);
            }
            Word::Refusal(Refusal::Denied) => measure.leave_out(),
            // It works; it only has no room.
            Word::Refusal(Refusal::Overloaded) => measure.handle_refusal(),
            Word::Refusal(Refusal::Other) => {
                measure.handle_refusal();
                return self.fail(Fault::Refused);
            }
        }
        self.reset_trouble();
    }

    /// Opens an opaque stream; the workload has been reached when it returns.
    pub(crate) async fn open_tcp(
        &self,
        pending: impl FnOnce() -> Option<Room> + Send,
    ) -> Result<MeshStream, ConnectFailure> {
        let is_first = !self.connector().is_connected();
        if is_first {
            self.connect(pending).await?;
        }
        let measure = Measure::new(self, is_first, self.clock.now());
        match self.connector().open_tcp().await {
            Ok(stream) => {
                measure.handle_accept();
                self.reset_trouble();
                Ok(stream)
            }
            Err(failure) => {
                measure.handle_refusal();
                self.handle_connect_failure(&failure);
                Err(failure)
            }
        }
    }

    /// The attempt that is `flight` has taken longer than it may.
    pub(crate) fn handle_timeout(&self, flight: &Flight) {
        self.handle_error(flight.begun(), self.clock.now());
    }

    /// Makes sure that there is a connection.
    async fn connect(&self, pending: impl FnOnce() -> Option<Room> + Send) -> Result<(), ConnectFailure> {
        let Some(_room) = pending() else {
            // This node's own limit; nothing speaks against the endpoint.
            let detail = "as much as may (pending_max) waits for a connection already";
            return Err(ConnectFailure::Refused(RefusalReason::Overloaded, detail.to_owned()));
        };
        let connected = self.connector().connection().await.map(drop);
        if let Err(failure) = &connected {
            Measure::new(self, true, self.clock.now()).handle_refusal();
            self.handle_connect_failure(failure);
        }
        connected
    }

    fn reset_trouble(&self) {
        if self.is_troubled() {
            self.lock().handle_success();
            self.record.set_broken(false);
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
            ConnectFailure::Unreachable(_) | ConnectFailure::HungUp => self.fail(Fault::Unreachable),
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
        self.record.set_broken(true);
    }

    async fn try_to_reach(self: Arc<Self>) {
        match self.connector().connection().await {
            Ok(connection) if connection.is_usable() => self.reset_trouble(),
            Ok(_) | Err(_) => self.fail(Fault::Unreachable),
        }
    }

    /// It is a newcomer from now on.
    fn join(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.created).as_millis() as u64;
        self.joined.store(millis, Ordering::Relaxed);
    }

    /// Whether the breaker is open, without its lock.
    fn is_troubled(&self) -> bool {
        self.record.is_broken()
    }

    /// On the clock of its estimate.
    fn stamp(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.created).as_millis() as u32
    }

    fn connector(&self) -> &MeshConnect {
        self.upstream.connector()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
