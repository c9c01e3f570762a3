//! What an attacker has to work with: whom its node knows, and every record that its node heard.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;
use starling_gossip::link::Destination;
use starling_gossip::memory::{self, NODE_KEY};
use starling_gossip::record::{Instance, NodeRecord, Owner, Record, Renewal};
use starling_gossip::signature::SealedRecord;
use starling_gossip::snapshot::{Presence, Snapshot};
use starling_gossip::svid::Svid;
use starling_gossip::to_text;

use super::wire::{self, Entry, MapName, Operation, Status};
use crate::disk::Disk;

/// Where the versions begin that an attacker gives to others' maps, far above honest ones.
const VERSIONS_BEGIN: u64 = 1 << 20;

/// How far versions grow in a millisecond: owners who repair their maps never catch up in between.
const VERSIONS_PER_MILLI: u64 = 64;

/// A message and whom it is for.
pub(super) type Shot = (Destination, Vec<u8>);

/// One way to attack. It is asked for one message at a time, and may have none.
pub(super) trait Scheme: Send {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot>;
}

/// What an attacker sees and has.
pub(super) struct Sight {
    pub(super) svid: Arc<Svid>,
    pub(super) owner: Owner,
    pub(super) service: ServiceName,
    /// Its own node record as others have it.
    pub(super) own: Option<Arc<NodeRecord>>,
    /// Present others, whatever their identity.
    pub(super) peers: Vec<(SocketAddr, Destination)>,
    /// Everybody of another identity: who holds an identity's key *is* that identity.
    pub(super) victims: Vec<Victim>,
    /// What its own node's map may be told to hold of it.
    begun: Instant,
    version: u64,
}

/// Somebody to lie about.
#[derive(Clone)]
pub(super) struct Victim {
    pub(super) owner: Owner,
    pub(super) map: MapName,
    pub(super) presence: Presence,
    pub(super) node: Arc<NodeRecord>,
    /// Its sealed records, by the key they are filed under.
    pub(super) sealed: BTreeMap<String, Vec<u8>>,
    pub(super) renewal: Option<Renewal>,
}

impl Sight {
    pub(super) fn new(svid: Arc<Svid>, owner: Owner, service: ServiceName) -> Self {
        let begun = Instant::now();
        Self {
            svid,
            owner,
            service,
            own: None,
            peers: Vec::new(),
            victims: Vec::new(),
            begun,
            version: VERSIONS_BEGIN,
        }
    }

    /// Looks around.
    pub(super) fn look(&mut self, snapshot: &Snapshot, disk: &Disk) {
        let (remembered, _) = memory::owners(&disk.image());
        let mut remembered: BTreeMap<String, memory::RememberedOwner> =
            remembered.into_iter().map(|it| (it.name.clone(), it)).collect();
        self.own = snapshot.members.get(&self.owner).map(|member| member.record.clone());
        self.peers.clear();
        self.victims.clear();
        for (owner, member) in snapshot.members.iter().filter(|(owner, _)| **owner != self.owner) {
            let address = member.record.addresses[0];
            if member.presence.is_present() {
                let peer = Destination::Member { address, identity: owner.identity.clone() };
                self.peers.push((address, peer));
            }
            if owner.identity == self.owner.identity {
                continue;
            }
            let found = remembered.remove(&owner.short_name()).unwrap_or_default();
            let instances =
                found.instances.into_iter().map(|(id, it)| (format!("{}{id}", memory::INSTANCE_PREFIX), it));
            let node = Some((NODE_KEY.to_owned(), found.node)).filter(|(_, bytes)| !bytes.is_empty());
            self.victims.push(Victim {
                owner: owner.clone(),
                map: map_of(&member.record),
                presence: member.presence,
                node: member.record.clone(),
                sealed: node.into_iter().chain(instances).collect(),
                renewal: found.lease.map(|lease| lease.renewal),
            });
        }
    }

    /// A version of a map above all that were there before.
    pub(super) fn version(&mut self) -> u64 {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.version = (self.version + 1).max(VERSIONS_BEGIN + millis.saturating_mul(VERSIONS_PER_MILLI));
        self.version
    }

    /// Some present other.
    pub(super) fn peer(&self, rng: &mut StdRng) -> Option<(SocketAddr, Destination)> {
        self.peers.choose(rng).cloned()
    }

    /// Somebody to lie about.
    pub(super) fn victim(&self, rng: &mut StdRng) -> Option<Victim> {
        self.victims.choose(rng).cloned()
    }

    /// Its own map.
    pub(super) fn own_map(&self) -> Option<MapName> {
        self.own.as_deref().map(map_of)
    }

    /// An operation that sets `key` to `bytes` as everybody's maps write them.
    pub(super) fn value(&mut self, key: &str, bytes: &[u8]) -> Operation {
        Operation::Value {
            key: key.to_owned(),
            value: to_text(bytes),
            version: self.version(),
            status: Status::Set,
        }
    }

    /// A message to some peer that sets keys of `map`, which exists already.
    pub(super) fn set(&mut self, map: MapName, values: Vec<Operation>, rng: &mut StdRng) -> Option<Shot> {
        let (_, to) = self.peer(rng)?;
        let operations = [vec![Operation::Map { map, collected: 0 }], values].concat();
        Some((to, wire::ack(&operations)))
    }

    /// Like [`Self::set`], for a map that nobody may know yet.
    pub(super) fn set_new(&mut self, map: MapName, values: Vec<Operation>, rng: &mut StdRng) -> Option<Shot> {
        let (_, to) = self.peer(rng)?;
        let entry = Entry { map: map.clone(), heartbeat: 1, collected: 0, newest: 0 };
        let operations = [vec![Operation::Map { map, collected: 0 }], values].concat();
        Some((to, wire::syn_ack(&[entry], &operations)))
    }
}

impl Victim {
    /// Its newest record of some instance: the key, the bytes, and what they say.
    pub(super) fn instance(&self) -> Option<(&str, &[u8], Record, Instance)> {
        self.sealed.iter().find_map(|(key, bytes)| {
            let record = SealedRecord::from_bytes(bytes).ok()?.unverified().ok()?;
            let Record::Instance(said) = &record else { return None };
            let instance = said.instance.clone()?;
            Some((key.as_str(), bytes.as_slice(), record, instance))
        })
    }
}

/// The map that a node record's owner keeps, if its replica was never restarted.
pub(super) fn map_of(node: &NodeRecord) -> MapName {
    MapName {
        name: node.owner.short_name(),
        generation: node.version.incarnation,
        address: node.addresses[0],
    }
}
