//! Two true statements of one version, each told to half of the mesh: it may divide opinions about the
//! liar, and about nobody else.

use std::net::SocketAddr;

use rand::RngCore as _;
use rand::rngs::StdRng;
use starling_gossip::link::Destination;
use starling_gossip::memory::{INSTANCE_PREFIX, NODE_KEY};
use starling_gossip::record::{Health, Instance, InstanceRecord, Protocol, Record, Version};

use super::forge::seal;
use super::sight::{Scheme, Shot, Sight};
use super::talk::{self, Item};
use super::wire::{self, Operation, Status};

/// Round after round, one peer after another.
#[derive(Default)]
pub(super) struct Equivocate {
    /// Whom the present round has still to reach.
    rest: Vec<(SocketAddr, Destination)>,
    round: u64,
    /// Of the liar's map.
    map_version: u64,
}

impl Scheme for Equivocate {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        if self.rest.is_empty() {
            self.rest.clone_from(&sight.peers);
            self.round += 1;
            self.map_version = sight.version();
        }
        let (_, to) = self.rest.pop()?;
        let is_one_half = self.rest.len().is_multiple_of(2);
        let version = Version { version: self.map_version, ..sight.own.as_ref()?.version };
        let (key, record) = if self.round.is_multiple_of(2) {
            (NODE_KEY.to_owned(), node(sight, version, is_one_half, rng)?)
        } else {
            (format!("{INSTANCE_PREFIX}main"), instance(sight, version, is_one_half)?)
        };
        let sealed = seal(sight, &record, None);
        if !self.round.is_multiple_of(3) {
            return Some((to, talk::talk(rng.next_u64(), vec![Item::Record(sealed)])));
        }
        let value = starling_gossip::to_text(&sealed);
        let map = Operation::Map { map: sight.own_map()?, collected: 0 };
        let value = Operation::Value { key, value, version: self.map_version, status: Status::Set };
        Some((to, wire::ack(&[map, value])))
    }
}

fn instance(sight: &Sight, version: Version, is_one_half: bool) -> Option<Record> {
    let instance = Instance {
        service: sight.service.clone(),
        protocol: Protocol::Http,
        version: None,
        tags: Default::default(),
        weight: if is_one_half { 1 } else { 1000 },
        health: if is_one_half { Health::Healthy } else { Health::Unhealthy },
        since_unix_millis: 0,
    };
    let id = "main".parse().ok()?;
    Some(Record::Instance(InstanceRecord {
        owner: sight.owner.clone(),
        version,
        id,
        instance: Some(instance),
    }))
}

/// To one half it also claims somebody else's address, so that messages might miss that one.
fn node(sight: &Sight, version: Version, is_one_half: bool, rng: &mut StdRng) -> Option<Record> {
    let mut node = sight.own.as_ref()?.as_ref().clone();
    node.version = version;
    node.addresses.truncate(1);
    if is_one_half {
        node.addresses.push(sight.victim(rng)?.map.address);
    }
    Some(Record::Node(node))
}
