//! Calls through the mesh at a steady pace, whether or not earlier calls have been answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use http::header::{HOST, HeaderValue};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use starling_gossip::clock::{Clock, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::workload::NAME;

/// Calls under way at a time: two seconds of the fastest pace.
const UNDER_WAY_MAX: usize = 1_000;

/// A call that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Answers are one line.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// Failures that are kept to be shown.
const FAILURES_KEPT_MAX: usize = 5;

type Caller = Client<HttpConnector, Empty<Bytes>>;

/// What is sent.
pub(super) struct Load {
    /// Through which sidecar.
    pub(super) proxy: SocketAddr,
    /// To whom.
    pub(super) host: HeaderValue,
    /// How many calls.
    pub(super) requests: u64,
    /// How many a second.
    pub(super) rate: u64,
}

/// How one call went.
pub(super) struct Outcome {
    started: Instant,
    took: Duration,
    /// The workload that answered, or what went wrong.
    answer: Result<String, String>,
}

/// How all calls went so far.
#[derive(Default)]
pub(super) struct Tally {
    /// Calls that succeeded, by the workload that answered.
    pub(super) answered: BTreeMap<String, u64>,
    /// Calls that failed.
    pub(super) failed: u64,
    /// The first that failed: when they started, and why they failed.
    pub(super) failures: Vec<(Instant, String)>,
    took: Vec<Duration>,
}

/// Sends all of `load` and reports each call's outcome when it is there.
pub(super) async fn send(load: Load, clock: Clock, outcomes: mpsc::Sender<Outcome>) {
    // One request is one call: what the mesh does not hide must be seen.
    let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http();
    let start = clock.now();
    let mut under_way = JoinSet::new();
    for index in 0..load.requests {
        tokio::time::sleep_until(start + Duration::from_micros(index * 1_000_000 / load.rate)).await;
        while under_way.len() >= UNDER_WAY_MAX {
            under_way.join_next().await;
        }
        while under_way.try_join_next().is_some() {}
        let call = call(client.clone(), load.proxy, load.host.clone(), clock.clone(), outcomes.clone());
        under_way.spawn(call);
    }
    while under_way.join_next().await.is_some() {}
}

async fn call(
    client: Caller,
    proxy: SocketAddr,
    host: HeaderValue,
    clock: Clock,
    outcomes: mpsc::Sender<Outcome>,
) {
    let started = clock.now();
    let answer = tokio::time::timeout(TIMEOUT, exchange(&client, proxy, host)).await;
    let answer = answer.unwrap_or_else(|_elapsed| Err(format!("no answer within {TIMEOUT:?}")));
    let _ = outcomes.send(Outcome { started, took: clock.now() - started, answer }).await;
}

async fn exchange(client: &Caller, proxy: SocketAddr, host: HeaderValue) -> Result<String, String> {
    let request = Request::get(format!("http://{proxy}/")).header(HOST, host);
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let name = response.headers().get(NAME).and_then(|name| name.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    match name {
        Some(name) if status.is_success() => Ok(name),
        _ => Err(format!("{}: {}", status.as_u16(), String::from_utf8_lossy(&body).trim_end())),
    }
}

impl Tally {
    /// Counts one call.
    pub(super) fn add(&mut self, outcome: Outcome) {
        self.took.push(outcome.took);
        match outcome.answer {
            Ok(name) => *self.answered.entry(name).or_default() += 1,
            Err(reason) => {
                self.failed += 1;
                if self.failures.len() < FAILURES_KEPT_MAX {
                    self.failures.push((outcome.started, reason));
                }
            }
        }
    }

    /// Calls counted.
    pub(super) fn requests(&self) -> u64 {
        self.took.len() as u64
    }

    /// How long the call took that is longer than `percent` of them; `None` without calls.
    pub(super) fn percentile(&self, percent: f64) -> Option<Duration> {
        let mut took = self.took.clone();
        took.sort_unstable();
        let rank = (took.len() as f64 * percent / 100.0).ceil() as usize;
        took.get(rank.saturating_sub(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_calls_that_happened() {
        let mut tally = Tally::default();
        assert_eq!(tally.percentile(50.0), None);
        for millis in (1..=200).rev() {
            let took = Duration::from_millis(millis);
            tally.add(Outcome { started: Clock::System.now(), took, answer: Ok("web-1".to_owned()) });
        }
        let at = |percent| tally.percentile(percent).map(|took| took.as_millis());
        assert_eq!([at(0.0), at(50.0), at(99.0), at(100.0)], [Some(1), Some(100), Some(198), Some(200)]);
    }
}
