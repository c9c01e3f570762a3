//! More than anybody can hold: invented maps, invented members, keys and values up to every limit.

use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _};
use starling_gossip::limits::RECORD_BYTES_MAX;
use starling_gossip::memory::{INSTANCE_PREFIX, NODE_KEY};
use starling_gossip::record::{Owner, Record};

use super::forge::seal;
use super::sight::{Scheme, Shot, Sight};
use super::wire::{self, Entry, MapName, Operation, Status};

/// Maps that one message invents: 11 KiB of digest.
const MAPS_PER_MESSAGE: usize = 200;

/// Keys that one message puts into a map.
const KEYS_PER_MESSAGE: usize = 200;

/// Members that the attacker introduces under its own identity, rightly signed.
const GHOSTS: u32 = 100;

/// The longest value that the wire check lets pass: a record of the greatest size as base64.
const VALUE_BYTES_MAX: usize = RECORD_BYTES_MAX.div_ceil(3) * 4;

/// All ways in turn.
#[derive(Default)]
pub(super) struct Flood {
    round: usize,
}

type Way = fn(&mut Sight, &mut StdRng) -> Option<Shot>;

const WAYS: [Way; 5] = [maps, keys_of_its_own, keys_of_others, huge_values, ghosts];

impl Scheme for Flood {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        self.round += 1;
        WAYS[self.round % WAYS.len()](sight, rng)
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
        sight.value(&key, &bytes)
    };
    let values = (0..KEYS_PER_MESSAGE).map(|_| value(sight, rng)).collect();
    sight.set(map, values, rng)
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
    sight.set(map, values, rng)
}

/// Nodes of the attacker's own identity that nobody ever started. Their records are true: who holds
/// the key may say so.
fn ghosts(sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
    let number = rng.random_range(0..GHOSTS);
    let mut node = sight.own.as_ref()?.as_ref().clone();
    node.owner =
        Owner { identity: sight.owner.identity.clone(), node: format!("ghost-{number}").parse().ok()? };
    node.addresses = vec![SocketAddr::from(([198, 18, 255, number as u8], 7400))];
    let map = MapName {
        name: node.owner.short_name(),
        generation: node.version.incarnation,
        address: node.addresses[0],
    };
    let value = sight.value(NODE_KEY, &seal(sight, &Record::Node(node), None));
    sight.set_new(map, vec![value], rng)
}
