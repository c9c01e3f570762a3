//! STATE MACHINE: renewals on their way through the mesh.
//!
//! Each renewal newly heard goes to a few peers with the next talk; chance leaves some out (one in seventeen, with
//! three), who ask for it themselves when an owner has been silent for longer than it means to be. So a
//! renewal costs the mesh three messages' share a node, and is missed by nobody for long.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::record::Renewal;
use crate::talk::Item;

/// To how many peers a node talks in each interval.
pub const TALK_PEERS: usize = 3;

/// Silence that is asked about, in tenths of the owner's renewal period.
pub const SILENCE_TENTHS: u32 = 13;

/// Owners asked about in one talk: those that were silent longest come first.
const ASKED_MAX: usize = 40;

/// How long until the same owner is asked about again, if it does not renew more often than every other time: whoever was
/// asked may know no more, or be gone.
const ASK_PERIOD: Duration = Duration::from_secs(4);

/// Renewals that wait for the next talk: all owners' of a large mesh.
const FRESH_MAX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(crate) struct Renewing {
    fresh: BTreeMap<u64, Renewal>,
    /// When each may be asked about again.
    asked: BTreeMap<u64, Instant>,
}

/// An owner that has been silent for long: its life, its last renewal there, how often it renews, and for how long it has
/// not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Silent {
    pub(crate) owner: u64,
    pub(crate) incarnation: u64,
    pub(crate) counter: u32,
    pub(crate) renew: Duration,
    pub(crate) silent: Duration,
}

impl Renewing {
    /// `owner`'s renewal is new here.
    pub(crate) fn handle_renewal(&mut self, owner: u64, renewal: Renewal) {
        if self.fresh.len() < FRESH_MAX || self.fresh.contains_key(&owner) {
            self.fresh.insert(owner, renewal);
        }
    }

    /// What the next talk tells everybody.
    pub(crate) fn take(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.fresh)
            .into_iter()
            .map(|(owner, renewal)| Item::Renewal(owner, renewal))
            .collect()
    }

    /// What it asks one peer.
    pub(crate) fn ask(&mut self, mut silent: Vec<Silent>, now: Instant) -> Vec<Item> {
        self.asked.retain(|_, again| now < *again);
        silent.retain(|it| !self.asked.contains_key(&it.owner));
        silent.sort_by_key(|it| std::cmp::Reverse(it.silent));
        silent.truncate(ASKED_MAX);
        self.asked.extend(silent.iter().map(|it| (it.owner, now + ASK_PERIOD.min(it.renew / 2))));
        silent.into_iter().map(|it| Item::Ask(it.owner, it.incarnation, it.counter)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_owner_is_told_once() {
        let mut renewing = Renewing::default();
        let renewal = |counter| Renewal { incarnation: 1, counter, link: [0; 32] };
        renewing.handle_renewal(7, renewal(1));
        renewing.handle_renewal(7, renewal(2));
        renewing.handle_renewal(8, renewal(1));
        assert_eq!(renewing.take(), [Item::Renewal(7, renewal(2)), Item::Renewal(8, renewal(1))]);
        assert!(renewing.take().is_empty());
    }

    #[test]
    fn the_longest_silent_are_asked_about_first_and_not_too_often() {
        let mut renewing = Renewing::default();
        let now = Instant::now();
        let renew = Duration::from_secs(30);
        let silent = |owner: u64| {
            let silent = Duration::from_secs(owner);
            Silent { owner, incarnation: 1, counter: 2, renew, silent }
        };
        let all: Vec<_> = (0..100).map(silent).collect();
        let first = renewing.ask(all.clone(), now);
        assert_eq!((first.len(), &first[0]), (ASKED_MAX, &Item::Ask(99, 1, 2)));
        assert_eq!(renewing.ask(all.clone(), now).first(), Some(&Item::Ask(59, 1, 2)));
        assert_eq!(renewing.ask(all, now + ASK_PERIOD).first(), Some(&Item::Ask(99, 1, 2)));
        let restless = Silent { renew: Duration::from_secs(2), ..silent(100) };
        assert_eq!(renewing.ask(vec![restless], now).len(), 1);
        assert_eq!(renewing.ask(vec![restless], now + Duration::from_secs(1)).len(), 1);
    }
}
