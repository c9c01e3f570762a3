//! STATE MACHINE: whether whoever registered an instance still stands by it.

use std::time::Duration;

use starling_gossip::clock::Instant;

/// Times to live without a heartbeat after which an instance is withdrawn. Unhealthy after one; the
/// rest is time to restart whoever sends heartbeats without losing the instance.
const WITHDRAWN_AFTER: u32 = 3;

/// The heartbeats of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    ttl: Duration,
    last: Instant,
    /// What the last one said.
    is_well: bool,
}

/// What the heartbeats say at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The last one is young and says that all is well.
    Well,
    /// The last one says that it is not.
    Unwell,
    /// None came within the time to live.
    Missed,
    /// None came for so long that nobody stands by the instance.
    Expired,
}

impl Heartbeat {
    /// The first heartbeat, good for `ttl`.
    pub(super) fn new(ttl: Duration, now: Instant) -> Self {
        Self { ttl, last: now, is_well: true }
    }

    /// Takes in another.
    pub(super) fn handle_beat(&mut self, is_well: bool, now: Instant) {
        (self.last, self.is_well) = (now, is_well);
    }

    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// How long the last one is still good.
    pub(crate) fn remaining(&self, now: Instant) -> Duration {
        (self.last + self.ttl).saturating_duration_since(now)
    }

    pub(super) fn standing(&self, now: Instant) -> Standing {
        let age = now.saturating_duration_since(self.last);
        if age >= self.ttl * WITHDRAWN_AFTER {
            Standing::Expired
        } else if age >= self.ttl {
            Standing::Missed
        } else if self.is_well {
            Standing::Well
        } else {
            Standing::Unwell
        }
    }

    /// When the standing changes by itself; `None` once it has expired.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        match self.standing(now) {
            Standing::Well | Standing::Unwell => Some(self.last + self.ttl),
            Standing::Missed => Some(self.last + self.ttl * WITHDRAWN_AFTER),
            Standing::Expired => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use starling_gossip::clock::Clock;

    use super::*;

    #[test]
    fn a_missed_heartbeat_makes_unwell_and_three_withdraw() {
        let start = Clock::System.now();
        let second = Duration::from_secs(1);
        let mut beat = Heartbeat::new(second, start);
        assert_eq!(beat.standing(start), Standing::Well);
        assert_eq!(beat.poll_timeout(start), Some(start + second));
        assert_eq!(beat.standing(start + second), Standing::Missed);
        assert_eq!(beat.poll_timeout(start + second), Some(start + second * 3));
        assert_eq!(beat.remaining(start + second * 2), Duration::ZERO);
        assert_eq!(beat.standing(start + second * 3), Standing::Expired);
        assert_eq!(beat.poll_timeout(start + second * 3), None);
        beat.handle_beat(false, start + second * 2);
        assert_eq!(beat.standing(start + second * 2), Standing::Unwell);
        assert_eq!(beat.standing(start + second * 3), Standing::Missed, "silence counts whatever was said");
        beat.handle_beat(true, start + second * 3);
        assert_eq!(beat.standing(start + second * 3), Standing::Well);
        assert_eq!(beat.remaining(start + second * 3), second);
    }
}
