//! One request or connection, counted and logged when it ends.
//!
//! An [`Exchange`] travels with the work it describes and reports when it is dropped, however the
//! work ended. Its [`Meter`] holds the metric handles, looked up once per service and peer and not
//! once per request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use http::header::HeaderValue;
use metrics::{Counter, Histogram};
use starling_gossip::clock::{Clock, Instant};
use starling_gossip::identity::{ServiceName, SpiffeId};
use tracing::Level;

use crate::authz::Rule;
use crate::circuit::Kind;
use crate::proxy::failure::Flag;

/// Which way work goes, as seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Local workload to mesh.
    Outbound,
    /// Mesh to local workload.
    Inbound,
}

/// Metric handles for the work between this node and one peer, for one service.
pub(crate) struct Meter {
    direction: Direction,
    service: String,
    peer: String,
    duration: Histogram,
    request_bytes: Counter,
    response_bytes: Counter,
    /// By status and flag: a handful, so searched in order.
    counts: Mutex<Vec<(Outcome, Counter)>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Outcome {
    /// 0 for a connection that has no status.
    status: u16,
    flag: Option<Flag>,
}

/// Work under way.
pub(crate) struct Exchange {
    meter: Arc<Meter>,
    clock: Clock,
    started: Instant,
    outcome: Outcome,
    request_bytes: u64,
    /// Where more of them are counted, while a body goes up.
    body_bytes: Option<Arc<AtomicU64>>,
    response_bytes: u64,
    /// Only where somebody reads the access log.
    line: Option<Box<Line>>,
}

#[derive(Default)]
struct Line {
    method: String,
    path: String,
    request_id: String,
    attempts: Vec<String>,
    /// The proved identity of an inbound caller, which its meter does not always name.
    peer: String,
    /// What let it in.
    rule: String,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

impl Meter {
    /// For work of `service` with `peer`, an identity or `""` where none is known.
    pub(crate) fn new(direction: Direction, service: Option<&ServiceName>, peer: &str) -> Arc<Self> {
        // A name that nobody announces comes from a client and would make a series of its own.
        let service = service.map_or("unknown", ServiceName::as_str).to_owned();
        let labels = [
            ("direction", direction.as_str().to_owned()),
            ("service", service.clone()),
            ("peer", peer.to_owned()),
        ];
        Arc::new(Self {
            direction,
            duration: metrics::histogram!("starling_request_duration_seconds", &labels),
            request_bytes: metrics::counter!("starling_request_bytes_total", &labels),
            response_bytes: metrics::counter!("starling_response_bytes_total", &labels),
            service,
            peer: peer.to_owned(),
            counts: Mutex::default(),
        })
    }

    /// Counts and times one piece of work from now on.
    pub(crate) fn start(self: &Arc<Self>, clock: &Clock) -> Exchange {
        let line = tracing::enabled!(target: "access", Level::INFO).then(Box::default);
        Exchange {
            meter: self.clone(),
            clock: clock.clone(),
            started: clock.now(),
            outcome: Outcome { status: 0, flag: None },
            request_bytes: 0,
            body_bytes: None,
            response_bytes: 0,
            line,
        }
    }

    fn count(&self, outcome: Outcome) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = counts.iter().find(|(held, _)| *held == outcome) {
            return counter.increment(1);
        }
        let counter = metrics::counter!(
            "starling_requests_total",
            "direction" => self.direction.as_str(),
            "service" => self.service.clone(),
            "peer" => self.peer.clone(),
            "status" => outcome.status.to_string(),
            "flags" => outcome.flag.map_or("", Flag::as_str),
        );
        counter.increment(1);
        counts.push((outcome, counter));
    }
}

/// Counts a request of `service` that could be sent again: that it was, or that it was not because too
/// many were. Looked up each time, for a service that works has no such series.
pub(crate) fn count_retry(direction: Direction, service: &str, was_sent: bool) {
    metrics::counter!(
        "starling_retries_total",
        "direction" => direction.as_str(),
        "service" => service.to_owned(),
        "outcome" => if was_sent { "sent" } else { "over_budget" },
    )
    .increment(1);
}

/// Counts work for `service` that was refused because this node has as much of that kind under way with it
/// as it may.
pub(crate) fn count_overflow(service: &str, kind: Kind) {
    metrics::counter!(
        "starling_upstream_overflow_total",
        "service" => service.to_owned(),
        "limit" => kind.as_str(),
    )
    .increment(1);
}

impl Exchange {
    /// What the request asks, for the access log.
    pub(crate) fn set_request(&mut self, method: &http::Method, path: &str) {
        if let Some(line) = &mut self.line {
            line.method = method.to_string();
            line.path = path.to_owned();
        }
    }

