use std::net::SocketAddr;

use starling_gossip::clock::Clock;
use starling_gossip::record::Locality;
use starling_gossip::snapshot::Member;

use super::super::tests::{offered, owner};
use super::*;
use crate::route::compute_keeping;

/// No numbers.
const NOBODY: Vec<u8> = Vec::new();

const SECOND: Duration = Duration::from_secs(1);

use Presence::{Alive, Expired, Left, Suspect};

/// A node that looks at a mesh of instances of `web`, each of a node of its own.
struct World {
    retention: Retention,
    nodes: BTreeMap<u8, (Presence, Option<Health>)>,
    now: Instant,
}

impl World {
    /// `count` nodes serve, numbered from 1, and all is well.
    fn new(count: u8) -> Self {
        let nodes = (1..=count).map(|number| (number, (Alive, Some(Health::Healthy)))).collect();
        let retention = Retention::new(owner("own"), Routing::default());
        let mut world = Self { retention, nodes, now: Clock::System.now() };
        world.look();
        assert_eq!(world.kept(), NOBODY);
        world
    }

    /// The nodes become so, all in one snapshot.
    fn become_(&mut self, presence: Presence, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            self.nodes.get_mut(&number).expect("a node").0 = presence;
        }
        self.look();
    }

    fn look(&mut self) {
        let snapshot = self.snapshot();
        self.retention.handle_snapshot(&Arc::new(snapshot), self.now);
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (number, (presence, health)) in &self.nodes {
            let node = offered(&format!("web-{number}"), |offered, instance, record| {
                offered.presence = *presence;
                instance.health = health.unwrap_or(Health::Healthy);
                record.addresses = vec![SocketAddr::from(([10, 0, 0, *number], 7400))];
            });
            let member = Member { record: node.node.clone(), presence: *presence };
            snapshot.members.insert(node.owner.clone(), member);
            if presence.is_present() {
                let identity = node.owner.identity.clone();
                snapshot.addresses.entry(node.node.addresses[0]).or_default().insert(identity);
                if health.is_some() {
                    snapshot.services.entry(service()).or_default().push(node);
                }
            }
        }
        snapshot
    }

    /// The numbers of those that are kept.
    fn kept(&self) -> Vec<u8> {
        let panics = self.retention.panics();
        let instances = panics.get(&service()).into_iter().flat_map(|panic| &panic.instances);
        let mut numbers: Vec<u8> = instances.map(|kept| number(&kept.owner)).collect();
        numbers.sort_unstable();
        numbers
    }

    /// This node tries all that it wants to, and reaches `reachable`; returns whom it tried.
    fn try_all(&mut self, reachable: &[u8]) -> Vec<u8> {
        let mut tried = Vec::new();
        while let Some(target) = self.retention.poll_attempt(self.now) {
            let reached = reachable.contains(&number(&target.owner));
            tried.push(number(&target.owner));
            self.retention.handle_attempt(&target, Some(reached), self.now);
        }
        tried
    }

    /// The same for a while, as often as it wants to.
    fn try_for(&mut self, duration: Duration, reachable: &[u8]) {
        let end = self.now + duration;
        while self.now < end {
            self.try_all(reachable);
            self.now += SECOND;
        }
    }

    fn told(&mut self) -> Vec<Transition> {
        std::iter::from_fn(|| self.retention.poll_transition()).collect()
    }
}

fn service() -> ServiceName {
    "web".parse().expect("a name")
}

fn number(owner: &Owner) -> u8 {
    let number = owner.node.as_str().strip_prefix("web-");
    number.and_then(|number| number.parse().ok()).expect("a numbered node")
}

fn began(lost: usize, known: usize) -> Transition {
    Transition::Began { service: service(), lost, known }
}

