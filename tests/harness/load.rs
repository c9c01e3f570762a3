//! A steady stream of requests, half of them on connections of their own, half on kept ones: open
//! loop, so a node that stalls does not slow the questions down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use hyper::header::CONNECTION;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};

use crate::client::{HttpConnection, Reply, request};

/// Kept connections, which share their half of the requests.
const KEPT: u32 = 10;

/// Requests under way at most: what a busy machine cannot keep up with is not asked, or what waits
/// would be all that is measured.
const UNDER_WAY_MAX: usize = 500;

/// Requests under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    fresh: JoinHandle<Outcome>,
    kept: Vec<JoinHandle<Outcome>>,
}

/// What came of them.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that were answered with 200.
    pub answered: usize,
    /// What happened to the others.
    pub failed: Vec<String>,
    /// The longest anybody waited, from before the connection was made.
    pub slowest: Duration,
}

impl Load {
    /// Sends `per_second` POST requests for `host` to `address` until it is ended.
    pub fn start(address: SocketAddr, host: &str, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pace = Duration::from_secs(1) * 2 / per_second;
        let fresh = tokio::spawn(ask_fresh(address, host.to_owned(), pace, stop.clone()));
        // Each at another moment, and between the others', or they would come in bursts.
        let between = Instant::now() + pace / 2;
        let kept = |index| {
            let ticks = interval_at(between + pace * index, pace * KEPT);
            tokio::spawn(ask_kept(address, host.to_owned(), ticks, stop.clone()))
        };
        let kept = (0..KEPT).map(kept).collect();
        Self { stop, fresh, kept }
    }

    /// Ends it, and waits for the last answer.
    pub async fn end(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = self.fresh.await.expect("no panic");
        for one in self.kept {
            all.add(one.await.expect("no panic"));
        }
        all
    }
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed.extend(other.failed);
        self.slowest = self.slowest.max(other.slowest);
    }

    fn count(&mut self, began: Instant, result: hyper::Result<Reply>) {
        self.slowest = self.slowest.max(began.elapsed());
        match result {
            Ok(reply) if reply.status() == 200 => self.answered += 1,
            Ok(reply) => self.failed.push(format!("{} {}", reply.status(), reply.text())),
            Err(error) => self.failed.push(format!("{error:?}")),
        }
    }
}

/// Every request has a connection of its own, and waits for no other.
async fn ask_fresh(address: SocketAddr, host: String, pace: Duration, stop: Arc<AtomicBool>) -> Outcome {
    let mut under_way = JoinSet::new();
    let mut all = Outcome::default();
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while under_way.try_join_next().map(|outcome| all.add(outcome.expect("no panic"))).is_some() {}
        if under_way.len() >= UNDER_WAY_MAX {
            continue;
        }
        let host = host.clone();
        under_way.spawn(async move {
            let mut outcome = Outcome::default();
            let began = Instant::now();
            let mut connection = HttpConnection::open(address).await;
            outcome.count(began, ask(&mut connection, &host).await);
            outcome
        });
    }
    under_way.join_all().await.into_iter().for_each(|outcome| all.add(outcome));
    all
}

/// One connection after the other, each kept until an answer ends it.
async fn ask_kept(address: SocketAddr, host: String, mut ticks: Interval, stop: Arc<AtomicBool>) -> Outcome {
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut outcome = Outcome::default();
    let mut kept: Option<HttpConnection> = None;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let began = Instant::now();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => HttpConnection::open(address).await,
        };
        let result = ask(&mut connection, &host).await;
        let closes = |reply: &Reply| reply.head.headers.contains_key(CONNECTION);
        kept = Some(connection).filter(|_| result.as_ref().is_ok_and(|reply| !closes(reply)));
        outcome.count(began, result);
    }
    outcome
}

/// POST, which nobody may send twice.
async fn ask(connection: &mut HttpConnection, host: &str) -> hyper::Result<Reply> {
    let response = connection.begin(request(Method::POST, host, "/", "x")).await?;
    Ok(Reply::read(response).await)
}
