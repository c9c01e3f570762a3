//! The checker finds what must not be: without this, a run that passes proves nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use starling_gossip::catalogue::Catalogue;
use starling_gossip::clock::Instant;
use starling_gossip::publisher::{NodeDescription, Publisher, Said};
use starling_gossip::record::{Health, Instance, Locality, Protocol};
use starling_gossip::snapshot::Snapshot;
use starling_sim::check::Checker;
use starling_sim::keys::{Authority, WALL_AT_START};
use starling_sim::world::INSTANCE_ID;

const LEASE: Duration = Duration::from_secs(10);

/// One node, and a catalogue that hears it.
struct Stage {
    node: Publisher,
    catalogue: Catalogue,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mut authority = Authority::new(&mut rng).expect("an authority");
        let svid = authority.svid("web", &mut rng).expect("an SVID");
        let description = NodeDescription {
            name: "web-1".parse().expect("a name"),
            addresses: vec!["10.0.0.1:7400".parse().expect("an address")],
            locality: Locality::default(),
            program: "1".parse().expect("a label"),
            lease: LEASE,
            renew: LEASE / 5,
        };
        let now = Instant::now();
        let node = Publisher::new(svid, description, 1, [1; 32], now);
        Self { node, catalogue: Catalogue::new(authority.bundle()), now }
    }

    fn announces(&mut self, weight: u16) -> Snapshot {
        let instance = Instance {
            service: "web".parse().expect("a name"),
            protocol: Protocol::Tcp,
            version: None,
            tags: BTreeMap::new(),
            weight,
            health: Health::Healthy,
            since_unix_millis: 0,
        };
        self.node.set_instance(INSTANCE_ID.parse().expect("a label"), Some(instance));
        while let Some(Said::Node(record) | Said::Instance(_, record)) = self.node.poll_said() {
            self.catalogue.apply(&record.to_bytes(), self.now, WALL_AT_START).expect("honest");
        }
        self.catalogue.poll_snapshot().expect("news")
    }

    fn is_silent(&mut self) -> Snapshot {
        self.catalogue.handle_timeout(self.now + LEASE, WALL_AT_START);
        self.catalogue.poll_snapshot().expect("news")
    }
}

#[test]
fn what_was_signed_passes_and_what_was_not_does_not() {
    let mut stage = Stage::new();
    let snapshot = stage.announces(1);
    let what =
        |result: Result<(), starling_sim::check::Violation>| result.map_err(|violation| violation.what);
    let mut checker = Checker::default();
    assert_eq!(what(checker.observe(0, &snapshot)), Err("holds a record that nobody signed, of"));
    checker.signs(stage.node.owner(), 2);
    assert_eq!(what(checker.observe(0, &snapshot)), Err("offers what was never signed by"));
    checker.signs(stage.node.owner(), 1);
    assert_eq!(what(checker.observe(0, &snapshot)), Ok(()));

    let later = stage.announces(2);
    assert_eq!(what(checker.observe(1, &later)), Ok(()));
    assert_eq!(what(checker.observe(0, &later)), Ok(()));
    assert_eq!(what(checker.observe(0, &snapshot)), Err("went back in time about"));
}

#[test]
fn only_a_crashed_node_may_be_missed() {
    let mut stage = Stage::new();
    let mut checker = Checker::default();
    checker.signs(stage.node.owner(), 1);
    let snapshot = stage.announces(1);
    checker.observe(0, &snapshot).expect("honest");
    let gone = stage.is_silent();
    assert_eq!(checker.observe(0, &gone).expect_err("it runs").what, "gave up the running");
    checker.observe(1, &snapshot).expect("honest");
    assert_eq!(checker.observe(1, &Snapshot::default()).expect_err("it runs").what, "lost what it knew of");
    checker.crashes(stage.node.owner());
    checker.observe(0, &snapshot).expect("honest");
    checker.observe(0, &gone).expect("its lease ran out");
}
