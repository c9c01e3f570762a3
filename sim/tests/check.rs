//! The checker finds what must not be: without this, a run that passes proves nothing.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use starling_gossip::catalogue::Catalogue;
use starling_gossip::clock::Instant;
use starling_gossip::publisher::{NodeDescription, Publisher, Said};
use starling_gossip::record::{Health, Instance, Locality, Protocol};
use starling_gossip::snapshot::Snapshot;
use starling_sim::check::{Checker, INSTANCE_ID, Violation};
use starling_sim::keys::{Authority, WALL_AT_START};
use starling_sim::network::partition::APART;
use starling_sim::truth::{Saying, Truth};

const LEASE: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(2);

/// One node (host 0), a catalogue that hears it, and what is really so. Observers are hosts 1 and 2.
struct Stage {
    node: Publisher,
    catalogue: Catalogue,
    truth: Truth,
    checker: Checker,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mut authority = Authority::new(&mut rng).expect("an authority");
        let now = Instant::now();
        let mut truth = Truth::default();
        let mut publisher = |name: &str| {
            let svid = authority.svid("web", &mut rng).expect("an SVID");
            let description = NodeDescription {
                name: name.parse().expect("a name"),
                addresses: vec!["10.0.0.1:7400".parse().expect("an address")],
                locality: Locality::default(),
                program: "1".parse().expect("a label"),
                lease: LEASE,
                renew: RENEW,
            };
            Publisher::new(svid, description, 1, [1; 32], now)
        };
        let node = publisher("web-1");
        for owner in [node.owner().clone(), publisher("a").owner().clone(), publisher("b").owner().clone()] {
            let host = truth.add(owner, Locality::default());
            truth.host_mut(host).addresses.push("10.0.0.1:7400".parse().expect("an address"));
            truth.host_mut(host).up_since = Some(now);
        }
        truth.begin_epoch(now - LEASE * 2, vec![0, 0, 0]);
        let catalogue = Catalogue::new(authority.bundle());
        Self { node, catalogue, truth, checker: Checker::new(LEASE, RENEW), now }
    }

    /// The node says something new, and the truth knows of it or not.
    fn says(&mut self, number: u64, is_known: bool) -> Arc<Snapshot> {
        let instance = Instance {
            service: "web".parse().expect("a name"),
            protocol: Protocol::Tcp,
            version: None,
            tags: Default::default(),
            weight: 100,
            health: Health::Healthy,
            since_unix_millis: number,
        };
        if is_known {
            let words = &mut self.truth.host_mut(0).words;
            words.push(Saying { at: self.now, instance: Some(instance.clone()) });
        }
        self.node.set_instance(INSTANCE_ID.parse().expect("a label"), Some(instance));
        self.is_heard()
    }

    fn is_heard(&mut self) -> Arc<Snapshot> {
        while let Some(said) = self.node.poll_said() {
            if let Said::Node(record) | Said::Instance(_, record) = said {
                self.catalogue.apply(&record.to_bytes(), self.now, WALL_AT_START).expect("honest");
            }
        }
        Arc::new(self.catalogue.poll_snapshot().expect("news"))
    }

    fn is_silent_for(&mut self, silent: Duration) -> Arc<Snapshot> {
        self.now += silent;
        self.catalogue.handle_timeout(self.now, WALL_AT_START);
        Arc::new(self.catalogue.poll_snapshot().expect("news"))
    }

    fn observes(&mut self, observer: usize, snapshot: &Arc<Snapshot>) -> Result<(), &'static str> {
        let observed = self.checker.observe(&self.truth, observer, self.now, snapshot);
        observed.map(drop).map_err(|Violation { what, .. }| what)
    }
}

#[test]
fn what_was_said_passes_and_what_was_not_does_not() {
    let mut stage = Stage::new();
    let unknown = stage.says(1, false);
    assert_eq!(stage.observes(1, &unknown), Err("offers what was never signed by"));
    let mut stage = Stage::new();
    let first = stage.says(1, true);
    assert_eq!(stage.observes(1, &first), Ok(()));
    let second = stage.says(2, true);
    assert_eq!(stage.observes(2, &second), Ok(()));
    assert_eq!(stage.observes(1, &second), Ok(()));
    assert_eq!(stage.observes(2, &first), Err("went back in time about the instance of"));
}

#[test]
fn nobody_is_invented_moved_or_said_to_have_left() {
    let mut stage = Stage::new();
    let snapshot = stage.says(1, true);
    let stranger = Stage::new().says(1, true);
    stage.truth = Truth::default();
    assert_eq!(stage.observes(1, &stranger), Err("holds a record that nobody signed, of"));

    let mut stage = Stage::new();
    stage.truth.host_mut(0).addresses.clear();
    assert_eq!(stage.observes(1, &snapshot), Err("holds a node record that was not signed by"));

    let mut stage = Stage::new();
    let snapshot = stage.says(1, true);
    assert_eq!(stage.observes(1, &snapshot), Ok(()));
    stage.node.leave();
    let gone = stage.is_heard();
    assert_eq!(stage.observes(1, &gone), Err("believes to have left"));
}

#[test]
fn nobody_is_given_up_before_the_lease_is_over() {
    let mut stage = Stage::new();
    let snapshot = stage.says(1, true);
    assert_eq!(stage.observes(1, &snapshot), Ok(()));
    assert_eq!(stage.observes(2, &snapshot), Ok(()));
    assert_eq!(stage.observes(2, &Arc::default()), Err("forgot, though it was present,"));
    let suspect = stage.is_silent_for(LEASE * 3 / 4);
    assert_eq!(stage.observes(1, &suspect), Ok(()));
    let expired = stage.is_silent_for(LEASE / 4);
    assert_eq!(stage.observes(1, &expired), Ok(()));

    let mut hasty = Stage::new();
    let snapshot = hasty.says(1, true);
    assert_eq!(hasty.observes(1, &snapshot), Ok(()));
    let suspect = hasty.is_silent_for(LEASE * 3 / 4);
    assert_eq!(hasty.observes(1, &suspect), Ok(()));
    let expired = hasty.is_silent_for(LEASE / 4);
    hasty.now -= Duration::from_secs(1);
    assert_eq!(hasty.observes(1, &expired), Err("gave up before its lease ended"));

    // Where nothing is lost, a doubt that watchers raised early brings no lease to an earlier end.
    let mut doubted = Stage::new();
    doubted.checker = Checker::new(LEASE, RENEW).hearing_all(true);
    doubted.truth.begin_epoch(doubted.now, vec![APART, 0, 0]);
    let snapshot = doubted.says(1, true);
    assert_eq!(doubted.observes(1, &snapshot), Ok(()));
    let suspect = doubted.is_silent_for(LEASE * 3 / 4);
    let expired = doubted.is_silent_for(LEASE / 4);
    // What these snapshots show is seen earlier: a doubt at once, and the end soon after.
    doubted.now -= LEASE;
    assert_eq!(doubted.observes(1, &suspect), Ok(()));
    doubted.now += Duration::from_secs(3);
    assert_eq!(doubted.observes(1, &expired), Err("gave up before its lease ended"));
}
