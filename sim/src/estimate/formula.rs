//! PURE: the equations of an epidemic, solved step by step.
//!
//! The mesh as a share of it that knows, in mean field (everybody meets the average of everybody). A rumour: whoever
//! learns it tells a few others at once, and as many others in each of a few rounds. A renewal: whoever
//! hears it tells a few others within a second, and who has missed it asks. What is left out: chance at the
//! beginning, when few know, which makes small meshes and the first steps slower than is said here.

use starling_gossip::handle::News;

use starling_gossip::neighbours::NEIGHBOURS;
use starling_gossip::renewing::TALK_PEERS;
use starling_gossip::watching::{QUESTION_PERIOD, UNANSWERED_AFTER, WATCHERS, WATCHERS_NEEDED};

use crate::model::{ASKED_AFTER, Percentiles, REPAIRED_AFTER, Settings, TALK_PERIOD, calm};

use super::Figures;

/// One message takes so many steps, if they are within the bounds: finer changes nothing that can be seen.
const STEPS_PER_MESSAGE: f64 = 8.0;
const STEP_MIN_S: f64 = 0.0002;
const STEP_MAX_S: f64 = 0.002;

/// Steps of a renewal, which waits for whole seconds.
const RENEWAL_STEP_S: f64 = 0.01;

/// How long a rumour is news at most, after its rounds: steps of the slowest path, for the largest mesh.
const MESSAGES_MAX: f64 = 40.0;

/// Where the last of many independent moments lies on average: when so many are still expected
/// (the mean of Gumbel's distribution, e to the power of minus Euler's constant).
const STILL_EXPECTED: f64 = 0.561;

/// How the formula answers.
pub(super) fn figures(settings: &Settings) -> Figures {
    let (rumour, renewal, calm) = (rumour(settings), renewal(settings), calm(settings));
    // A crash at any moment between two renewals; one that its owner has not talked of yet nobody has heard.
    let since_renewal = millis(settings.renew.as_secs_f64() / 2.0 + TALK_PERIOD.as_secs_f64() / 2.0);
    let lease = millis(settings.lease.as_secs_f64());
    // The second of three watchers, who ask at any moment of a second, is the middle one.
    let watchers = WATCHERS.min(settings.nodes - 1);
    let believed = WATCHERS_NEEDED.min(watchers) as f64 / (watchers + 1) as f64;
    let noticed = millis(QUESTION_PERIOD.as_secs_f64() * believed + UNANSWERED_AFTER.as_secs_f64());
    Figures {
        known_ms: rumour,
        suspect_ms: rumour.map(|took| noticed + took),
        expired_ms: renewal.map(|took| lease - since_renewal + took),
        messages_per_node_s: calm.messages,
        bytes_per_node_s: calm.bytes,
    }
}

/// Milliseconds until the shares know a rumour.
fn rumour(settings: &Settings) -> Percentiles {
    let News { told, rounds, period } = News::default();
    let (others, passing) = ((settings.nodes - 1) as f64, 1.0 - settings.path.loss);
    let took = settings.path.rtt.as_secs_f64() / 2.0;
    let step_s = (took / STEPS_PER_MESSAGE).clamp(STEP_MIN_S, STEP_MAX_S);
    let steps = |seconds: f64| (seconds / step_s).round() as usize;
    // Neighbours come to an end before rounds do in a small mesh.
    let degree = NEIGHBOURS.min(settings.nodes - 1);
    let tellings: Vec<(usize, f64)> = (0..rounds as usize)
        .map(|round| {
            let after = took + period.as_secs_f64() * round as f64;
            let told = told.min(degree.saturating_sub(round * told)) as f64;
            (steps(after).max(1), (1.0 - passing * told / others).max(f64::MIN_POSITIVE).ln())
        })
        .collect();
    let horizon = steps(took * MESSAGES_MAX + period.as_secs_f64() * f64::from(rounds));
    let mut known: Vec<f64> = Vec::with_capacity(horizon);
    for step in 0..horizon {
        // How many knew when what arrives now was sent, the owner included.
        let knew =
            |before: usize| step.checked_sub(before).map_or(0.0, |at| 1.0 + others * known_at(&known, at));
        let untold: f64 = tellings.iter().map(|(before, missed)| knew(*before) * missed).sum();
        known.push(1.0 - untold.exp());
    }
    let repaired = REPAIRED_AFTER + TALK_PERIOD / 2 + settings.path.rtt * 3 / 2;
    shares(others).map(|share| match known.iter().position(|known| *known >= share) {
        Some(step) => millis(step as f64 * step_s),
        None => millis(repaired.as_secs_f64()),
    })
}

/// Milliseconds until the shares have a renewal.
fn renewal(settings: &Settings) -> Percentiles {
    let (others, passing) = ((settings.nodes - 1) as f64, 1.0 - settings.path.loss);
    let steps = |seconds: f64| (seconds / RENEWAL_STEP_S).round() as usize;
    let took = steps(settings.path.rtt.as_secs_f64() / 2.0);
    let (talk, renew) = (steps(TALK_PERIOD.as_secs_f64()), settings.renew.as_secs_f64());
    let asked_from = steps(renew * (ASKED_AFTER - 1.0)) + talk / 2;
    let told = (TALK_PEERS as f64).min(others);
    let missed = (1.0 - passing * told / others).max(f64::MIN_POSITIVE).ln();
    let (mut known, mut sums): (Vec<f64>, Vec<f64>) = (Vec::new(), vec![0.0]);
    let mut unasked = 1.0;
    let end = steps(renew);
    for step in 0..end {
        // Who learned it within the last second has told it by now, or will: evenly spread over the second.
        let sent = step.saturating_sub(took + 1);
        let from = sent.saturating_sub(talk);
        let owner = (sent as f64 / talk as f64).min(1.0);
        let told = owner + others * (sum(&sums, sent) - sum(&sums, from)) / talk as f64;
        if step >= asked_from {
            let answered = known_at(&known, step.saturating_sub(2 * took + 1)) * passing * passing;
            unasked *= (-answered / talk as f64).exp();
        }
        let knows = 1.0 - (told * missed).exp() * unasked;
        known.push(knows);
        sums.push(sums.last().copied().unwrap_or_default() + knows);
    }
    shares(others).map(|share| {
        let step = known.iter().position(|known| *known >= share).unwrap_or(end);
        millis(step as f64 * RENEWAL_STEP_S)
    })
}

/// Which shares of the others the percentiles are.
fn shares(others: f64) -> Percentiles {
    Percentiles { p50: 0.5, p90: 0.9, p99: 0.99, p100: 1.0 }
        .map(|share| ((others * share).ceil() - STILL_EXPECTED) / others)
}

fn known_at(known: &[f64], step: usize) -> f64 {
    known.get(step).copied().unwrap_or_default()
}

fn sum(sums: &[f64], step: usize) -> f64 {
    sums.get(step).copied().unwrap_or_default()
}

fn millis(seconds: f64) -> f64 {
    seconds * 1000.0
}
