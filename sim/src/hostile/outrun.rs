//! Attacks on what chitchat believes of a map without looking into it: its heartbeat, and from which
//! version on it is whole.

use rand::rngs::StdRng;

use super::sight::{Scheme, Shot, Sight};
use super::wire::{self, Entry, Operation};

/// Heartbeats far beyond true ones, so that true ones count no more.
#[derive(Default)]
pub(super) struct Outrun;

impl Scheme for Outrun {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        let (_, to) = sight.peer(rng)?;
        let heartbeat = sight.version();
        // With a newest version this high nobody answers with news.
        let entry = |map| Entry { map, heartbeat, collected: 0, newest: wire::COUNTER_LAST };
        let digest: Vec<Entry> = sight.victims.iter().map(|victim| entry(victim.map.clone())).collect();
        Some((to, wire::syn(&digest, sight.owner.identity.trust_domain().as_str())))
    }
}

/// "All before this version is gone": the hearer's copy of the map is emptied, heartbeat and all.
#[derive(Default)]
pub(super) struct Reset;

impl Scheme for Reset {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        let victim = sight.victim(rng)?;
        let (_, to) = sight.peer(rng)?;
        let map = Operation::Map { map: victim.map, collected: sight.version() };
        Some((to, wire::ack(&[map, Operation::Newest(sight.version())])))
    }
}