#[test]
fn when_most_leases_end_at_once_the_endpoints_are_kept_after_all_others() {
    let mut world = World::new(10);
    world.become_(Expired, 1..=5);
    assert_eq!(world.kept(), NOBODY, "half is not more than half");
    world.now += SECOND * 20;
    world.become_(Suspect, [10]);
    world.become_(Expired, [6]);
    assert_eq!(world.kept(), [1, 2, 3, 4, 5, 6], "within the window, those before it come back");
    assert_eq!(world.told(), [began(6, 10)]);
    world.become_(Expired, [7]);
    assert_eq!((world.kept().len(), world.told()), (7, vec![]), "it is told once");

    let table = compute_keeping(&world.snapshot(), world.retention.panics(), &Locality::default());
    let route = &table.routes[&service()];
    let order: Vec<u8> = route.candidates.iter().map(|one| number(&one.target.owner)).collect();
    assert_eq!(order, [8, 9, 10, 1, 2, 3, 4, 5, 6, 7], "a suspect is heard of, and better than they");
    let retained = route.candidates.iter().filter(|one| one.rank.retained).count();
    assert_eq!(retained, 7);
}

#[test]
fn leases_that_end_one_by_one_are_believed_but_for_the_last() {
    let mut world = World::new(5);
    for number in 1..=4 {
        world.now += SECOND * 31;
        world.become_(Expired, [number]);
        assert_eq!(world.kept(), NOBODY);
    }
    world.now += SECOND * 31;
    world.become_(Expired, [5]);
    assert_eq!(world.kept(), [5], "all that there was");
}

#[test]
fn a_node_that_is_cut_off_keeps_everybody_until_it_has_failed_to_reach_them() {
    let mut world = World::new(3);
    // Its own instance is there, and says nothing.
    let own = offered("own", |_, _, _| {});
    let member = Member { record: own.node.clone(), presence: Alive };
    let with_own = |mut snapshot: Snapshot| {
        snapshot.members.insert(own.owner.clone(), member.clone());
        snapshot.services.entry(service()).or_default().push(own.clone());
        Arc::new(snapshot)
    };
    world.retention.handle_snapshot(&with_own(world.snapshot()), world.now);
    for number in 1..=3 {
        world.nodes.get_mut(&number).expect("a node").0 = Expired;
        world.now += SECOND * 9;
        world.retention.handle_snapshot(&with_own(world.snapshot()), world.now);
    }
    assert_eq!(world.kept(), [1, 2, 3]);
    world.try_for(SECOND * 595, &[]);
    assert_eq!(world.kept(), [1, 2, 3]);
    world.told();
    world.try_for(SECOND * 10, &[]);
    assert_eq!(world.kept(), NOBODY);
    let told = world.told();
    assert!(matches!(told[..], [Transition::Ended { lasted, .. }] if lasted > SECOND * 600), "{told:?}");
    assert_eq!(world.retention.poll_timeout(), None);
}

#[test]
fn what_an_owner_says_itself_goes_at_once_also_in_a_panic() {
    let mut world = World::new(10);
    world.become_(Left, 1..=6);
    for number in 7..=8 {
        world.nodes.get_mut(&number).expect("a node").1 = None;
    }
    world.look();
    assert_eq!((world.kept(), world.told()), (NOBODY, vec![]), "withdrawing is no loss");

    world.become_(Expired, 9..=10);
    assert_eq!(world.kept(), [9, 10]);
    world.become_(Left, [9]);
    assert_eq!(world.kept(), [10]);
    // It is heard again, and no longer has the instance.
    world.nodes.insert(10, (Alive, None));
    world.look();
    assert_eq!(world.kept(), NOBODY);
    assert!(matches!(world.told()[..], [Transition::Began { .. }, Transition::Ended { .. }]));
}

#[test]
fn who_is_heard_again_is_as_usual_and_who_is_not_stays_as_long_as_it_can_be_reached() {
    let mut world = World::new(4);
    world.become_(Expired, 1..=4);
    assert_eq!(world.kept(), [1, 2, 3, 4]);
    world.become_(Alive, 1..=2);
    assert_eq!(world.kept(), [3, 4]);
    assert!(world.retention.take_changed());
    world.try_for(SECOND * 500, &[3]);
    assert_eq!(world.kept(), [3, 4]);
    // One success begins the count anew.
    world.try_for(SECOND * 10, &[3, 4]);
    world.try_for(SECOND * 500, &[3]);
    assert_eq!(world.kept(), [3, 4]);
    // Nobody shows the departed for longer than ten minutes.
    world.nodes.remove(&3);
    world.look();
    world.try_for(SECOND * 120, &[3]);
    assert_eq!(world.kept(), [3]);
    assert_eq!(world.told(), [began(4, 4)]);
}

