//! What lies between two nodes.

use std::time::Duration;

use crate::scenario::{Conditions, Span};

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
}
