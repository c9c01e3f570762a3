//! More than anybody can hold: invented maps, invented members, keys and values up to every limit, questions whose
//! answers are large.

use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _};
use starling_gossip::limits::{LEASE_LINKS_MAX, RECORD_BYTES_MAX};
use starling_gossip::memory::{INSTANCE_PREFIX, NODE_KEY};
use starling_gossip::record::{InstanceRecord, Record, Renewal, Version};

use super::forge::{ghost, seal};
use super::sight::{Scheme, Shot, Sight, map_of};
use super::talk::{self, Filed, Item, Key};
use super::wire::{self, Entry, MapName, Operation, Status};

/// Maps that one message invents: 11 KiB of digest.
const MAPS_PER_MESSAGE: usize = 200;

/// Keys that one message puts into a map.
const KEYS_PER_MESSAGE: usize = 200;

/// Records that one talk carries.
const RECORDS_PER_MESSAGE: usize = 6;

/// Members that the attacker introduces under its own identity, rightly signed.
const GHOSTS: u32 = 100;

/// The longest value that the wire check lets pass: a record of the greatest size as base64.
const VALUE_BYTES_MAX: usize = RECORD_BYTES_MAX.div_ceil(3) * 4;

/// All ways in turn.
#[derive(Default)]
pub(super) struct Flood {
    round: usize,
}

/// Members that are none, in all ways in turn.
#[derive(Default)]
pub(super) struct Invent {
    round: usize,
}

type Way = fn(&mut Sight, &mut StdRng) -> Option<Shot>;

const WAYS: [Way; 11] = [
    maps,
    keys_of_its_own,
    keys_of_others,
    huge_values,
    nobodies,
    instances_of_its_own,
    offers,
    wants,
    asks,
    joins,
    garbage,
];

const INVENTIONS: [Way; 3] = [ghosts, talked_ghosts, renewals];

impl Scheme for Flood {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        self.round += 1;
        WAYS[self.round % WAYS.len()](sight, rng)
    }
}

impl Scheme for Invent {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        self.round += 1;
        INVENTIONS[self.round % INVENTIONS.len()](sight, rng)
    }
}

fn invented_address(rng: &mut StdRng) -> SocketAddr {
    SocketAddr::from(([198, 18, rng.random(), rng.random()], rng.random_range(1024..u16::MAX)))
}

fn maps(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    let entry = |rng: &mut StdRng| Entry {
        map: MapName {
            name: format!("{:016x}", rng.next_u64()),
            generation: rng.random_range(1..1 << 40),
            address: invented_address(rng),
        },
        heartbeat: 1,
        collected: 0,
        newest: 1,
    };
    let digest: Vec<Entry> = (0..MAPS_PER_MESSAGE).map(|_| entry(rng)).collect();
    Some((to, wire::syn(&digest, sight.owner.identity.trust_domain().as_str())))
}

fn keys_of_its_own(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let map = sight.own_map()?;
    keys(sight, map, rng)
}

fn keys_of_others(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let map = sight.victim(rng)?.map;
    keys(sight, map, rng)
}

fn keys(sight: &mut Sight, map: MapName, rng: &mut StdRng) -> Option<Shot> {
    let value = |sight: &mut Sight, rng: &mut StdRng| {
        let key = format!("{INSTANCE_PREFIX}{:x}", rng.random::<u32>());
        let bytes: [u8; 100] = rng.random();
        let value = starling_gossip::to_text(&bytes);
        Operation::Value { key, value, version: sight.version(), status: Status::Set }
    };
    let values = (0..KEYS_PER_MESSAGE).map(|_| value(sight, rng)).collect();
    sight.repair(map, values, rng)
}

/// Three values of the greatest size, which do not shrink: together they fill a message.
fn huge_values(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let map = sight.own_map()?;
    let value = |sight: &mut Sight, rng: &mut StdRng, at: usize| {
        let mut bytes = vec![0; VALUE_BYTES_MAX / 4 * 3];
        rng.fill_bytes(&mut bytes);
        let value = starling_gossip::to_text(&bytes);
        let key = format!("{INSTANCE_PREFIX}huge-{at}");
        Operation::Value { key, value, version: sight.version(), status: Status::Set }
    };
    let values = (0..3).map(|at| value(sight, rng, at)).collect();
    sight.repair(map, values, rng)
}

