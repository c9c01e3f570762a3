//! PURE: which pairs of hosts have a connection between them, as `transport` would keep it, and what that costs
//! besides messages.
//!
//! Who has none pays for a handshake. Keep-alives hold a connection open while packets pass both ways; what
//! nobody has used for long is given back. Every second packet is acknowledged, and a lone one after a
//! moment, if no message goes back meanwhile that the acknowledgement can travel with.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::quic::{ACK_DELAY, KEEP_ALIVE};
use super::traffic::Traffic;

/// A connection over which nothing has passed in one direction for so long is gone, as in `transport`
/// (whose keep-alives come more often).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that nobody has used for so long is given back, as in `transport`.
pub const UNUSED_CLOSE: Duration = Duration::from_secs(120);

/// All connections, by the lesser and the greater host.
#[derive(Debug, Default)]
pub struct Connections(BTreeMap<(usize, usize), Connection>);

#[derive(Debug)]
struct Connection {
    /// When its handshake is over.
    open_at: Instant,
    /// When a message used it last.
    used: Instant,
    /// When anything passed last, keep-alives included.
    passed: Instant,
    /// By the lesser and the greater host: when a lone packet came that it has not acknowledged.
    owed: [Option<Instant>; 2],
}

impl Connections {
    /// Whether there is one between the two.
    pub fn has(&self, one: usize, other: usize, now: Instant) -> bool {
        self.0.get(&pair(one, other)).is_some_and(|connection| now < connection.used + UNUSED_CLOSE)
    }

    /// The two have a new one, whose handshake takes until `open_at`.
    pub fn open(&mut self, one: usize, other: usize, now: Instant, open_at: Instant) {
        let connection = Connection { open_at, used: now, passed: now, owed: [None, None] };
        self.0.insert(pair(one, other), connection);
    }

    /// When a message can leave that `from` has for `to` at `now`: after the handshake.
    pub fn leaves_at(&self, from: usize, to: usize, now: Instant) -> Instant {
        self.0.get(&pair(from, to)).map_or(now, |connection| connection.open_at.max(now))
    }

    /// The two use theirs: a message leaves `from` at `sent`.
    pub fn use_for(&mut self, from: usize, to: usize, sent: Instant, traffic: &mut Traffic) {
        let Some(connection) = self.0.get_mut(&pair(from, to)) else { return };
        (connection.used, connection.passed) = (sent, sent);
        // What it owes travels along, if it has not gone already.
        let owed = &mut connection.owed[usize::from(from > to)];
        if let Some(arrived) = owed.take_if(|arrived| *arrived <= sent) {
            traffic.acknowledgements(from, usize::from(arrived + ACK_DELAY < sent));
        }
    }

    /// So many packets of `from` arrive at `to`.
    pub fn arrive(&mut self, (from, to): (usize, usize), packets: usize, at: Instant, traffic: &mut Traffic) {
        let Some(connection) = self.0.get_mut(&pair(from, to)) else { return };
        let owed = &mut connection.owed[usize::from(to > from)];
        let is_near = |earlier: Instant| earlier.max(at) <= earlier.min(at) + ACK_DELAY;
        let waiting = owed.take();
        let together = packets + usize::from(waiting.is_some_and(is_near));
        let alone = usize::from(waiting.is_some_and(|earlier| !is_near(earlier)));
        *owed = (together % 2 == 1).then_some(at);
        traffic.acknowledgements(to, together / 2 + alone);
    }

    /// Time has come to `now`: counts what was due besides messages, and forgets connections that were given back.
    pub fn settle(&mut self, now: Instant, traffic: &mut Traffic) {
        self.0.retain(|(one, other), connection| {
            let hosts = [*one, *other];
            for (host, owed) in hosts.iter().zip(&mut connection.owed) {
                let is_due = owed.take_if(|arrived| *arrived + ACK_DELAY < now).is_some();
                traffic.acknowledgements(*host, is_due.into());
            }
            while connection.passed + KEEP_ALIVE <= now.min(connection.used + UNUSED_CLOSE) {
                connection.passed += KEEP_ALIVE;
                traffic.keep_alive(hosts, 1);
            }
            now < connection.used + UNUSED_CLOSE
        });
    }

