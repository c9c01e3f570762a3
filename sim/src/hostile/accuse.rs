//! "They have left", "they serve nothing any more", "there is nothing of theirs": said by somebody
//! else, it must remove nobody.

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _};
use starling_gossip::memory::{LEASE_KEY, NODE_KEY};
use starling_gossip::record::{InstanceRecord, Record};
use starling_gossip::svid::SIGNATURE_BYTES;

use super::forge::{ghost, seal};
use super::sight::{Scheme, Shot, Sight, Victim, Word};
use super::talk::{self, Item, Sighting};
use super::wire::{Operation, Status};

/// All ways in turn.
#[derive(Default)]
pub(super) struct Accuse {
    round: usize,
}

type Way = fn(&mut Sight, &Victim, &mut StdRng) -> Option<Shot>;

const WAYS: [Way; 12] = [
    |sight, victim, rng| has_left(sight, victim, rng, true),
    |sight, victim, rng| has_left(sight, victim, rng, false),
    |sight, victim, rng| withdraws(sight, victim, rng, true),
    |sight, victim, rng| withdraws(sight, victim, rng, false),
    |sight, victim, rng| is_deleted(sight, victim, rng, Status::Deleted),
    |sight, victim, rng| is_deleted(sight, victim, rng, Status::DeletedLater),
    has_nothing_newer,
    |sight, victim, rng| is_not_seen(sight, victim, rng, By::Itself),
    |sight, victim, rng| is_not_seen(sight, victim, rng, By::ASecondName),
    |sight, victim, rng| is_not_seen(sight, victim, rng, By::AnotherVictim),
    |sight, victim, rng| is_not_seen(sight, victim, rng, By::Nobody),
    has_second_names,
];

/// Who is said to have seen something.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// The attacker: where it is one of the victim's watchers, a true word of one of them.
    Itself,
    /// A node that it invented under its own identity.
    ASecondName,
    /// Somebody else, whose signature it does not have.
    AnotherVictim,
    /// Itself, without a signature.
    Nobody,
}

/// Second names of the attacker's identity.
const NAMES: u32 = 24;

impl Scheme for Accuse {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        let victim = sight.victim(rng)?;
        self.round += 1;
        WAYS[self.round % WAYS.len()](sight, &victim, rng)
    }
}

fn has_left(sight: &mut Sight, victim: &Victim, rng: &mut StdRng, is_own_key: bool) -> Option<Shot> {
    let mut node = victim.node.as_ref().clone();
    node.version.version += 1;
    node.left = true;
    let old = victim.sealed.get(NODE_KEY).filter(|_| !is_own_key);
    let word = Word::new(NODE_KEY, seal(sight, &Record::Node(node), old.map(Vec::as_slice)));
    sight.tell(victim.map.clone(), &[word], false, rng)
}

fn withdraws(sight: &mut Sight, victim: &Victim, rng: &mut StdRng, is_own_key: bool) -> Option<Shot> {
    let (key, sealed, mut record, _) = victim.instance()?;
    if let Record::Instance(InstanceRecord { version, instance, .. }) = &mut record {
        version.version += 1;
        *instance = None;
    }
    let word = Word::new(key, seal(sight, &record, Some(sealed).filter(|_| !is_own_key)));
    sight.tell(victim.map.clone(), &[word], false, rng)
}

/// All that the victim's map holds, as chitchat's tombstones.
fn is_deleted(sight: &mut Sight, victim: &Victim, rng: &mut StdRng, status: Status) -> Option<Shot> {
    let keys: Vec<String> = victim.sealed.keys().cloned().chain([LEASE_KEY.to_owned()]).collect();
    let tombstone = |key| Operation::Value { key, value: String::new(), version: sight.version(), status };
    let values = keys.into_iter().map(tombstone).collect();
    sight.repair(victim.map.clone(), values, rng)
}

/// The hearer believes to have all of the victim's map up to a version that is yet to come.
fn has_nothing_newer(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let newest = Operation::Newest(sight.version());
    sight.repair(victim.map.clone(), vec![newest], rng)
}

/// "It does not answer", of everybody in turn: of most the attacker is no watcher.
fn is_not_seen(sight: &mut Sight, victim: &Victim, rng: &mut StdRng, by: By) -> Option<Shot> {
    let watcher = match by {
        By::Itself | By::Nobody => sight.number(),
        By::ASecondName => {
            let number = rng.random_range(0..NAMES);
            talk::number(ghost(sight, number)?.owner())
        }
        By::AnotherVictim => talk::number(&sight.victim(rng)?.owner),
    };
    let last = victim.renewal.map_or(0, |renewal| renewal.counter);
    let sighting = Sighting {
        watcher,
        subject: talk::number(&victim.owner),
        incarnation: victim.node.version.incarnation,
        // No renewal would ever be newer.
        counter: if rng.random() { u32::MAX } else { last },
        sequence: sight.version(),
        is_reachable: rng.random_bool(0.1),
    };
    let sealed = match by {
        By::Nobody => sighting.unsealed(vec![0; SIGNATURE_BYTES]),
        _ => sighting.sealed(&sight.svid),
    };
    let (_, to) = sight.peer(rng)?;
    Some((to, talk::talk(rng.next_u64(), vec![Item::Sighting(sealed)])))
}

/// The nodes in whose names it speaks.
fn has_second_names(sight: &mut Sight, _: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    let number = rng.random_range(0..NAMES);
    let record = seal(sight, &ghost(sight, number)?, None);
    Some((to, talk::talk(rng.next_u64(), vec![Item::Record(record)])))
}
