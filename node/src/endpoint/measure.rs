//! One attempt at an endpoint, and what its outcome says of it: its latency, and whether it errs.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Response, StatusCode};
use starling_gossip::clock::Instant;

use super::Endpoint;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Waits for an attempt's outcome. Dropped without one, nobody has waited for it to its end.
pub(super) struct Measure<'e> {
    endpoint: &'e Endpoint,
    begun: Instant,
    /// Over a connection that has only been made: its time says little of the next ones.
    is_first: bool,
    is_settled: bool,
}

impl<'e> Measure<'e> {
    /// An attempt that has `begun` just now.
    pub(super) fn new(endpoint: &'e Endpoint, is_first: bool, begun: Instant) -> Self {
        Self { endpoint, begun, is_first, is_settled: false }
    }

    /// An answer has begun; its instance tells that it has so much `under_way`, if it does.
    pub(super) fn handle_head<B>(self, answer: &Response<B>, under_way: Option<u32>) {
        if let Some(under_way) = under_way {
            let endpoint = self.endpoint;
            let at = endpoint.stamp(endpoint.clock.now());
            endpoint.reported.handle_report(under_way, endpoint.in_flight(), at);
        }
        match is_error(answer.status(), answer.headers()) {
            true => self.handle_error(),
            false => self.handle_accept(),
        }
    }

    /// The workload did what it should.
    pub(super) fn handle_accept(mut self) {
        let begun = self.begun;
        let (took, now) = self.settle();
        if !self.is_first {
            self.endpoint.estimate.handle_answer(took, self.endpoint.stamp(now));
        }
        self.endpoint.record.handle_answer(took);
        self.endpoint.handle_outcome(true, begun, now);
    }

    /// It took the work and failed.
    pub(super) fn handle_error(mut self) {
        let (_, now) = self.settle();
        self.endpoint.handle_error(self.begun, now);
    }

    /// It took no work: whether it may be asked again is the breaker's question.
    pub(super) fn handle_refusal(mut self) {
        let begun = self.begun;
        let (took, now) = self.settle();
        self.endpoint.estimate.handle_failure(took, self.endpoint.stamp(now));
        self.endpoint.handle_outcome(false, begun, now);
    }

    /// The outcome says nothing of the endpoint.
    pub(super) fn leave_out(mut self) {
        self.is_settled = true;
    }

    fn settle(&mut self) -> (Duration, Instant) {
        self.is_settled = true;
        let now = self.endpoint.clock.now();
        (now.saturating_duration_since(self.begun), now)
    }
}

impl Drop for Measure<'_> {
    fn drop(&mut self) {
        if !self.is_settled && !self.is_first {
            let (waited, now) = self.settle();
            self.endpoint.estimate.handle_abandoned(waited, self.endpoint.stamp(now));
        }
    }
}

impl Endpoint {
    /// An attempt that had `begun` then took work and failed.
    pub(super) fn handle_error(&self, begun: Instant, now: Instant) {
        self.estimate.handle_failure(now.saturating_duration_since(begun), self.stamp(now));
        let in_a_row = self.record.handle_error(self.micros(begun), self.micros(now));
        self.handle_outcome(false, begun, now);
        if !self.record.is_out() {
            self.usage.handle_errors(&self.target, in_a_row, now);
        }
    }

    /// An answer to what had `begun` then was good so far, and breaks off.
    pub(super) fn handle_broken_answer(&self, begun: Instant) {
        let now = self.clock.now();
        let in_a_row = self.record.handle_broken_answer(self.micros(begun), self.micros(now));
        self.handle_outcome(false, begun, now);
        if !self.record.is_out() {
            self.usage.handle_errors(&self.target, in_a_row, now);
        }
    }

    /// Ends a trial that this work was, and an interval where it is time.
    fn handle_outcome(&self, is_good: bool, begun: Instant, now: Instant) {
        if self.record.is_out()
            && let Some(since) = self.usage.handle_trial(&self.target, &self.record, is_good, begun, now)
        {
            self.join(now);
            self.record.handle_good_trial(self.usage.consecutive_errors(), self.micros(since));
        }
        if let Some(ended) = self.usage.poll_interval(now) {
            let usage = self.usage.clone();
            // Not on this request's time.
            tokio::spawn(async move { usage.judge(ended, now) });
        }
    }

    /// On the clock of its record.
    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.created).as_micros() as u64
    }
}

/// Whether an answer says that its server is not well, and not only that the request is not.
fn is_error(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_about_the_request = matches!(
        status,
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED | StatusCode::LOOP_DETECTED
    );
    if status.is_server_error() {
        return !is_about_the_request;
    }
    // gRPC's own errors are in the head where there is no message: UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS.
    let grpc = headers.get(&GRPC_STATUS).map(http::HeaderValue::as_bytes);
    matches!(grpc, Some(b"2" | b"13" | b"14" | b"15"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_not_well_are_told_from_requests_that_are_not() {
        let is = |status: u16, grpc: Option<&'static str>| {
            let headers =
                grpc.map(|code| ("grpc-status".parse().expect("a name"), code.parse().expect("a value")));
            is_error(StatusCode::from_u16(status).expect("a status"), &headers.into_iter().collect())
        };
        for status in [200, 204, 302, 404, 429, 499, 501, 505, 508] {
            assert!(!is(status, None), "{status}");
        }
        for status in [500, 502, 503, 504, 520] {
            assert!(is(status, None), "{status}");
        }
        for (code, error) in
            [("0", false), ("5", false), ("4", false), ("2", true), ("13", true), ("14", true)]
        {
            assert_eq!(is(200, Some(code)), error, "{code}");
        }
    }
}
