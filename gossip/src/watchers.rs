//! PURE: who watches whom, the same for everybody who knows the same members.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998) gives each node an order of the others. Whoever holds an
//! identity's key can give itself a thousand names, and choose them so that they come first where it likes; so, where
//! that burdens nobody, one identity takes one place of a node's watchers before each other identity has one.

use std::collections::BTreeSet;

use crate::identity::SpiffeId;
use crate::watching::{WATCHERS, place};

/// What a service of one replica may have to watch because others have many: above it places go by hash alone.
const LOAD_MAX: usize = 32;

/// Fewer identities than this cannot take turns.
const IDENTITIES_MIN: usize = WATCHERS + 1;

/// Who may watch, for nobody doubts it: short name and identity.
pub(crate) type Present<'a> = [(u64, &'a SpiffeId)];

/// The first `count` that may watch `subject`.
pub(crate) fn watchers<'a>(subject: u64, present: &Present<'a>, count: usize) -> Vec<(u64, &'a SpiffeId)> {
    let mut all: Vec<_> = present.iter().copied().filter(|(name, _)| *name != subject).collect();
    all.sort_unstable_by_key(|(watcher, _)| place(*watcher, subject));
    if takes_turns(present) {
        let mut seen = BTreeSet::new();
        // Stable: the order of places stands among the first of each identity, and among the others.
        all.sort_by_cached_key(|(_, identity)| !seen.insert(*identity));
    }
    all.truncate(count);
    all
}

/// The short names of those of `subjects` that `watcher` watches.
pub(crate) fn watched_by(watcher: u64, subjects: &[u64], present: &Present<'_>) -> Vec<u64> {
    let takes_turns = takes_turns(present);
    let own = present.iter().find(|(name, _)| *name == watcher).map(|(_, identity)| *identity);
    let is_watched = |subject: &u64| {
        let place_of_watcher = place(watcher, *subject);
        // Found after a few looks, unless it is among the first.
        let before =
            present.iter().filter(|(name, _)| *name != *subject && place(*name, *subject) < place_of_watcher);
        if !takes_turns {
            return before.take(WATCHERS).count() < WATCHERS;
        }
        let mut first: Vec<&SpiffeId> = Vec::with_capacity(WATCHERS);
        for (_, identity) in before {
            if Some(*identity) == own {
                return false;
            }
            if !first.contains(identity) {
                first.push(identity);
            }
            if first.len() == WATCHERS {
                return false;
            }
        }
        true
    };
    let others = subjects.iter().copied().filter(|subject| *subject != watcher);
    others.filter(is_watched).collect()
}

/// Whether there are enough identities. A node is watched by one node of the largest and two of the others at worst.
fn takes_turns(present: &Present<'_>) -> bool {
    let identities = present.iter().map(|(_, identity)| *identity).collect::<BTreeSet<_>>().len();
    // The subject's own identity may be nobody else's, and cannot watch it then.
    identities > IDENTITIES_MIN && (WATCHERS - 1) * present.len() <= LOAD_MAX * (identities - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn all_of(present: &Present<'_>) -> Vec<u64> {
        present.iter().map(|(name, _)| *name).collect()
    }

    /// So many identities, of which the first has so many names.
    fn mesh(identities: u64, names_of_first: u64) -> Vec<(u64, SpiffeId)> {
        let identity = |number: u64| format!("spiffe://acme/svc/svc-{number}").parse().expect("an identity");
        let numbers = (1..identities).chain(std::iter::repeat_n(0, names_of_first as usize));
        numbers.enumerate().map(|(at, number)| (place(at as u64, 77), identity(number))).collect()
    }

    fn present(mesh: &[(u64, SpiffeId)]) -> Vec<(u64, &SpiffeId)> {
        mesh.iter().map(|(name, identity)| (*name, identity)).collect()
    }

    #[test]
    fn who_watches_knows_that_it_does() {
        for (identities, names) in [(1, 50), (3, 30), (12, 1), (12, 100), (12, 900), (60, 3)] {
            let mesh = mesh(identities, names);
            let present = present(&mesh);
            let mut expected: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
            for (subject, _) in &present {
                for (watcher, _) in watchers(*subject, &present, WATCHERS) {
                    expected.entry(watcher).or_default().insert(*subject);
                }
            }
            for (watcher, _) in &present {
                let watched: BTreeSet<u64> =
                    watched_by(*watcher, &all_of(&present), &present).into_iter().collect();
                assert_eq!(watched, expected.remove(watcher).unwrap_or_default(), "{identities} {names}");
            }
        }
    }

    #[test]
    fn a_hundred_names_of_one_identity_take_one_place() {
        let mesh = mesh(12, 100);
        let present = present(&mesh);
        for (subject, _) in &present {
            let identities: BTreeSet<_> =
                watchers(*subject, &present, WATCHERS).into_iter().map(|(_, identity)| identity).collect();
            assert_eq!(identities.len(), WATCHERS);
        }
    }

    #[test]
    fn a_service_of_one_replica_does_not_watch_a_large_one_alone() {
        for names in [100, 500] {
            let mesh = mesh(6, names);
            let present = present(&mesh);
            let most = present
                .iter()
                .map(|(watcher, _)| watched_by(*watcher, &all_of(&present), &present).len())
                .max();
            assert!(most < Some(40), "{most:?} of {names}");
        }
    }
}
