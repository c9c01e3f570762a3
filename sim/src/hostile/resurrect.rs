//! Dead members are made to look alive: their leases must run out all the same.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use starling_gossip::codec;
use starling_gossip::memory::{LEASE_KEY, NODE_KEY};
use starling_gossip::record::Renewal;
use starling_gossip::snapshot::Presence;

use super::sight::{Scheme, Shot, Sight, Victim};
use super::wire::{self, Entry, Operation};

/// All ways in turn; the dead before those who only may be.
#[derive(Default)]
pub(super) struct Resurrect {
    round: usize,
}

type Way = fn(&mut Sight, &Victim, &mut StdRng) -> Option<Shot>;

const WAYS: [Way; 5] = [its_last_renewal, the_next_renewal, a_later_renewal, its_records, a_heartbeat];

impl Scheme for Resurrect {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        let is_dead = |victim: &&Victim| victim.presence != Presence::Alive;
        let dead: Vec<&Victim> = sight.victims.iter().filter(is_dead).collect();
        let victim = dead.choose(rng).map(|victim| (*victim).clone()).or_else(|| sight.victim(rng))?;
        self.round += 1;
        WAYS[self.round % WAYS.len()](sight, &victim, rng)
    }
}

fn renewal(sight: &mut Sight, victim: &Victim, renewal: &Renewal, rng: &mut StdRng) -> Option<Shot> {
    let value = sight.value(LEASE_KEY, &codec::encode(renewal));
    sight.set_new(victim.map.clone(), vec![value], rng)
}

fn its_last_renewal(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let last = victim.renewal?;
    renewal(sight, victim, &last, rng)
}

/// The last link, said to be the next.
fn the_next_renewal(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let last = victim.renewal?;
    renewal(sight, victim, &Renewal { counter: last.counter + 1, ..last }, rng)
}

fn a_later_renewal(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let last = victim.renewal?;
    let later = Renewal { counter: last.counter + rng.random_range(1..8), link: rng.random(), ..last };
    renewal(sight, victim, &later, rng)
}

/// Everything it ever said, as a newcomer says it.
fn its_records(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let records = victim.sealed.iter().filter(|(key, _)| *key != NODE_KEY);
    let records: Vec<_> = victim.sealed.get_key_value(NODE_KEY).into_iter().chain(records).collect();
    let values = records.into_iter().map(|(key, bytes)| sight.value(key, bytes)).collect();
    sight.set_new(victim.map.clone(), values, rng)
}

/// Its map stays in everybody's digests.
fn a_heartbeat(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    let version = sight.version();
    let entry = Entry { map: victim.map.clone(), heartbeat: version, collected: 0, newest: version };
    Some((to, wire::syn_ack(&[entry], &[] as &[Operation])))
}