    /// Those between two hosts that `is_gone` names are gone.
    pub fn cut(&mut self, is_gone: impl Fn(usize, usize) -> bool) {
        self.0.retain(|(one, other), _| !is_gone(*one, *other));
    }

    /// The pairs that have one.
    pub fn pairs(&self, now: Instant) -> impl Iterator<Item = (usize, usize)> {
        self.0.keys().copied().filter(move |(one, other)| self.has(*one, *other, now))
    }
}

fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

#[cfg(test)]
mod tests {
    use super::super::quic::{ACK_BYTES, KEEP_ALIVE_BYTES};
    use super::*;

    fn sent(traffic: &Traffic, host: usize) -> usize {
        traffic.by_host.get(&host).copied().unwrap_or_default() as usize
    }

    #[test]
    fn a_connection_lasts_while_it_is_used_and_nobody_cuts_it() {
        let (mut connections, start) = (Connections::default(), Instant::now());
        assert!(!connections.has(1, 2, start));
        connections.open(2, 1, start, start + ACK_DELAY);
        connections.open(1, 3, start, start);
        assert_eq!(connections.leaves_at(1, 2, start), start + ACK_DELAY);
        assert!(connections.has(1, 2, start) && connections.has(2, 1, start + IDLE_TIMEOUT * 2));
        assert_eq!(connections.pairs(start).count(), 2);
        connections.cut(|one, other| one == 3 || other == 3);
        assert!(!connections.has(1, 3, start) && connections.has(1, 2, start));
        assert!(!connections.has(1, 2, start + UNUSED_CLOSE));
    }

    #[test]
    fn what_carries_nothing_is_kept_alive_until_it_is_given_back() {
        let (mut connections, start, mut traffic) =
            (Connections::default(), Instant::now(), Traffic::default());
        connections.open(1, 2, start, start);
        connections.use_for(2, 1, start + KEEP_ALIVE / 2, &mut traffic);
        connections.settle(start + KEEP_ALIVE, &mut traffic);
        assert_eq!(sent(&traffic, 1), 0);
        connections.settle(start + KEEP_ALIVE * 2, &mut traffic);
        assert_eq!([sent(&traffic, 1), sent(&traffic, 2)], [KEEP_ALIVE_BYTES; 2]);
        connections.settle(start + UNUSED_CLOSE * 9, &mut traffic);
        assert_eq!(sent(&traffic, 1), KEEP_ALIVE_BYTES * 12);
        assert_eq!(connections.pairs(start).count(), 0);
    }

    #[test]
    fn packets_are_acknowledged_in_twos_or_along_with_an_answer() {
        let (mut connections, start, mut traffic) =
            (Connections::default(), Instant::now(), Traffic::default());
        let millis = |millis| start + Duration::from_millis(millis);
        connections.open(1, 2, start, start);
        connections.arrive((1, 2), 5, start, &mut traffic);
        assert_eq!(sent(&traffic, 2), ACK_BYTES * 2, "four of them");
        connections.use_for(2, 1, millis(20), &mut traffic);
        assert_eq!(sent(&traffic, 2), ACK_BYTES * 2, "the fifth along with a message");
        connections.arrive((2, 1), 1, millis(40), &mut traffic);
        connections.arrive((2, 1), 1, millis(60), &mut traffic);
        assert_eq!(sent(&traffic, 1), ACK_BYTES, "both at once");
        connections.arrive((2, 1), 1, millis(80), &mut traffic);
        connections.settle(millis(90), &mut traffic);
        assert_eq!(sent(&traffic, 1), ACK_BYTES);
        connections.settle(millis(1000), &mut traffic);
        assert_eq!(sent(&traffic, 1), ACK_BYTES * 2, "a lone one after a moment");
    }
}
