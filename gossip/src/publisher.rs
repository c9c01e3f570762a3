//! STATE MACHINE: what this node says about itself.
//!
//! Holds the owner's half of the protocol: seals records with the SVID's key, counts versions,
//! renews the lease. What is said comes out of [`Publisher::poll_said`]; spreading it is the
//! loop's business. It reads no clock and draws no random number: secrets are handed in.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::guard::VERSIONS_PER_RECORD;
use crate::identity::NodeName;
use crate::lease::LeaseChain;
use crate::record::{
    Instance, InstanceRecord, Label, Lease, Locality, NodeRecord, Owner, Record, Renewal, Version,
};
use crate::signature::SealedRecord;
use crate::svid::Svid;
use crate::versions::TALK_CAPABILITY;

/// What a node says about itself besides its instances.
#[derive(Clone, Debug)]
pub struct NodeDescription {
    /// Its name.
    pub name: NodeName,
    /// Where it listens, best first.
    pub addresses: Vec<SocketAddr>,
    /// Where it stands.
    pub locality: Locality,
    /// The program's version.
    pub program: Label,
    /// How long others may believe in it without a renewal.
    pub lease: Duration,
    /// How often it renews.
    pub renew: Duration,
}

/// A doubted owner renews at most this often before it is time.
const REFUTE_PERIOD: Duration = Duration::from_secs(2);

/// Something to spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The node record.
    Node(SealedRecord),
    /// An instance record, by the instance's id.
    Instance(Label, SealedRecord),
    /// A renewal of the lease.
    Renewal(Renewal),
}

/// The owner's half of the protocol.
pub struct Publisher {
    svid: Arc<Svid>,
    owner: Owner,
    description: NodeDescription,
    version: Version,
    continues: Option<u64>,
    chain: LeaseChain,
    anchor: [u8; 32],
    instances: BTreeMap<Label, Option<Instance>>,
    left: bool,
    renewed_at: Instant,
    next_renewal: Instant,
    said: VecDeque<Said>,
}

impl Publisher {
    /// A new life: `incarnation` must be greater than any earlier one's, `secret` fresh.
    pub fn new(
        svid: Arc<Svid>,
        description: NodeDescription,
        incarnation: u64,
        secret: [u8; 32],
        now: Instant,
    ) -> Self {
        let chain = LeaseChain::new(secret);
        let mut publisher = Self {
            owner: Owner { identity: svid.id().clone(), node: description.name.clone() },
            renewed_at: now,
            next_renewal: now + description.renew,
            version: Version { incarnation, version: 0 },
            continues: None,
            anchor: chain.anchor(),
            instances: BTreeMap::new(),
            left: false,
            said: VecDeque::new(),
            svid,
            description,
            chain,
        };
        publisher.say_node();
        publisher
    }

    /// Who speaks here.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Which life this is.
    pub fn incarnation(&self) -> u64 {
        self.version.incarnation
    }

    /// The next thing to spread.
    pub fn poll_said(&mut self) -> Option<Said> {
        self.said.pop_front()
    }

    /// Says that the owner serves `instance`, or with `None` that it does no longer.
    pub fn set_instance(&mut self, id: Label, instance: Option<Instance>) {
        if self.instances.get(&id) == Some(&instance) || self.left {
            return;
        }
        self.instances.insert(id.clone(), instance);
        self.say_instance(id);
    }

    /// Speaks with another key from now on (a rotated certificate). A new key begins a new life,
    /// which continues this one, so that nobody drops the instances meanwhile.
    pub fn rotate(&mut self, svid: Arc<Svid>, incarnation: u64, secret: [u8; 32]) {
        if svid.chain() == self.svid.chain() {
            // Only whom this node believes has changed.
            return;
        }
        self.svid = svid;
        self.begin(incarnation, secret);
    }

    /// Somebody spread a record of ours from a later life than this one: our calendar was set
    /// back, or a replica took our name. Speaks above it.
    pub fn outlive(&mut self, heard: u64, secret: [u8; 32]) {
        if heard >= self.version.incarnation {
            self.begin(heard.saturating_add(1), secret);
        }
    }

    /// Says that the owner has left for good.
    pub fn leave(&mut self) {
        self.left = true;
        self.say_node();
    }

    /// When the lease is to be renewed.
    pub fn poll_timeout(&self) -> Instant {
        self.next_renewal
    }

    /// Renews the lease when it is time. `secret` begins the next chain if this one is used up.
    pub fn handle_timeout(&mut self, now: Instant, secret: impl FnOnce() -> [u8; 32]) {
        if now < self.next_renewal {
            return;
        }
        if self.left {
            self.next_renewal = now + self.description.renew;
            return;
        }
        // From when it was due, so that lateness does not add up; a loop that was held up for longer
        // makes up for nothing.
        self.next_renewal += self.description.renew;
        if self.next_renewal <= now {
            self.next_renewal = now + self.description.renew;
        }
        self.renewed_at = now;
        match self.chain.renew(self.version.incarnation) {
            Some(renewal) => self.said.push_back(Said::Renewal(renewal)),
            None => {
                self.chain = LeaseChain::new(secret());
                self.anchor = self.chain.anchor();
                self.say_node();
            }
        }
    }

    /// Somebody doubts this owner: it renews before it is time, at once or as soon as it may again.
    pub fn refute(&mut self, now: Instant) {
        let soonest = (self.renewed_at + REFUTE_PERIOD).max(now);
        self.next_renewal = self.next_renewal.min(soonest);
    }

    fn begin(&mut self, incarnation: u64, secret: [u8; 32]) {
        self.continues = Some(self.version.incarnation);
        self.version =
            Version { incarnation: incarnation.max(self.version.incarnation.saturating_add(1)), version: 0 };
        self.chain = LeaseChain::new(secret);
        self.anchor = self.chain.anchor();
        self.say_node();
        for id in self.instances.keys().cloned().collect::<Vec<_>>() {
            self.say_instance(id);
        }
    }

    fn say_node(&mut self) {
        let record = Record::Node(NodeRecord {
            version: self.next_version(),
            owner: self.owner.clone(),
            addresses: self.description.addresses.clone(),
            locality: self.description.locality.clone(),
            capabilities: vec![TALK_CAPABILITY.parse().expect("a label")],
            program: self.description.program.clone(),
            chain: self.svid.chain().iter().map(|certificate| certificate.to_vec()).collect(),
            lease: Lease {
                length_millis: millis(self.description.lease),
                renew_millis: millis(self.description.renew),
                anchor: self.anchor,
            },
            continues: self.continues,
            left: self.left,
        });
        self.said.push_back(Said::Node(SealedRecord::seal(&record, &self.svid)));
    }

    fn say_instance(&mut self, id: Label) {
        let record = Record::Instance(InstanceRecord {
            version: self.next_version(),
            owner: self.owner.clone(),
            id: id.clone(),
            instance: self.instances.get(&id).cloned().flatten(),
        });
        self.said.push_back(Said::Instance(id, SealedRecord::seal(&record, &self.svid)));
    }

    fn next_version(&mut self) -> Version {
        self.version.version += VERSIONS_PER_RECORD;
        self.version
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
