//! STATE MACHINE: a peer's calls that are open -> how many it is permitted.
//!
//! A connection begins with few, because each permitted call is prepared whether it comes or not, and
//! gets twice as many whenever half of them are open: a peer that fills its connection waits for
//! nothing, as long as it does not open as many again within a round trip. A permission cannot be
//! taken back (RFC 9000, section 4.6), so it only grows, and goes with its connection.

use crate::limits::CALLS_PER_CONNECTION_AT_FIRST;

/// What one peer is permitted on one connection.
#[derive(Debug)]
pub(crate) struct Permits {
    permitted: u32,
    calls_max: u32,
}

impl Permits {
    /// As a connection begins; `calls_max` is the most it may come to.
    pub(crate) fn new(calls_max: u32) -> Self {
        Self { permitted: CALLS_PER_CONNECTION_AT_FIRST, calls_max }
    }

    /// A call was opened, and `open` are now. Gives what the peer is permitted from now on, if that
    /// changes.
    pub(crate) fn handle_opened(&mut self, open: u32) -> Option<u32> {
        if open < self.permitted / 2 || self.permitted >= self.calls_max {
            return None;
        }
        self.permitted = self.permitted.saturating_mul(2).min(self.calls_max);
        Some(self.permitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fills_half_is_permitted_twice_as_much_up_to_the_most() {
        let most = CALLS_PER_CONNECTION_AT_FIRST * 3;
        let mut permits = Permits::new(most);
        assert_eq!(permits.handle_opened(CALLS_PER_CONNECTION_AT_FIRST / 2 - 1), None);
        let twice = CALLS_PER_CONNECTION_AT_FIRST * 2;
        assert_eq!(permits.handle_opened(CALLS_PER_CONNECTION_AT_FIRST / 2), Some(twice));
        assert_eq!(permits.handle_opened(CALLS_PER_CONNECTION_AT_FIRST / 2), None, "one step at a time");
        assert_eq!(permits.handle_opened(CALLS_PER_CONNECTION_AT_FIRST), Some(most));
        assert_eq!(permits.handle_opened(most), None);
    }
}
