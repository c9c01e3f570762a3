//! PURE: how often a host tries to reach one that does not answer, as `transport` paces it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::quic::{BACKOFF_MAX, BACKOFF_MIN};

/// Failed dials, by who dialled whom: when the next is due, and the pause after that.
#[derive(Debug, Default)]
pub struct Dials(BTreeMap<(usize, usize), (Instant, Duration)>);

impl Dials {
    /// `from` has something for `to`, which it cannot reach. Says whether it dials, or still pauses.
    pub fn fails(&mut self, from: usize, to: usize, now: Instant) -> bool {
        let (due, pause) = self.0.get(&(from, to)).copied().unwrap_or((now, BACKOFF_MIN));
        if now < due {
            return false;
        }
        self.0.insert((from, to), (now + pause, (pause * 2).min(BACKOFF_MAX)));
        true
    }

    /// The two reached each other.
    pub fn succeeds(&mut self, one: usize, other: usize) {
        self.0.remove(&(one, other));
        self.0.remove(&(other, one));
    }

    /// `host` is gone, and what it tried with it.
    pub fn forget(&mut self, host: usize) {
        self.0.retain(|(from, _), _| *from != host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_somebody_answers() {
        let (mut dials, start) = (Dials::default(), Instant::now());
        let millis = |millis| start + Duration::from_millis(millis);
        assert!(dials.fails(1, 2, start) && dials.fails(2, 1, start));
        assert!(!dials.fails(1, 2, millis(99)) && dials.fails(1, 2, millis(100)));
        assert!(!dials.fails(1, 2, millis(299)) && dials.fails(1, 2, millis(300)));
        dials.succeeds(2, 1);
        assert!(dials.fails(1, 2, millis(300)) && dials.fails(2, 1, millis(1)));
        dials.forget(1);
        assert!(dials.fails(1, 2, millis(300)) && !dials.fails(2, 1, millis(2)));
    }
}
