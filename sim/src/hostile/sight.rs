//! What an attacker has to work with: whom its node knows, and every record that its node heard.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _};
use starling_gossip::clock::Instant;
use starling_gossip::codec;
use starling_gossip::identity::ServiceName;
use starling_gossip::link::Destination;
use starling_gossip::memory::{self, LEASE_KEY, NODE_KEY};
use starling_gossip::record::{Instance, NodeRecord, Owner, Record, Renewal};
use starling_gossip::signature::SealedRecord;
use starling_gossip::snapshot::{Presence, Snapshot};
use starling_gossip::svid::Svid;
use starling_gossip::to_text;

use super::talk::{self, Item, ReportedLease};
use super::wire::{self, Entry, MapName, Operation, Status};
use crate::disk::Disk;

/// Where the versions begin that an attacker gives to others' maps, far above honest ones.
const VERSIONS_BEGIN: u64 = 1 << 20;

/// How far versions grow in a millisecond: owners who repair their maps never catch up in between.
const VERSIONS_PER_MILLI: u64 = 64;

/// Something said under a key of somebody's map, as its owner's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) key: String,
    pub(super) bytes: Vec<u8>,
}

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
    /// Messages of others that came to its node, the newest last.
    pub(super) tapped: Vec<Vec<u8>>,
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
            tapped: Vec::new(),
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

    /// Itself, as talks name it.
    pub(super) fn number(&self) -> u64 {
        talk::number(&self.owner)
    }

    /// Operations on `map`, which exists already, to some peer by the repair path.
    pub(super) fn repair(
        &mut self,
        map: MapName,
        operations: Vec<Operation>,
        rng: &mut StdRng,
    ) -> Option<Shot> {
        let (_, to) = self.peer(rng)?;
        Some((to, wire::ack(&[vec![Operation::Map { map, collected: 0 }], operations].concat())))
    }

    /// Says `words` of `map` to some peer, in any of the ways in which records travel; by the repair path as
    /// `is_new`, if nobody may know the map yet.
    pub(super) fn tell(
        &mut self,
        map: MapName,
        words: &[Word],
        is_new: bool,
        rng: &mut StdRng,
    ) -> Option<Shot> {
        let (_, to) = self.peer(rng)?;
        let (leases, records): (Vec<&Word>, Vec<&Word>) = words.iter().partition(|it| it.key == LEASE_KEY);
        let records: Vec<Vec<u8>> = records.into_iter().map(|word| word.bytes.clone()).collect();
        let owner = u64::from_str_radix(&map.name, 16).ok()?;
        let renewals = leases.into_iter().filter_map(|word| codec::decode::<Renewal, 64>(&word.bytes).ok());
        let message = match rng.random_range(0..6) {
            0 => {
                let entry = Entry { map: map.clone(), heartbeat: 1, collected: 0, newest: 0 };
                let set = words.iter().map(|word| Operation::Value {
                    key: word.key.clone(),
                    value: to_text(&word.bytes),
                    version: self.version(),
                    status: Status::Set,
                });
                let set: Vec<_> = set.collect();
                let operations = [vec![Operation::Map { map, collected: 0 }], set].concat();
                if is_new { wire::syn_ack(&[entry], &operations) } else { wire::ack(&operations) }
            }
            1 if !records.is_empty() => talk::join(records, rng.random()),
            2 => {
                let lease = |renewal| ReportedLease { owner, renewal, age_millis: 0 };
                talk::welcome(records, renewals.map(lease).collect(), rng.random())
            }
            _ => {
                let renewals = renewals.map(|renewal| Item::Renewal(owner, renewal));
                talk::talk(rng.next_u64(), records.into_iter().map(Item::Record).chain(renewals).collect())
            }
        };
        Some((to, message))
    }
}

impl Word {
    pub(super) fn new(key: &str, bytes: Vec<u8>) -> Self {
        Self { key: key.to_owned(), bytes }
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
