//! What others, and this node itself, have seen of one owner: reasons to doubt, and how old its lease is said to be.
//!
//! A doubt lowers a rank and ends no lease. Of several reports of a lease's age the lowest counts, so
//! that no single liar makes anybody old; and one report alone counts for nothing, so that a single liar keeps
//! nobody young for longer than a lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Instant;
use crate::identity::SpiffeId;
use crate::watching::{Sighting, WATCHERS_NEEDED};

/// Reports of one lease's age that are waited for.
pub(crate) const REPORTS_NEEDED: usize = 3;

/// Watchers whose last word is kept: those believed, and some that were.
const WATCHERS_MAX: usize = 16;

/// Reasons to doubt that an owner is there.
#[derive(Default)]
pub(crate) struct Doubts {
    /// Each watcher's last word, and who the watcher is.
    said: BTreeMap<u64, (Sighting, SpiffeId)>,
    needed: usize,
    /// What this node saw when it asked for itself, while it does.
    own: Option<bool>,
    since: Option<Instant>,
}

impl Doubts {
    /// Whether `sighting` is newer than its watcher's last word.
    pub(crate) fn is_news(&self, sighting: &Sighting) -> bool {
        self.said.get(&sighting.watcher).is_none_or(|(said, _)| said.sequence < sighting.sequence)
    }

    /// A watcher's verified word. `identities` are those of all whose word would count.
    pub(crate) fn handle_sighting(
        &mut self,
        sighting: Sighting,
        watcher: SpiffeId,
        identities: usize,
        now: Instant,
    ) {
        if self.said.len() >= WATCHERS_MAX && !self.said.contains_key(&sighting.watcher) {
            self.said.pop_first();
        }
        self.needed = identities.clamp(1, WATCHERS_NEEDED);
        self.said.insert(sighting.watcher, (sighting, watcher));
        self.note(now);
    }

    /// The owner renewed: words from before that are refuted.
    pub(crate) fn handle_renewal(&mut self, counter: u32, now: Instant) {
        self.said.retain(|_, (sighting, _)| sighting.is_reachable || sighting.counter >= counter);
        self.note(now);
    }

    /// The owner counts its renewals from nothing again: all words from before are refuted, and none of them is news
    /// once more.
    pub(crate) fn handle_chain(&mut self, now: Instant) {
        self.said.values_mut().for_each(|(sighting, _)| sighting.is_reachable = true);
        self.note(now);
    }

    /// This node has asked for itself; `None`: it does no longer.
    pub(crate) fn handle_own(&mut self, is_reachable: Option<bool>, now: Instant) {
        self.own = is_reachable;
        self.note(now);
    }

    /// How many identities' watchers cannot reach it: replicas of one identity could all be one liar's.
    pub(crate) fn accusers(&self) -> usize {
        let accusing = self.said.values().filter(|(sighting, _)| !sighting.is_reachable);
        accusing.map(|(_, identity)| identity).collect::<BTreeSet<_>>().len()
    }

    /// What this node has seen for itself.
    pub(crate) fn own(&self) -> Option<bool> {
        self.own
    }

    /// Its own eyes decide, then its watchers'.
    pub(crate) fn is_doubted(&self) -> bool {
        match self.own {
            Some(is_reachable) => !is_reachable,
            None => self.accusers() >= self.needed.max(1),
        }
    }

    /// Since when there is a doubt.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    fn note(&mut self, now: Instant) {
        self.since = self.is_doubted().then(|| self.since.unwrap_or(now));
    }
}

/// What others said of how long an owner has been silent.
#[derive(Default)]
pub(crate) struct Reported {
    /// By the reporter's identity, so that one liar is one whatever it calls itself: when the owner was last heard.
    heard: BTreeMap<SpiffeId, Instant>,
}

impl Reported {
    /// `reporter` heard the owner `age` ago. Returns when the owner was last heard, once `needed` have said.
    pub(crate) fn handle_report(
        &mut self,
        reporter: &SpiffeId,
        age: Duration,
        needed: usize,
        now: Instant,
    ) -> Option<Instant> {
        if self.heard.len() < REPORTS_NEEDED || self.heard.contains_key(reporter) {
            self.heard.insert(reporter.clone(), now.checked_sub(age).unwrap_or(now));
        }
        let enough = self.heard.len() >= needed.clamp(1, REPORTS_NEEDED);
        if enough { self.heard.values().max().copied() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(watcher: u64, sequence: u64, is_reachable: bool) -> Sighting {
        Sighting { watcher, subject: 9, incarnation: 1, counter: 5, sequence, is_reachable }
    }

    fn identity(name: &str) -> SpiffeId {
        format!("spiffe://acme/svc/{name}").parse().expect("an identity")
    }

    #[test]
    fn two_identities_make_a_doubt_and_a_renewal_ends_it() {
        let now = Instant::now();
        let mut doubts = Doubts::default();
        doubts.handle_sighting(sighting(1, 1, false), identity("a"), 3, now);
        doubts.handle_sighting(sighting(2, 1, false), identity("a"), 3, now);
        assert!(!doubts.is_doubted(), "one identity with two names");
        assert!(!doubts.is_news(&sighting(1, 1, true)) && doubts.is_news(&sighting(1, 2, true)));
        doubts.handle_sighting(sighting(3, 1, false), identity("b"), 3, now);
        assert!(doubts.is_doubted() && doubts.since() == Some(now));
        doubts.handle_renewal(5, now);
        assert!(doubts.is_doubted(), "the renewal that the watchers knew");
        doubts.handle_renewal(6, now);
        assert!(!doubts.is_doubted() && doubts.since().is_none());
    }

    #[test]
    fn another_chain_ends_a_doubt_and_lets_no_word_be_said_twice() {
        let now = Instant::now();
        let mut doubts = Doubts::default();
        doubts.handle_sighting(sighting(1, 1, false), identity("a"), 1, now);
        doubts.handle_chain(now);
        assert!(!doubts.is_doubted() && !doubts.is_news(&sighting(1, 1, false)));
    }

    #[test]
    fn own_eyes_outweigh_what_is_told() {
        let now = Instant::now();
        let mut doubts = Doubts::default();
        doubts.handle_sighting(sighting(1, 1, false), identity("a"), 1, now);
        assert!(doubts.is_doubted(), "there is nobody else to ask");
        doubts.handle_own(Some(true), now);
        assert!(!doubts.is_doubted());
        doubts.handle_own(None, now);
        assert!(doubts.is_doubted());
    }

    #[test]
    fn the_lowest_of_several_ages_counts() {
        let now = Instant::now();
        let mut reported = Reported::default();
        let second = Duration::from_secs(1);
        assert_eq!(reported.handle_report(&identity("1"), second * 90, 3, now), None);
        assert_eq!(reported.handle_report(&identity("1"), second * 95, 3, now), None, "the same once more");
        assert_eq!(reported.handle_report(&identity("2"), second * 80, 3, now), None);
        assert_eq!(reported.handle_report(&identity("3"), second * 99, 3, now), Some(now - second * 80));
        assert_eq!(Reported::default().handle_report(&identity("1"), second, 1, now), Some(now - second));
    }
}
