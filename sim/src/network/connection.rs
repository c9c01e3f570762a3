//! PURE: which pairs of hosts have a connection between them, as `transport` would keep it.
//!
//! Who has none pays for a handshake. Keep-alives hold a connection open while packets pass both ways; what
//! nobody has used for long is given back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A connection over which nothing has passed in one direction for so long is gone, as in `transport`
/// (whose keep-alives come more often).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that nobody has used for so long is given back, as in `transport`.
pub const UNUSED_CLOSE: Duration = Duration::from_secs(120);

/// All connections, by the lesser and the greater host: when each was used last.
#[derive(Debug, Default)]
pub struct Connections(BTreeMap<(usize, usize), Instant>);

impl Connections {
    /// Whether there is one between the two.
    pub fn has(&self, one: usize, other: usize, now: Instant) -> bool {
        self.0.get(&pair(one, other)).is_some_and(|used| now < *used + UNUSED_CLOSE)
    }

    /// The two use theirs, or have a new one.
    pub fn touch(&mut self, one: usize, other: usize, now: Instant) {
        self.0.insert(pair(one, other), now);
    }

    /// Those between two hosts that `is_gone` names are gone.
    pub fn cut(&mut self, is_gone: impl Fn(usize, usize) -> bool) {
        self.0.retain(|(one, other), _| !is_gone(*one, *other));
    }
}

fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_lasts_while_it_is_used_and_nobody_cuts_it() {
        let (mut connections, start) = (Connections::default(), Instant::now());
        assert!(!connections.has(1, 2, start));
        connections.touch(2, 1, start);
        connections.touch(1, 3, start);
        assert!(connections.has(1, 2, start) && connections.has(2, 1, start + IDLE_TIMEOUT * 2));
        connections.cut(|one, other| one == 3 || other == 3);
        assert!(!connections.has(1, 3, start) && connections.has(1, 2, start));
        assert!(!connections.has(1, 2, start + UNUSED_CLOSE));
    }
}