#[test]
fn whose_place_another_has_taken_is_not_kept() {
    let mut world = World::new(2);
    world.become_(Expired, 1..=2);
    let mut snapshot = world.snapshot();
    let heir = offered("heir", |_, _, record| {
        record.addresses = vec![SocketAddr::from(([10, 0, 0, 1], 7400))];
    });
    let address = heir.node.addresses[0];
    let stranger = "spiffe://acme/svc/other".parse().expect("an identity");
    snapshot.addresses.insert(address, [stranger].into());
    world.retention.handle_snapshot(&Arc::new(snapshot.clone()), world.now);
    assert_eq!(world.kept(), [1, 2], "another identity cannot answer in its place");
    snapshot.addresses.insert(address, [heir.owner.identity].into());
    world.retention.handle_snapshot(&Arc::new(snapshot), world.now);
    assert_eq!(world.kept(), [2]);
}

#[test]
fn the_unhealthy_and_the_draining_are_no_loss() {
    let mut world = World::new(4);
    world.nodes.insert(1, (Alive, Some(Health::Unhealthy)));
    world.nodes.insert(2, (Alive, Some(Health::Draining)));
    world.look();
    world.become_(Expired, 1..=3);
    assert_eq!(world.kept(), NOBODY, "one of two that took calls");
    world.become_(Expired, [4]);
    assert_eq!(world.kept(), [3, 4]);
}

#[test]
fn it_can_be_switched_off_and_the_threshold_moved() {
    for off in [0, 100] {
        let mut world = World::new(4);
        world.become_(Expired, 1..=3);
        assert_eq!(world.kept(), [1, 2, 3]);
        world.retention.set_settings(Routing { panic_threshold: off, ..Routing::default() }, world.now);
        assert_eq!(world.kept(), NOBODY);
        world.become_(Expired, [4]);
        assert_eq!(world.kept(), NOBODY);
    }
    let mut world = World::new(10);
    world.retention.set_settings(Routing { panic_threshold: 10, ..Routing::default() }, world.now);
    world.become_(Expired, 1..=2);
    assert_eq!(world.kept(), [1, 2]);
}

#[test]
fn attempts_are_bounded_at_a_time_and_each_has_its_turn() {
    let mut world = World::new(200);
    world.become_(Expired, 1..=200);
    let mut under_way = Vec::new();
    while let Some(target) = world.retention.poll_attempt(world.now) {
        under_way.push(target);
    }
    assert_eq!((under_way.len(), world.retention.poll_timeout()), (ATTEMPTS_MAX, None));
    // Our own trouble is no evidence, however long it lasts.
    for target in &under_way {
        world.retention.handle_attempt(target, None, world.now);
    }
    let first: BTreeSet<u8> = under_way.iter().map(|target| number(&target.owner)).collect();
    let others: BTreeSet<u8> = world.try_all(&[]).into_iter().collect();
    assert_eq!(others.len(), 200 - ATTEMPTS_MAX);
    assert!(first.is_disjoint(&others));
    assert_eq!(world.retention.poll_timeout(), Some(world.now + ATTEMPT_PERIOD));
    world.now += ATTEMPT_PERIOD + SECOND * 600;
    world.try_all(&[]);
    assert_eq!(world.kept().len(), ATTEMPTS_MAX, "failed only once");
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut retention = Retention::new(owner("own"), Routing::default());
    let now = Clock::System.now();
    let instances = |presence: Presence| {
        let mut snapshot = Snapshot::default();
        let many = offered("web-1", |_, _, _| {});
        let member = Member { record: many.node.clone(), presence };
        snapshot.members.insert(many.owner.clone(), member);
        if presence.is_present() {
            let named = |index: usize| ServiceInstance {
                id: format!("web-{index}").parse().expect("a label"),
                ..many.clone()
            };
            snapshot.services.insert(service(), (0..LOST_PER_SERVICE_MAX + 9).map(named).collect());
        }
        Arc::new(snapshot)
    };
    retention.handle_snapshot(&instances(Alive), now);
    retention.handle_snapshot(&instances(Expired), now);
    assert_eq!(retention.panics()[&service()].instances.len(), LOST_PER_SERVICE_MAX);
}
