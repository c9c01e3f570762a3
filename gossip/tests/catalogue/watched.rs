//! A catalogue with a clock, its newest snapshot kept beside it, and shorthands for what tests say.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::catalogue::{Applied, Catalogue, Rejected};
use starling_gossip::clock::{Instant, WallTime};
use starling_gossip::publisher::{NodeDescription, Publisher, Said};
use starling_gossip::record::{Health, Instance, Label, Locality, NodeRecord, Owner, Protocol, Renewal};
use starling_gossip::snapshot::{Presence, Snapshot};
use starling_gossip::svid::{Svid, TrustBundle};

use crate::authority::WALL;

/// The lease of tests: renewed each second, so suspect after 4, gone after 10.
pub(crate) const RENEW: Duration = Duration::from_secs(1);
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_secs(4);
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// A catalogue under observation.
pub(crate) struct Watched {
    pub(crate) catalogue: Catalogue,
    pub(crate) now: Instant,
    pub(crate) wall: WallTime,
    snapshot: Snapshot,
}

/// All that a reader of the catalogue can see, without the times of arrival.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    pub(crate) digest: [u8; 32],
    members: Vec<(Owner, Arc<NodeRecord>, Presence)>,
    pub(crate) instances: Vec<(Owner, Label, Arc<Instance>, Presence)>,
    addresses: Vec<String>,
}

impl Watched {
    pub(crate) fn new(bundle: Arc<TrustBundle>) -> Self {
        let catalogue = Catalogue::new(bundle);
        Self { catalogue, now: Instant::now(), wall: WALL, snapshot: Snapshot::default() }
    }

    pub(crate) fn apply(&mut self, record: &[u8]) -> Result<Applied, Rejected> {
        self.catalogue.apply(record, self.now, self.wall)
    }

    pub(crate) fn renew(&mut self, owner: &Owner, renewal: &Renewal) -> Result<(), Rejected> {
        self.catalogue.apply_renewal(&owner.short_name(), renewal, self.now, self.wall)
    }

    pub(crate) fn hear(&mut self, owner: &Owner, said: &Said) -> Result<(), Rejected> {
        match said {
            Said::Node(record) | Said::Instance(_, record) => self.apply(&record.to_bytes()).map(drop),
            Said::Renewal(renewal) => self.renew(owner, renewal),
        }
    }

    /// Hears everything that `publisher` has to say; all of it must be welcome.
    pub(crate) fn hear_all(&mut self, publisher: &mut Publisher) {
        let owner = publisher.owner().clone();
        while let Some(said) = publisher.poll_said() {
            self.hear(&owner, &said).expect("an honest word");
        }
    }

    /// Lets both clocks go on, and the catalogue notice.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.wall.unix_millis += time.as_millis() as u64;
        self.catalogue.handle_timeout(self.now, self.wall);
    }

    pub(crate) fn snapshot(&mut self) -> &Snapshot {
        if let Some(next) = self.catalogue.poll_snapshot() {
            self.snapshot = next;
        }
        &self.snapshot
    }

    pub(crate) fn presence(&mut self, owner: &Owner) -> Option<Presence> {
        self.snapshot().members.get(owner).map(|member| member.presence)
    }

    /// How many instances a caller could be sent to.
    pub(crate) fn offered(&mut self) -> usize {
        self.snapshot().services.values().map(Vec::len).sum()
    }

    pub(crate) fn view(&mut self) -> View {
        let digest = self.catalogue.digest();
        let snapshot = self.snapshot();
        let members = snapshot.members.iter();
        let offered = snapshot.services.values().flatten();
        View {
            digest,
            members: members.map(|(owner, it)| (owner.clone(), it.record.clone(), it.presence)).collect(),
            instances: offered
                .map(|it| (it.owner.clone(), it.id.clone(), it.instance.clone(), it.presence))
                .collect(),
            addresses: snapshot.addresses.iter().map(|entry| format!("{entry:?}")).collect(),
        }
    }
}

/// A node called `name` that speaks with `svid`; its lease is that of these tests.
pub(crate) fn publisher(svid: Arc<Svid>, name: &str, incarnation: u64, now: Instant) -> Publisher {
    let description = NodeDescription {
        name: name.parse().expect("a node name"),
        addresses: vec!["127.0.0.1:7400".parse().expect("an address")],
        locality: Locality::default(),
        program: label("0.1.0"),
        lease: LEASE,
        renew: RENEW,
    };
    Publisher::new(svid, description, incarnation, [incarnation as u8; 32], now)
}

pub(crate) fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

/// An instance of `service`; `weight` tells one from another.
pub(crate) fn instance(service: &str, weight: u16) -> Instance {
    Instance {
        service: service.parse().expect("a service name"),
        protocol: Protocol::Http,
        version: None,
        tags: [(label("track"), label("canary"))].into(),
        weight,
        health: Health::Healthy,
        since_unix_millis: WALL.unix_millis,
    }
}

/// The records that `publisher` has to say, as they travel.
pub(crate) fn records(publisher: &mut Publisher) -> Vec<Vec<u8>> {
    let said = std::iter::from_fn(|| publisher.poll_said());
    said.filter_map(|said| match said {
        Said::Node(record) | Said::Instance(_, record) => Some(record.to_bytes()),
        Said::Renewal(_) => None,
    })
    .collect()
}
