//! Altered and invented records, filed where honest ones are: none may enter anybody's catalogue.

use std::net::SocketAddr;

use rand::Rng as _;
use rand::rngs::StdRng;
use starling_gossip::codec;
use starling_gossip::memory::{INSTANCE_PREFIX, LEASE_KEY, NODE_KEY};
use starling_gossip::record::{Health, Instance, InstanceRecord, Owner, Record, Renewal};
use starling_gossip::signature::SealedRecord;
use starling_gossip::svid::SIGNATURE_BYTES;

use super::sight::{Scheme, Shot, Sight, Victim, Word};
use super::wire::MapName;

/// Where a forged record says that its victim listens.
const ELSEWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 7400);

/// All ways in turn.
#[derive(Default)]
pub(super) struct Forge {
    round: usize,
}

type Way = fn(&mut Sight, &Victim, &mut StdRng) -> Option<Shot>;

const WAYS: [Way; 10] = [
    |sight, victim, rng| altered_instance(sight, victim, rng, false, |it| it.weight = 1),
    |sight, victim, rng| altered_instance(sight, victim, rng, true, |it| it.weight = 1),
    |sight, victim, rng| altered_instance(sight, victim, rng, true, |it| it.health = Health::Draining),
    another_service,
    |sight, victim, rng| altered_node(sight, victim, rng, false),
    |sight, victim, rng| altered_node(sight, victim, rng, true),
    in_its_own_map,
    for_its_own_instance,
    an_invented_owner,
    a_renewal,
];

impl Scheme for Forge {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        let victim = sight.victim(rng)?;
        self.round += 1;
        WAYS[self.round % WAYS.len()](sight, &victim, rng)
    }
}

/// What `record` is as it travels: with the attacker's own signature, or under `old`, the signature of
/// what was really said.
pub(super) fn seal(sight: &Sight, record: &Record, old: Option<&[u8]>) -> Vec<u8> {
    match old {
        Some(sealed) => [&sealed[..1 + SIGNATURE_BYTES], &codec::encode(record)].concat(),
        None => SealedRecord::seal(record, &sight.svid).to_bytes(),
    }
}

/// A node of the attacker's own identity that nobody ever started. What it says is true: who holds the key may
/// say so.
pub(super) fn ghost(sight: &Sight, number: u32) -> Option<Record> {
    let mut node = sight.own.as_ref()?.as_ref().clone();
    node.owner =
        Owner { identity: sight.owner.identity.clone(), node: format!("ghost-{number}").parse().ok()? };
    let [.., high, low] = number.to_be_bytes();
    node.addresses = vec![SocketAddr::from(([198, 18, high, low], 7400))];
    Some(Record::Node(node))
}

fn altered_instance(
    sight: &mut Sight,
    victim: &Victim,
    rng: &mut StdRng,
    is_own_key: bool,
    alter: fn(&mut Instance),
) -> Option<Shot> {
    let (key, sealed, mut record, _) = victim.instance()?;
    if let Record::Instance(InstanceRecord { version, instance: Some(instance), .. }) = &mut record {
        version.version += 1;
        alter(instance);
    }
    let bytes = seal(sight, &record, Some(sealed).filter(|_| !is_own_key));
    sight.tell(victim.map.clone(), &[Word::new(key, bytes)], false, rng)
}

/// The victim is said to serve what the attacker serves, and so to draw its calls.
fn another_service(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let (key, _, mut record, _) = victim.instance()?;
    if let Record::Instance(InstanceRecord { version, instance: Some(instance), .. }) = &mut record {
        version.version += 1;
        instance.service = sight.service.clone();
    }
    let word = Word::new(key, seal(sight, &record, None));
    sight.tell(victim.map.clone(), &[word], false, rng)
}

fn altered_node(sight: &mut Sight, victim: &Victim, rng: &mut StdRng, is_own_chain: bool) -> Option<Shot> {
    let mut node = victim.node.as_ref().clone();
    node.version.version += 1;
    node.addresses = vec![ELSEWHERE];
    if is_own_chain {
        node.chain.clone_from(&sight.own.as_ref()?.chain);
    }
    let word = Word::new(NODE_KEY, seal(sight, &Record::Node(node), None));
    sight.tell(victim.map.clone(), &[word], false, rng)
}

/// True records of another, found where only the attacker's belong.
fn in_its_own_map(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let map = sight.own_map()?;
    let words: Vec<_> = victim.sealed.values().map(|bytes| Word::new("i/stolen", bytes.clone())).collect();
    sight.tell(map, &words, false, rng)
}

/// The attacker says of itself, rightly signed, that it serves what the victim serves.
fn for_its_own_instance(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let (_, _, _, instance) = victim.instance()?;
    let own = sight.own.clone()?;
    let mut version = own.version;
    version.version = sight.version();
    let id = "stolen".parse().ok()?;
    let record = Record::Instance(InstanceRecord {
        owner: sight.owner.clone(),
        version,
        id,
        instance: Some(instance),
    });
    let word = Word::new(&format!("{INSTANCE_PREFIX}stolen"), seal(sight, &record, None));
    sight.tell(sight.own_map()?, &[word], false, rng)
}

/// Another node of the victim's identity, which nobody ever started.
fn an_invented_owner(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let number: u16 = rng.random();
    let owner =
        Owner { identity: victim.owner.identity.clone(), node: format!("invented-{number}").parse().ok()? };
    let mut node = victim.node.as_ref().clone();
    node.owner = owner.clone();
    let map = MapName { name: owner.short_name(), generation: node.version.incarnation, address: ELSEWHERE };
    let word = Word::new(NODE_KEY, seal(sight, &Record::Node(node), None));
    sight.tell(map, &[word], true, rng)
}

/// Links that lead to no anchor: the next, and one as far ahead as a chain goes.
fn a_renewal(sight: &mut Sight, victim: &Victim, rng: &mut StdRng) -> Option<Shot> {
    let incarnation = victim.node.version.incarnation;
    let seen = victim.renewal.map_or(0, |renewal| renewal.counter);
    let far = starling_gossip::limits::LEASE_LINKS_MAX;
    let counter = if rng.random_bool(0.5) { seen + 1 } else { far };
    let renewal = Renewal { incarnation, counter, link: rng.random() };
    let word = Word::new(LEASE_KEY, codec::encode(&renewal));
    sight.tell(victim.map.clone(), &[word], false, rng)
}
