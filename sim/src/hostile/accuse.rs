//! "They have left", "they serve nothing any more", "there is nothing of theirs": said by somebody
//! else, it must remove nobody.

use rand::rngs::StdRng;
use starling_gossip::memory::{LEASE_KEY, NODE_KEY};
use starling_gossip::record::{InstanceRecord, Record};

use super::forge::seal;
use super::sight::{Scheme, Shot, Sight, Victim};
use super::wire::{Operation, Status};

/// All ways in turn.
#[derive(Default)]
pub(super) struct Accuse {
    round: usize,
}

type Way = fn(&mut Sight, &Victim, &mut StdRng) -> Option<Shot>;

const WAYS: [Way; 7] = [
    |sight, victim, rng| has_left(sight, victim, rng, true),
    |sight, victim, rng| has_left(sight, victim, rng, false),
    |sight, victim, rng| withdraws(sight, victim, rng, true),
    |sight, victim, rng| withdraws(sight, victim, rng, false),
    |sight, victim, rng| is_deleted(sight, victim, rng, Status::Deleted),
    |sight, victim, rng| is_deleted(sight, victim, rng, Status::DeletedLater),
    has_nothing_newer,
];

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
    let value = sight.value(NODE_KEY, &seal(sight, &Record::Node(node), old.map(Vec::as_slice)));
    sight.set(victim.map.clone(), vec![value], rng)
}

fn withdraws(sight: &mut Sight, victim: &Victim, rng: &mut StdRng, is_own_key: bool) -> Option<Shot> {
    let (key, sealed, mut record, _) = victim.instance()?;
    if let Record::Instance(InstanceRecord { version, instance, .. }) = &mut record {
        version.version += 1;
        *instance = None;
    }
    let value = sight.value(key, &seal(sight, &record, Some(sealed).filter(|_| !is_own_key)));
    sight.set(victim.map.clone(), vec![value], rng)
}

/// All that the victim's map holds, as chitchat's tombstones.
fn is_deleted(sight: &mut Sight, victim: &Victim, rng: &mut StdRng, status: Status) -> Option<Shot> {
    let keys: Vec<String> = victim.sealed.keys().cloned().chain([LEASE_KEY.to_owned()]).collect();
    let tombstone = |key| Operation::Value { key, value: String::new(), version: sight.version(), status };
    let values = keys.into_iter().map(tombstone).collect();
    sight.set(victim.map.clone(), values, rng)
}

/// The hearer believes to have all of the victim's map up to a version that is yet to come.
fn has_nothing_newer(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let newest = Operation::Newest(sight.version());
    sight.set(victim.map.clone(), vec![newest], rng)
}