    /// The request's name, if `find` finds one; for the access log.
    pub(crate) fn set_request_id<'i>(&mut self, find: impl FnOnce() -> Option<&'i HeaderValue>) {
        if let Some(line) = &mut self.line
            && let Some(id) = find()
        {
            line.request_id = String::from_utf8_lossy(id.as_bytes()).into_owned();
        }
    }

    /// Who calls, and what lets it in, if anything does; for the access log.
    pub(crate) fn set_caller(&mut self, peer: &SpiffeId, rule: Option<&Rule>) {
        if let Some(line) = &mut self.line {
            line.peer = peer.to_string();
            line.rule = rule.map_or("", Rule::as_str).to_owned();
        }
    }

    /// When it began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// What times it.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// `meter` counts it from here on.
    pub(crate) fn set_meter(&mut self, meter: &Arc<Meter>) {
        self.meter = meter.clone();
    }

    /// It goes to `node` now; `meter` counts it from here on.
    pub(crate) fn set_attempt(&mut self, meter: &Arc<Meter>, node: &str) {
        self.meter = meter.clone();
        if let Some(line) = &mut self.line {
            line.attempts.push(node.to_owned());
        }
    }

    /// The answer's status.
    pub(crate) fn set_status(&mut self, status: StatusCode) {
        self.outcome.status = status.as_u16();
    }

    /// The mesh itself failed it.
    pub(crate) fn set_flag(&mut self, flag: Flag) {
        self.outcome.flag = Some(flag);
    }

    /// Bytes that went up.
    pub(crate) fn add_request_bytes(&mut self, bytes: u64) {
        self.request_bytes += bytes;
    }

    /// A request's body goes up, and is counted there. What goes up after the answer has ended belongs to
    /// nobody's exchange.
    pub(crate) fn set_body_bytes(&mut self, bytes: Option<Arc<AtomicU64>>) {
        self.body_bytes = bytes;
    }

    /// Bytes that went up so far, but for a body's.
    #[cfg(test)]
    pub(crate) fn request_bytes(&self) -> u64 {
        self.request_bytes
    }

    /// Bytes that came down so far.
    #[cfg(test)]
    pub(crate) fn response_bytes(&self) -> u64 {
        self.response_bytes
    }

    /// Bytes that came down.
    pub(crate) fn add_response_bytes(&mut self, bytes: usize) {
        self.response_bytes += bytes as u64;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let body_bytes = self.body_bytes.as_ref().map_or(0, |bytes| bytes.load(Ordering::Relaxed));
        self.request_bytes += body_bytes;
        let seconds = (self.clock.now() - self.started).as_secs_f64();
        self.meter.count(self.outcome);
        self.meter.duration.record(seconds);
        // Most requests have none, and to add nothing costs as much as to add something.
        if self.request_bytes > 0 {
            self.meter.request_bytes.increment(self.request_bytes);
        }
        self.meter.response_bytes.increment(self.response_bytes);
        let Some(line) = &self.line else { return };
        tracing::info!(
            target: "access",
            direction = self.meter.direction.as_str(),
            service = self.meter.service,
            peer = if line.peer.is_empty() { &self.meter.peer } else { &line.peer },
            rule = line.rule,
            method = line.method,
            path = line.path,
            request_id = line.request_id,
            status = self.outcome.status,
            flags = self.outcome.flag.map_or("", Flag::as_str),
            seconds,
            request_bytes = self.request_bytes,
            response_bytes = self.response_bytes,
            nodes = line.attempts.join(","),
        );
    }
}
