//! STATE MACHINE: with whom does this node have nothing to do, and until when?
//!
//! A table of peers and ends, in this node's own time. Why a peer is shunned is the gossip core's business,
//! and what follows from it the pool's; nothing here closes, dials or speaks to other nodes, and nothing is
//! remembered once it is over.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::identity::SpiffeId;

use crate::limits::{SHUN_MAX, SHUNNED_MAX};

/// Peers that are shunned.
#[derive(Debug, Default)]
pub(crate) struct Shunned {
    until: BTreeMap<SocketAddr, BTreeMap<SpiffeId, Instant>>,
}

impl Shunned {
    /// Shuns `peer` at `address` for `span` from `now`, or for as long as it was to be shunned already;
    /// says whether that is new. When the table is full, whoever would be free first is free now.
    pub(crate) fn insert(
        &mut self,
        peer: &SpiffeId,
        address: SocketAddr,
        span: Duration,
        now: Instant,
    ) -> bool {
        self.forget(now);
        let end = now + span.min(SHUN_MAX);
        if let Some(until) = self.until.get_mut(&address).and_then(|peers| peers.get_mut(peer)) {
            *until = end.max(*until);
            return false;
        }
        if self.len() >= SHUNNED_MAX {
            self.free_first();
        }
        self.until.entry(address).or_default().insert(peer.clone(), end);
        true
    }

    /// How much longer `peer` is shunned at `address`; none if it is not.
    pub(crate) fn wait(&self, peer: &SpiffeId, address: SocketAddr, now: Instant) -> Option<Duration> {
        remaining(*self.until.get(&address)?.get(peer)?, now)
    }

    /// How much longer anybody at all is shunned at `address`.
    pub(crate) fn wait_for_anybody(&self, address: SocketAddr, now: Instant) -> Option<Duration> {
        self.until.get(&address)?.values().filter_map(|until| remaining(*until, now)).max()
    }

    fn len(&self) -> usize {
        self.until.values().map(BTreeMap::len).sum()
    }

    fn forget(&mut self, now: Instant) {
        self.until.retain(|_, peers| {
            peers.retain(|_, until| *until > now);
            !peers.is_empty()
        });
    }

    fn free_first(&mut self) {
        let all = self.until.iter().flat_map(|(address, peers)| {
            peers.iter().map(move |(peer, until)| (*until, *address, peer.clone()))
        });
        let Some((_, address, peer)) = all.min() else { return };
        if let Some(peers) = self.until.get_mut(&address) {
            peers.remove(&peer);
            if peers.is_empty() {
                self.until.remove(&address);
            }
        }
    }
}

fn remaining(until: Instant, now: Instant) -> Option<Duration> {
    until.checked_duration_since(now).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use starling_gossip::clock::Clock;

    const SPAN: Duration = Duration::from_secs(10);

    fn peer(name: &str) -> SpiffeId {
        format!("spiffe://acme/svc/{name}").parse().expect("an identity")
    }

    fn address(number: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, (number >> 8) as u8, number as u8], 7400))
    }

    #[test]
    fn it_ends_by_itself_and_concerns_one_identity_at_one_address() {
        let now = Clock::System.now();
        let mut shunned = Shunned::default();
        assert!(shunned.insert(&peer("a"), address(1), SPAN, now));
        assert_eq!(shunned.wait(&peer("a"), address(1), now), Some(SPAN));
        assert_eq!(shunned.wait_for_anybody(address(1), now), Some(SPAN));
        assert_eq!(shunned.wait(&peer("b"), address(1), now), None);
        assert_eq!(shunned.wait(&peer("a"), address(2), now), None);
        assert_eq!(shunned.wait(&peer("a"), address(1), now + SPAN), None);
        assert_eq!(shunned.wait_for_anybody(address(1), now + SPAN), None);
        shunned.insert(&peer("b"), address(2), SPAN, now + SPAN);
        assert_eq!(shunned.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn shunning_again_prolongs_and_is_nothing_new() {
        let now = Clock::System.now();
        let mut shunned = Shunned::default();
        assert!(shunned.insert(&peer("a"), address(1), SPAN, now));
        assert!(!shunned.insert(&peer("a"), address(1), SPAN, now + SPAN / 2));
        assert!(!shunned.insert(&peer("a"), address(1), Duration::ZERO, now));
        assert_eq!(shunned.wait(&peer("a"), address(1), now + SPAN), Some(SPAN / 2));
        assert!(shunned.insert(&peer("a"), address(1), Duration::MAX, now + SPAN * 2), "it was over");
        assert_eq!(shunned.wait(&peer("a"), address(1), now + SPAN * 2), Some(SHUN_MAX));
    }

    #[test]
    fn a_full_table_lets_go_who_would_be_free_first() {
        let now = Clock::System.now();
        let mut shunned = Shunned::default();
        for number in 0..=SHUNNED_MAX {
            let span = if number == 7 { SPAN / 2 } else { SPAN };
            assert!(shunned.insert(&peer("a"), address(number), span, now));
        }
        assert_eq!(shunned.len(), SHUNNED_MAX);
        assert_eq!(shunned.wait(&peer("a"), address(7), now), None);
        assert!(shunned.wait(&peer("a"), address(SHUNNED_MAX), now).is_some());
    }
}
