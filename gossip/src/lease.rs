//! A lease that only its owner can renew: a hash chain (Lamport, "Password authentication with
//! insecure communication", CACM 1981).
//!
//! The owner draws a secret and hashes it `LEASE_LINKS_MAX` times; the last hash is the *anchor*
//! in its signed node record. Renewal `n` shows the value that gives the anchor after `n` more
//! hashes. Anybody can check it with hashes alone; nobody can make the next one. A renewal costs a
//! few bytes, and no signature.

use aws_lc_rs::digest::{SHA256, digest};

use crate::limits::LEASE_LINKS_MAX;
use crate::record::Renewal;

/// The owner's half: makes links.
pub struct LeaseChain {
    secret: [u8; 32],
    counter: u32,
}

/// A receiver's half: the newest link it has seen, which is all it needs to check the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenLink {
    counter: u32,
    link: [u8; 32],
}

impl LeaseChain {
    /// A new chain from a secret that must never be used twice.
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret, counter: 0 }
    }

    /// Link 0, for the node record.
    pub fn anchor(&self) -> [u8; 32] {
        hash_times(self.secret, LEASE_LINKS_MAX)
    }

    /// The next renewal, or `None` when the chain is used up and the owner needs a new anchor.
    pub fn renew(&mut self, incarnation: u64) -> Option<Renewal> {
        if self.counter == LEASE_LINKS_MAX {
            return None;
        }
        self.counter += 1;
        let link = hash_times(self.secret, LEASE_LINKS_MAX - self.counter);
        Some(Renewal { incarnation, counter: self.counter, link })
    }
}

impl SeenLink {
    /// Before any renewal.
    pub fn anchor(anchor: [u8; 32]) -> Self {
        Self { counter: 0, link: anchor }
    }

    /// The renewal that shows this link, if it belongs to `incarnation`; counter 0 is none.
    pub fn renewal(self, incarnation: u64) -> Renewal {
        Renewal { incarnation, counter: self.counter, link: self.link }
    }

    /// How many renewals have been seen.
    pub fn counter(self) -> u32 {
        self.counter
    }

    /// The state after `renewal`, or `None` if it is not newer or not the owner's. Costs one hash
    /// for every link it is ahead, at most [`LEASE_LINKS_MAX`].
    pub fn advance(self, renewal: &Renewal) -> Option<Self> {
        if !renewal.is_in_bounds() || renewal.counter <= self.counter {
            return None;
        }
        let ahead = renewal.counter - self.counter;
        (hash_times(renewal.link, ahead) == self.link)
            .then_some(Self { counter: renewal.counter, link: renewal.link })
    }
}

/// What it takes to find that `renewal` proves nothing, after the one with the counter `before`.
pub(crate) fn hashes_of(renewal: &Renewal, before: u32) -> u32 {
    renewal.counter.saturating_sub(before).min(LEASE_LINKS_MAX)
}

fn hash_times(mut value: [u8; 32], times: u32) -> [u8; 32] {
    for _ in 0..times {
        let hash = digest(&SHA256, &value);
        value.copy_from_slice(hash.as_ref());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_links_of_the_chain_renew() {
        let mut chain = LeaseChain::new([7; 32]);
        let seen = SeenLink::anchor(chain.anchor());
        let first = chain.renew(1).expect("a new chain");
        let second = chain.renew(1).expect("a new chain");

        let after_first = seen.advance(&first).expect("first");
        assert_eq!(after_first.advance(&first), None, "a repeat renews nothing");
        let after_second = seen.advance(&second).expect("a gap is no hindrance");
        assert_eq!(after_first.advance(&second), Some(after_second));
        assert_eq!(after_second.advance(&first), None, "never backwards");

        let forged = Renewal { counter: 3, link: [9; 32], ..second };
        assert_eq!(after_second.advance(&forged), None);
        let replayed_as_newer = Renewal { counter: 3, ..second };
        assert_eq!(after_second.advance(&replayed_as_newer), None);
        let endless = Renewal { counter: u32::MAX, ..second };
        assert_eq!(after_second.advance(&endless), None);
    }
}
