//! PURE: the equations of an epidemic, solved step by step.
//!
//! The mesh as a share of it that still does not know, in mean field (everybody meets the average of
//! everybody). Three things make it shrink: a round of one's own asks three others, each of whom
//! may know; rounds of those who know tell one; and whoever learns news tells two more at once. Each
//! takes effect a message, or three, later. What is left out: chance at the beginning, when few know.
//! Delays differ, by lost packets above all; they are put in as the one delay with which the knowing
//! would grow as fast at first (the equation of Euler and Lotka).

use std::time::Duration;

use starling_gossip::handle::News;
use starling_gossip::run::{SEED_PERIOD, TOLD_AT_ONCE};

use crate::model::{PEERS_PER_ROUND, Percentiles, Settings, Traffic, exchange_bytes};

use super::Figures;

/// Steps in one round: finer changes nothing that can be seen.
const STEPS_PER_ROUND: f64 = 500.0;
/// And at least so many in the time of one message, but no round has more than the limit.
const STEPS_PER_MESSAGE: f64 = 4.0;
const STEPS_PER_ROUND_MAX: f64 = 20_000.0;

/// Rounds after which even the largest mesh knows.
const ROUNDS_MAX: usize = 60;

/// Rates of growth, a second, between which the true one lies: rounds once a day, messages of a microsecond.
const GROWTH_RATES: (f64, f64) = (1e-6, 1e7);
/// Halvings of their ratio, which leave a part in a million.
const HALVINGS: usize = 24;

/// Where the last of many independent moments lies on average: when so many are still expected
/// (the mean of Gumbel's distribution, e to the power of minus Euler's constant).
const STILL_EXPECTED: f64 = 0.561;

/// How the formula answers.
pub(super) fn figures(settings: &Settings) -> Figures {
    let renewal = spread(settings, false);
    let since_renewal = settings.renew.as_secs_f64() * 500.0;
    let silent = |after: Duration| renewal.map(|took| after.as_secs_f64() * 1000.0 - since_renewal + took);
    let traffic = calm(settings);
    Figures {
        known_ms: spread(settings, true),
        suspect_ms: silent(settings.suspect_after()),
        expired_ms: silent(settings.lease),
        messages_per_node_s: traffic.messages_per_node_s(settings.nodes),
        bytes_per_node_s: traffic.bytes_per_node_s(settings.nodes),
    }
}

/// An hour of it: three exchanges a round, one with a seed now and then, each renewal once to each
/// node.
fn calm(settings: &Settings) -> Traffic {
    const HOUR: Duration = Duration::from_secs(3600);
    let times = |period: Duration| HOUR.as_secs_f64() / period.as_secs_f64();
    let exchanges = times(settings.interval) * PEERS_PER_ROUND as f64 + times(SEED_PERIOD);
    let all = (exchanges * settings.nodes as f64) as u64;
    let renewals = (times(settings.renew) * settings.nodes as f64) as u64;
    Traffic { time: HOUR, syns: all, syn_acks: all, acks: all, renewals }
}

/// The share that knows, step by step, and what it is made of.
struct MeanField {
    step_s: f64,
    peers: f64,
    /// By step: the share of the others that knows.
    known: Vec<f64>,
    /// By the phase of a node's rounds: the chance that its own rounds have not told it.
    unasked: Vec<f64>,
    unasked_sum: f64,
    /// The chance that nobody else has told it.
    untold: f64,
}

/// Milliseconds until the shares know, of news or of a renewal.
fn spread(settings: &Settings, is_news: bool) -> Percentiles {
    let others = (settings.nodes - 1) as f64;
    let interval = settings.interval.as_secs_f64();
    let delays = Delays::of(settings, is_news);
    let wanted_steps = STEPS_PER_ROUND.max(interval / delays.ack * STEPS_PER_MESSAGE);
    let steps_per_round = wanted_steps.min(STEPS_PER_ROUND_MAX).ceil();
    let step_s = interval / steps_per_round;
    let steps = |delay: f64| ((delay / step_s).round() as usize).max(1);
    let (digest, ack, exchange) = (steps(delays.digest), steps(delays.ack), steps(delays.exchange()));
    let mut field = MeanField::new(others, steps_per_round as usize, step_s);
    let wanted = Percentiles { p50: 0.5, p90: 0.9, p99: 0.99, p100: 1.0 }
        .map(|share| ((others * share).ceil() - STILL_EXPECTED) / others);
    for step in 0..steps_per_round as usize * ROUNDS_MAX {
        let newly = if is_news { field.told_as_news(step, exchange) } else { 0.0 };
        let known = field.advance(step, (digest, ack), interval, newly);
        if known >= wanted.p100 {
            break;
        }
    }
    wanted.map(|share| field.known.partition_point(|known| *known < share) as f64 * step_s * 1000.0)
}

