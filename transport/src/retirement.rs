//! STATE MACHINE: when does a connection that nobody needs go?
//!
//! Closing cuts what the peer may have just sent, so nobody closes alone. One end, once idle long
//! enough, says goodbye: it opens no more streams. The other then opens none either, and closes
//! when its own are done. The loser of two simultaneous dials goes the same way, only sooner. A datagram
//! is no work that anybody waits for, but shows that the connection is used, at either end.

use starling_gossip::clock::Instant;

use crate::limits::{GOODBYE_WAIT, LOSER_LINGER, UNUSED_CLOSE};

/// What a connection looks like at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Situation {
    /// Streams or messages are under way.
    pub(crate) busy: bool,
    /// A message went or came since the last look.
    pub(crate) used: bool,
    /// A better connection to the same peer exists.
    pub(crate) superseded: bool,
    /// The peer said goodbye.
    pub(crate) peer_left: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Stay,
    SayGoodbye,
    Close,
}

/// One connection's way out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retirement {
    idle_since: Option<Instant>,
    said_goodbye: bool,
    due: Option<Instant>,
}

impl Retirement {
    /// When to look again even if nothing happens.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Decides at `now`.
    pub(crate) fn handle_situation(&mut self, situation: Situation, now: Instant) -> Step {
        if situation.busy {
            (self.idle_since, self.due) = (None, None);
            return Step::Stay;
        }
        if situation.peer_left {
            return Step::Close;
        }
        if situation.used && !self.said_goodbye {
            self.idle_since = None;
        }
        let idle_since = *self.idle_since.get_or_insert(now);
        let patience = match (self.said_goodbye, situation.superseded) {
            (true, _) => GOODBYE_WAIT,
            (false, true) => LOSER_LINGER,
            (false, false) => UNUSED_CLOSE,
        };
        self.due = Some(idle_since + patience);
        if now < idle_since + patience {
            return Step::Stay;
        }
        if self.said_goodbye {
            return Step::Close;
        }
        self.said_goodbye = true;
        self.idle_since = Some(now);
        self.due = Some(now + GOODBYE_WAIT);
        Step::SayGoodbye
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use starling_gossip::clock::Clock;

    #[test]
    fn an_unused_connection_says_goodbye_and_then_waits() {
        let now = Clock::System.now();
        let mut retirement = Retirement::default();
        let idle = Situation::default();
        assert_eq!(retirement.handle_situation(idle, now), Step::Stay);
        assert_eq!(retirement.poll_timeout(), Some(now + UNUSED_CLOSE));
        let later = now + UNUSED_CLOSE;
        assert_eq!(retirement.handle_situation(idle, later), Step::SayGoodbye);
        assert_eq!(retirement.handle_situation(idle, later), Step::Stay);
        assert_eq!(retirement.handle_situation(idle, later + GOODBYE_WAIT), Step::Close);
    }

    #[test]
    fn streams_are_never_cut() {
        let now = Clock::System.now();
        let mut retirement = Retirement::default();
        let busy = Situation { busy: true, superseded: true, peer_left: true, ..Situation::default() };
        assert_eq!(retirement.handle_situation(busy, now + UNUSED_CLOSE * 9), Step::Stay);
        assert_eq!(retirement.handle_situation(Situation { busy: false, ..busy }, now), Step::Close);
    }

    #[test]
    fn work_begins_the_wait_anew() {
        let now = Clock::System.now();
        let mut retirement = Retirement::default();
        let loser = Situation { superseded: true, ..Situation::default() };
        retirement.handle_situation(loser, now);
        retirement.handle_situation(Situation { busy: true, ..loser }, now + LOSER_LINGER);
        assert_eq!(retirement.handle_situation(loser, now + LOSER_LINGER), Step::Stay);
        assert_eq!(retirement.handle_situation(loser, now + LOSER_LINGER * 2), Step::SayGoodbye);
    }

    #[test]
    fn use_begins_the_wait_anew_until_goodbye_is_said() {
        let mut now = Clock::System.now();
        let mut retirement = Retirement::default();
        let used = Situation { used: true, ..Situation::default() };
        for _ in 0..9 {
            assert_eq!(retirement.handle_situation(used, now), Step::Stay);
            assert_eq!(retirement.poll_timeout(), Some(now + UNUSED_CLOSE));
            now += UNUSED_CLOSE - GOODBYE_WAIT;
        }
        now += GOODBYE_WAIT;
        assert_eq!(retirement.handle_situation(Situation::default(), now), Step::SayGoodbye);
        assert_eq!(retirement.handle_situation(used, now + GOODBYE_WAIT), Step::Close);
    }

    #[test]
    fn who_was_left_goes_whatever_came_last() {
        let now = Clock::System.now();
        let left = Situation { used: true, peer_left: true, ..Situation::default() };
        assert_eq!(Retirement::default().handle_situation(left, now), Step::Close);
    }
}
