//! Dead members are made to look alive: their leases must run out all the same. And the living are said to have
//! been silent for long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{Rng as _, RngCore as _};
use starling_gossip::codec;
use starling_gossip::link::Destination;
use starling_gossip::memory::{LEASE_KEY, NODE_KEY};
use starling_gossip::record::{Owner, Renewal};
use starling_gossip::snapshot::Presence;

use super::sight::{Scheme, Shot, Sight, Victim, Word};
use super::talk::{self, Item, ReportedLease};
use super::wire::{self, Entry, Operation};

/// Renewals kept of one owner, the newest.
const RENEWALS_MAX: usize = 64;

/// How often a newcomer is welcomed: it may not have asked yet.
const WELCOMES: usize = 6;

/// All ways in turn; the dead before those who only may be, and newcomers before everybody.
#[derive(Default)]
pub(super) struct Resurrect {
    heard: BTreeMap<Owner, Vec<Renewal>>,
    known: BTreeSet<SocketAddr>,
    /// Whom to welcome.
    newcomers: Vec<Destination>,
    round: usize,
}

type Way = fn(&mut Sight, &Victim, &mut StdRng) -> Option<Shot>;

const WAYS: [Way; 5] = [its_last_renewal, the_next_renewal, a_later_renewal, its_records, a_heartbeat];

impl Scheme for Resurrect {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        self.look(sight);
        if let Some(to) = self.newcomers.pop() {
            return Some((to, self.welcome(sight, rng)));
        }
        let is_dead = |victim: &&Victim| victim.presence != Presence::Alive;
        let dead: Vec<&Victim> = sight.victims.iter().filter(is_dead).collect();
        let victim = dead.choose(rng).map(|victim| (*victim).clone()).or_else(|| sight.victim(rng))?;
        self.round += 1;
        match self.round % (WAYS.len() + 1) {
            0 => self.an_old_renewal(sight, &victim, rng),
            way => WAYS[way - 1](sight, &victim, rng),
        }
    }
}

impl Resurrect {
    fn look(&mut self, sight: &Sight) {
        for victim in &sight.victims {
            let Some(renewal) = victim.renewal else { continue };
            let heard = self.heard.entry(victim.owner.clone()).or_default();
            if heard.last() != Some(&renewal) {
                heard.push(renewal);
                heard.drain(..heard.len().saturating_sub(RENEWALS_MAX));
            }
        }
        let is_first_look = self.known.is_empty();
        for (address, to) in &sight.peers {
            if self.known.insert(*address) && !is_first_look {
                self.newcomers.extend(std::iter::repeat_n(to.clone(), WELCOMES));
            }
        }
    }

    /// "The dead were heard just now, and of the living nothing for long."
    fn welcome(&self, sight: &Sight, rng: &mut StdRng) -> Vec<u8> {
        let lease = |victim: &Victim| {
            let last = victim.renewal?;
            let owner = talk::number(&victim.owner);
            let later = Renewal { counter: last.counter + 1, ..last };
            Some(match victim.presence {
                Presence::Alive if rng.random() => {
                    ReportedLease { owner, renewal: later, age_millis: u32::MAX }
                }
                Presence::Alive => ReportedLease { owner, renewal: last, age_millis: u32::MAX },
                _ => ReportedLease { owner, renewal: last, age_millis: 0 },
            })
        };
        let leases = sight.victims.iter().filter_map(lease).collect();
        let dead = sight.victims.iter().filter(|victim| !victim.presence.is_present());
        let records = dead.flat_map(|victim| node_first(victim).into_iter().map(|(_, bytes)| bytes.clone()));
        talk::welcome(records.collect(), leases, true)
    }

    /// One of many, so that each would give another lease to who knows none later.
    fn an_old_renewal(&self, sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
        let old = *self.heard.get(&victim.owner)?.iter().choose(rng)?;
        let (_, to) = sight.peer(rng)?;
        Some((to, talk::talk(rng.next_u64(), vec![Item::Renewal(talk::number(&victim.owner), old)])))
    }
}

fn renewal(sight: &mut Sight, victim: &Victim, renewal: &Renewal, rng: &mut StdRng) -> Option<Shot> {
    let word = Word::new(LEASE_KEY, codec::encode(renewal));
    sight.tell(victim.map.clone(), &[word], true, rng)
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
    let words: Vec<_> =
        node_first(victim).into_iter().map(|(key, bytes)| Word::new(key, bytes.clone())).collect();
    sight.tell(victim.map.clone(), &words, true, rng)
}

fn node_first(victim: &Victim) -> Vec<(&String, &Vec<u8>)> {
    let others = victim.sealed.iter().filter(|(key, _)| *key != NODE_KEY);
    victim.sealed.get_key_value(NODE_KEY).into_iter().chain(others).collect()
}

/// Its map stays in everybody's digests.
fn a_heartbeat(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    let version = sight.version();
    let entry = Entry { map: victim.map.clone(), heartbeat: version, collected: 0, newest: version };
    Some((to, wire::syn_ack(&[entry], &[] as &[Operation])))
}