/// What messages take, seconds.
#[derive(Clone, Copy)]
struct Delays {
    /// The first: a digest, and perhaps a handshake before it.
    syn: f64,
    /// One with a digest: many packets, of which one may be late.
    digest: f64,
    /// The last of an exchange.
    ack: f64,
}

impl Delays {
    /// From a SYN to what the ACK brings.
    fn exchange(self) -> f64 {
        self.syn + self.digest + self.ack
    }

    fn of(settings: &Settings, is_news: bool) -> Self {
        let (path, bytes) = (&settings.path, exchange_bytes(settings.nodes));
        let (cold, rtt) = (settings.cold_share(), path.rtt.as_secs_f64());
        let delays = |rate: f64| {
            let digest = path.effective_s(bytes, rate).max(1e-6);
            let connecting = -(1.0 - cold + cold * (-rate * rtt).exp()).ln() / rate;
            Self { syn: connecting + digest, digest, ack: path.effective_s(1, rate).max(1e-6) }
        };
        // How many others one who knows tells in all its life, the later the less they count. At the
        // rate of growth it is one.
        let offspring = |rate: f64| {
            let delays = delays(rate);
            let after = |delay: f64| (-rate * delay).exp();
            let rounds = PEERS_PER_ROUND as f64 / settings.interval.as_secs_f64() / rate;
            let news = if is_news { News::default().told as f64 } else { 0.0 };
            news * after(delays.exchange()) + rounds * (after(delays.digest) + after(delays.ack))
        };
        let (mut slow, mut fast) = GROWTH_RATES;
        for _ in 0..HALVINGS {
            let middle = (slow * fast).sqrt();
            if offspring(middle) > 1.0 {
                slow = middle;
            } else {
                fast = middle;
            }
        }
        delays(slow)
    }
}

impl MeanField {
    fn new(others: f64, phases: usize, step_s: f64) -> Self {
        Self {
            step_s,
            peers: others,
            known: Vec::new(),
            unasked: vec![1.0; phases],
            unasked_sum: phases as f64,
            untold: 1.0,
        }
    }

    /// The share that knew `delay` steps before `step`, its owner included; before the start, none.
    fn known_before(&self, step: usize, delay: usize) -> f64 {
        let before = step.checked_sub(delay);
        before.map_or(0.0, |at| (self.known.get(at).copied().unwrap_or(0.0) + 1.0 / self.peers).min(1.0))
    }

    /// How many tellings reach each node at `step`, from those who learned an exchange earlier.
    fn told_as_news(&self, step: usize, exchange: usize) -> f64 {
        if step == exchange {
            return TOLD_AT_ONCE.min(self.peers as usize) as f64 / self.peers;
        }
        News::default().told as f64
            * (self.known_before(step, exchange) - self.known_before(step, exchange + 1))
    }

    /// Lets one step pass; returns the share that knows then. Who is asked must have known when the
    /// question came, a digest earlier; who asks, when the answer came, an ACK earlier.
    fn advance(&mut self, step: usize, (digest, ack): (usize, usize), interval: f64, told: f64) -> f64 {
        let (asked, asking) = (self.known_before(step, digest), self.known_before(step, ack));
        let phase = step % self.unasked.len();
        let asks = PEERS_PER_ROUND.min(self.peers as usize) as f64;
        let (before, after) = (self.unasked[phase], self.unasked[phase] * (1.0 - asked).powf(asks));
        self.unasked[phase] = after;
        self.unasked_sum += after - before;
        let told_by_rounds = asking * asks / interval + asked / SEED_PERIOD.as_secs_f64();
        self.untold *= (-told_by_rounds * self.step_s - told).exp();
        let knows = 1.0 - self.untold * self.unasked_sum / self.unasked.len() as f64;
        self.known.push(knows);
        knows
    }
}
