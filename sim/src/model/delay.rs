//! What lies between two nodes: the simulated network's own rules for single messages, and what they
//! come to on average.
//!
//! A message is a QUIC stream, so a lost packet makes it late; [`crate::network::fate`] says by how much. A
//! pair that was silent for long has to connect anew first. Congestion and bandwidth are not modelled.

use std::time::Duration;

use crate::network::fate::packets;
use crate::scenario::{Conditions, Span};

/// What acknowledgements may wait (see [`crate::network::fate`], which a test here holds this against).
const ACK_DELAY: Duration = Duration::from_millis(25);

/// Losses in a row that are still told apart: after more, a message has been given up.
const LOSSES_MAX: i32 = 8;

/// What lies between any two nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// The mean round trip, jitter included.
    pub rtt: Duration,
    /// By how much single messages differ, evenly spread.
    pub jitter: Duration,
    /// The share of packets that are lost, 0 to less than 1.
    pub loss: f64,
}

impl Path {
    /// As the simulated network takes it.
    pub(super) fn conditions(&self) -> Conditions {
        let latency = Span(self.rtt.saturating_sub(self.jitter) / 2);
        Conditions { latency, jitter: Span(self.jitter), loss: self.loss, ..Conditions::default() }
    }

    /// What one message of `bytes` is worth as a constant delay, seconds, to something that grows by
    /// `rate` a second: less than the mean, because what comes early grows longest.
    pub fn effective_s(&self, bytes: usize, rate: f64) -> f64 {
        let chance = |losses| {
            self.within(bytes, losses) - if losses == 0 { 0.0 } else { self.within(bytes, losses - 1) }
        };
        let late_s = |losses: i32| self.penalty_micros() / 1e6 * f64::from((1 << losses) - 1);
        let left: f64 = (0..=LOSSES_MAX).map(|losses| chance(losses) * (-rate * late_s(losses)).exp()).sum();
        // Of those that arrive at all: what is lost more often has been given up.
        self.rtt.as_secs_f64() / 2.0 - (left / self.within(bytes, LOSSES_MAX)).ln() / rate
    }

    /// The chance that no packet of the message is lost more than `losses` times in a row.
    fn within(&self, bytes: usize, losses: i32) -> f64 {
        (1.0 - self.loss.powi(losses + 1)).powf(packets(bytes) as f64)
    }

    fn penalty_micros(&self) -> f64 {
        let rtt = self.rtt.as_micros() as f64;
        (1.5 * rtt).max(rtt + ACK_DELAY.as_micros() as f64)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::network::fate::travel;

    #[test]
    fn what_the_network_draws_has_the_mean_that_is_said() {
        let mut rng = StdRng::seed_from_u64(1);
        for (loss, bytes) in [(0.0, 100), (0.01, 11_400), (0.2, 1_000), (0.2, 11_400)] {
            let path = Path { rtt: Duration::from_millis(40), jitter: Duration::ZERO, loss };
            let drawn = (0..20_000).filter_map(|_| travel(&path.conditions(), loss, bytes, &mut rng));
            let mean = drawn.map(|it| it.as_secs_f64()).sum::<f64>() / 20_000.0;
            // What does not grow has all the time in the world: the mean.
            let said = path.effective_s(bytes, 1e-6);
            assert!((mean / said - 1.0).abs() < 0.03, "{loss} {bytes}: {mean} for {said}");
        }
    }
}