fn ghosts(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    let record = ghost(sight, rng.random_range(0..GHOSTS))?;
    let Record::Node(node) = &record else { return None };
    let map = map_of(node);
    let entry = Entry { map: map.clone(), heartbeat: 1, collected: 0, newest: 0 };
    let value = Operation::Value {
        key: NODE_KEY.to_owned(),
        value: starling_gossip::to_text(&seal(sight, &record, None)),
        version: sight.version(),
        status: Status::Set,
    };
    Some((to, wire::syn_ack(&[entry], &[Operation::Map { map, collected: 0 }, value])))
}

fn say(sight: &Sight, items: Vec<Item>, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    Some((to, talk::talk(rng.next_u64(), items)))
}

fn talked_ghosts(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let ghosts = (0..RECORDS_PER_MESSAGE).filter_map(|_| ghost(sight, rng.random_range(0..GHOSTS)));
    let records: Vec<_> = ghosts.map(|record| Item::Record(seal(sight, &record, None))).collect();
    say(sight, records, rng)
}

/// Nodes of others' identities and of no service, which only the attacker has signed.
fn nobodies(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let victim = sight.victim(rng)?;
    let nobody = |rng: &mut StdRng| {
        let mut node = victim.node.as_ref().clone();
        node.owner.node = format!("nobody-{}", rng.random::<u32>()).parse().ok()?;
        node.addresses = vec![invented_address(rng)];
        Some(Item::Record(seal(sight, &Record::Node(node), None)))
    };
    let records = (0..RECORDS_PER_MESSAGE).filter_map(|_| nobody(rng)).collect();
    say(sight, records, rng)
}

/// News of its own without end, each a little later than the last.
fn instances_of_its_own(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let own = sight.own.clone()?;
    let mut record = |id: usize| {
        let version = Version { version: sight.version(), ..own.version };
        let id = format!("flood-{id}").parse().ok()?;
        let record = InstanceRecord { owner: sight.owner.clone(), version, id, instance: None };
        Some(Item::Record(seal(sight, &Record::Instance(record), None)))
    };
    let records = (0..RECORDS_PER_MESSAGE).filter_map(&mut record).collect();
    say(sight, records, rng)
}

/// Records that do not exist, of owners that do not exist and of those that do.
fn offers(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let real = talk::number(&sight.victim(rng)?.owner);
    let offer = |rng: &mut StdRng| {
        let owner = if rng.random() { real } else { rng.next_u64() };
        let version = Version { incarnation: u64::MAX >> 1, version: rng.next_u64() };
        Item::Offer(Filed { owner, key: Key::Node, version })
    };
    let offers = (0..talk::ITEMS_MAX).map(|_| offer(rng)).collect();
    say(sight, offers, rng)
}

/// The largest records there are, again and again: a dozen bytes for a thousand.
fn wants(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let all: Vec<u64> = sight.victims.iter().map(|victim| talk::number(&victim.owner)).collect();
    let version = Version { incarnation: 0, version: 0 };
    let want = |owner| Item::Want(Filed { owner, key: Key::Node, version });
    let wants = all.into_iter().cycle().take(talk::ITEMS_MAX).map(want).collect();
    say(sight, wants, rng)
}

fn asks(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let all: Vec<u64> = sight.victims.iter().map(|victim| talk::number(&victim.owner)).collect();
    // One more than a talk may hold, now and then.
    let count = talk::ITEMS_MAX + usize::from(rng.random_bool(0.2));
    let asks = all.into_iter().cycle().take(count).map(|owner| Item::Ask(owner, 0, 0)).collect();
    say(sight, asks, rng)
}

/// Far leaps of ghosts, which take thousands of hashes each to disprove.
fn renewals(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let incarnation = sight.own.as_ref()?.version.incarnation;
    let leap = |rng: &mut StdRng| {
        let owner = talk::number(ghost(sight, rng.random_range(0..GHOSTS))?.owner());
        Some(Item::Renewal(owner, Renewal { incarnation, counter: LEASE_LINKS_MAX, link: rng.random() }))
    };
    let leaps = (0..64).filter_map(|_| leap(rng)).collect();
    say(sight, leaps, rng)
}

/// Somebody who asks for everything and then for everything.
fn joins(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    let record = seal(sight, &Record::Node(sight.own.as_ref()?.as_ref().clone()), None);
    Some((to, talk::join(vec![record], false)))
}

/// Kinds and versions that nobody knows, bodies that are none.
fn garbage(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let (_, to) = sight.peer(rng)?;
    let mut body = vec![0; rng.random_range(0..2_000)];
    rng.fill_bytes(&mut body);
    let mut message = talk::message(rng.random(), &body);
    if rng.random() {
        message[2] = rng.random();
    }
    Some((to, message))
}
