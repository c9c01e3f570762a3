//! A SIGKILL under traffic: when each caller last tried the dead instance, what failed, and when others
//! show the node as suspect.
//!
//! Calls are POST, which nobody may send twice: those that fail are those that the dead node had taken or
//! may have taken. What callers tried is what their nodes say of it, for calls that are made again
//! elsewhere are not seen by who makes them.

use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use starling_tests::{Load, Node};

use crate::figure::{Figure, Unit};
use crate::mesh::{Event, Stage, millis, pair_service, say};

const LAST_ATTEMPT_P99_MAX: f64 = 1_000.0;
const SUSPECT_P99_MAX: f64 = 5_000.0;

pub const SUSPECTED: &str = "crash: shown by another node";

/// Each caller's calls: half a dozen are under way at any time, and the machine has time left.
const PER_SECOND: u32 = 60;

/// Until callers have connections to both; longer for each crash, so that each comes at another moment of
/// the watchers' rounds.
const WARM: Duration = Duration::from_secs(2);
const WARM_STEP: Duration = Duration::from_millis(270);

/// From a crash until callers are asked. Longer than the threshold, so that who tries again is found
/// out, and than the suspicion, so that it is measured under the same traffic.
const AFTER: Duration = Duration::from_secs(6);

/// What the crashes did.
#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    last_attempts: Vec<f64>,
    answered: usize,
    failed: Vec<String>,
    slowest: Vec<f64>,
}

pub async fn run(stage: &mut Stage) -> Vec<Figure> {
    let mut seen = Seen::default();
    for crash in 0..stage.plan.crashes {
        say(&format!("crash {} of {}", crash + 1, stage.plan.crashes));
        crash_one(stage, crash, &mut seen).await;
    }
    if let Some(failed) = seen.failed.first() {
        say(&format!("a call that failed: {}", failed.trim_end()));
    }
    let calls = seen.answered + seen.failed.len();
    let suspected = millis(SUSPECTED, &stage.delays(&seen.events), SUSPECT_P99_MAX);
    let which = |most| [("p50", None), ("p99", Some(most)), ("max", None)];
    let count = |what, value| Figure::one(what, "all", Unit::Count, value as f64);
    let mut figures = Figure::of(
        "crash: a caller's last attempt",
        Unit::Millis,
        &seen.last_attempts,
        which(LAST_ATTEMPT_P99_MAX),
    );
    figures.extend(Figure::of(SUSPECTED, Unit::Millis, &suspected, which(SUSPECT_P99_MAX)));
    figures.extend(Figure::of("crash: longest wait of a call", Unit::Millis, &seen.slowest, [("max", None)]));
    figures.push(count("crash: calls", calls));
    figures.push(count("crash: calls that failed", seen.failed.len()));
    figures
}

async fn crash_one(stage: &mut Stage, crash: usize, seen: &mut Seen) {
    let service = pair_service(crash);
    let [victim, _] = stage.plan.pair(crash);
    let victim_name = stage.nodes[victim].name().to_owned();
    let callers = 0..stage.plan.callers;
    for caller in callers.clone() {
        stage.nodes[caller].finds(&service, 2).await;
    }
    let start =
        |caller: usize| Load::start(stage.nodes[caller].http_proxy(), &format!("{service}.mesh"), PER_SECOND);
    let loads: Vec<_> = callers.clone().map(start).collect();
    tokio::time::sleep(WARM + WARM_STEP * crash as u32).await;
    let killed_at = Clock::System.now();
    seen.events.push(stage.kill(victim).await);
    tokio::time::sleep(AFTER).await;
    for caller in callers {
        let last = last_attempt(&stage.nodes[caller], &service, &victim_name).await;
        seen.last_attempts.push(last.saturating_duration_since(killed_at).as_secs_f64() * 1000.0);
    }
    for load in loads {
        let outcome = load.end().await;
        seen.answered += outcome.answered;
        seen.failed.extend(outcome.failed);
        seen.slowest.push(outcome.slowest.as_secs_f64() * 1000.0);
    }
}

/// When `caller` last began work with the instance of `service` at `victim`; late by what an answer of its
/// admin API takes.
async fn last_attempt(caller: &Node, service: &str, victim: &str) -> Instant {
    let route = caller.admin().get(&format!("/v1/routes/{service}")).await.json;
    let now = Clock::System.now();
    let candidates = route["candidates"].as_array().expect("candidates");
    let dead = candidates.iter().find(|candidate| candidate["node"] == victim);
    let age = dead.and_then(|candidate| candidate["last_attempt_age_ms"].as_u64());
    let age = age.unwrap_or_else(|| panic!("{} never called {victim}: {route}", caller.name()));
    now - Duration::from_millis(age)
}
