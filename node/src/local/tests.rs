//! What others hear of this node's instances when they come, change and go.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use starling_gossip::clock::{Clock, WallTime};
use starling_gossip::handle::{Budget, Gossip, News, Setup};
use starling_gossip::identity::SpiffeId;
use starling_gossip::link::{Delivery, Destination, Link, Received};
use starling_gossip::publisher::NodeDescription;
use starling_gossip::record::{Health, Instance, Locality};
use starling_gossip::svid::{Svid, TrustBundle};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::ca::Authority;
use crate::capacity::Capacity;
use crate::config::{Config, Limits};

/// Long enough for a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Nobody else is there.
struct Alone;

#[async_trait]
impl Link for Alone {
    fn send(&self, _to: Destination, _message: Vec<u8>, _delivery: Delivery) {}

    fn is_behind(&self) -> bool {
        false
    }

    fn shun(&self, _peer: &SpiffeId, _address: SocketAddr, _span: Duration) {}

    async fn recv(&self) -> Option<Received> {
        std::future::pending().await
    }
}

struct World {
    local: LocalInstances,
    gossip: Gossip,
    workload: TcpListener,
    _seeds: watch::Sender<Vec<SocketAddr>>,
}

impl World {
    async fn new() -> Self {
        let wall = WallTime { unix_millis: Clock::System.wall().unix_millis };
        let authority = Authority::new("acme".parse().expect("a domain"), wall).expect("a root");
        let id = "spiffe://acme/svc/web".parse().expect("an id");
        let issued = authority.issue(&id, Duration::from_secs(86_400), wall).expect("a leaf");
        let svid = Svid::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("an SVID");
        let bundle =
            TrustBundle::from_pem(authority.domain().clone(), authority.certificate_pem().as_bytes());
        let (seeds, seed_addresses) = watch::channel(Vec::new());
        let (gossip, gossip_loop) = Gossip::start(Setup {
            description: NodeDescription {
                name: "node".parse().expect("a name"),
                addresses: vec!["127.0.0.1:7400".parse().expect("an address")],
                locality: Locality::default(),
                program: "starling/0".parse().expect("a label"),
                lease: Duration::from_secs(120),
                renew: Duration::from_secs(5),
            },
            interval: Duration::from_secs(1),
            svid: Arc::new(svid),
            bundle: Arc::new(bundle.expect("a bundle")),
            link: Arc::new(Alone),
            clock: Clock::System,
            random_seed: 7,
            seeds: seed_addresses,
            remembered: None,
            news: News::default(),
            budget: Budget::default(),
        })
        .await
        .expect("gossip");
        tokio::spawn(gossip_loop.run());
        let limits = Capacity::new(&Limits::default(), 0).workloads;
        let local = LocalInstances::new(gossip.clone(), Clock::System, limits, DRAIN_TIMEOUT, 7);
        let workload = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self { local, gossip, workload, _seeds: seeds }
    }

    /// One service per entry: its id and further keys.
    fn services(&self, entries: &[(&str, &str)]) -> Vec<Service> {
        let usual = format!("address = \"{}\"", self.workload.local_addr().expect("an address"));
        let section = |(id, keys): &(&str, &str)| {
            let address = if keys.contains("address") { "" } else { usual.as_str() };
            format!("[[service]]\nname = \"web\"\nid = {id:?}\n{address}\n{keys}\n")
        };
        let text: String = entries.iter().map(section).collect();
        let none: [(String, String); 0] = [];
        Config::parse(&text, Path::new("starling.toml"), none).expect("services").services
    }

    fn apply(&self, entries: &[(&str, &str)]) {
        self.local.apply(&self.services(entries)).expect("applied");
    }

    fn said(&self, id: &str) -> Option<Instance> {
        let snapshot = self.gossip.snapshots().borrow().clone();
        let offered = snapshot.services.get("web")?.iter().find(|offered| offered.id.as_str() == id)?;
        Some((*offered.instance).clone())
    }

    /// Waits until what is said of `id` is so.
    async fn hears(&self, id: &str, is_so: impl Fn(Option<&Instance>) -> bool) {
        let mut snapshots = self.gossip.snapshots();
        let heard = tokio::time::timeout(PATIENCE, async {
            while !is_so(self.said(id).as_ref()) {
                snapshots.changed().await.expect("gossip runs");
            }
        });
        assert!(heard.await.is_ok(), "{id} stays {:?}", self.said(id));
    }

    async fn hears_health(&self, id: &str, health: Health) {
        self.hears(id, |said| said.is_some_and(|said| said.health == health)).await;
    }

    fn workload(&self, id: &str) -> Arc<Workload> {
        self.local.workloads().find(id).expect("a workload")
    }
}

#[tokio::test]
async fn what_stays_the_same_keeps_its_workload_and_what_is_said_of_it_changes_without_a_flap() {
    let world = World::new().await;
    world.apply(&[("a", ""), ("b", "")]);
    world.hears_health("a", Health::Healthy).await;
    world.hears_health("b", Health::Healthy).await;
    let (a, b) = (world.workload("a"), world.workload("b"));
    let since = world.said("b").expect("said").since_unix_millis;
    let mut snapshots = world.gossip.snapshots();
    snapshots.mark_unchanged();

    world.apply(&[("a", ""), ("b", "weight = 7\nversion = \"v2\"")]);
    // The very next thing that is said of it: nothing in between.
    tokio::time::timeout(PATIENCE, snapshots.changed()).await.expect("heard").expect("gossip runs");
    let said = world.said("b").expect("said");
    assert_eq!((said.weight, said.health, said.since_unix_millis), (7, Health::Healthy, since));
    assert!(Arc::ptr_eq(&world.workload("a"), &a) && Arc::ptr_eq(&world.workload("b"), &b));
    assert_eq!(world.workload("b").service_now().weight, 7, "the request path reads it too");
}

#[tokio::test]
async fn another_address_is_another_workload_and_streams_leave_the_old_one() {
    let world = World::new().await;
    world.apply(&[("a", "")]);
    world.hears_health("a", Health::Healthy).await;
    let old = world.workload("a");
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("address = \"{}\"", elsewhere.local_addr().expect("an address"));
    world.apply(&[("a", &address)]);
    assert!(!Arc::ptr_eq(&world.workload("a"), &old), "at once");
    assert!(old.gate.is_draining() && !world.workload("a").gate.is_draining());
    world.hears_health("a", Health::Healthy).await;
}

#[tokio::test]
async fn streams_that_are_open_obey_the_list_of_now_wherever_their_instance_lives() {
    let world = World::new().await;
    world.apply(&[("a", "")]);
    let peer = "spiffe://acme/svc/db".parse().expect("an identity");
    let admission = world.workload("a").access.admit(&peer).expect("anybody is let in");
    world.apply(&[("a", "allow = [\"spiffe://acme/svc/cart\"]")]);
    assert!(admission.check().is_err(), "the same workload");
    world.apply(&[("a", "address = \"127.0.0.1:9\"\nallow = [\"spiffe://acme/svc/*\"]")]);
    assert!(admission.check().is_ok(), "another workload");
    world.apply(&[("a", "address = \"127.0.0.1:9\"\nallow = []")]);
    assert!(admission.check().is_err());
    assert!(world.workload("a").access.admit(&peer).is_err(), "and so do new ones");
}

/// Nobody would tell them of the list with which the id comes back.
#[tokio::test]
async fn streams_that_are_open_end_with_their_instance() {
    let world = World::new().await;
    let peer = "spiffe://acme/svc/db".parse().expect("an identity");
    let admit = || {
        let workload = world.workload("a");
        let admission = workload.access.admit(&peer).expect("anybody is let in");
        (workload, admission)
    };
    world.apply(&[("a", "")]);
    let (renamed, admission) = admit();
    let mut other = world.services(&[("a", "")]);
    other[0].name = "other".parse().expect("a name");
    world.local.apply(&other).expect("applied");
    assert!(admission.check().is_err(), "another service has taken its id");
    world.apply(&[("a", "")]);
    assert!(!renamed.continues_in(&world.workload("a")), "the service is back, its streams are not");

    let (withdrawn, admission) = admit();
    world.apply(&[]);
    world.hears_health("a", Health::Draining).await;
    assert!(admission.check().is_ok(), "work may finish");
    let ended = tokio::time::timeout(PATIENCE, admission.revoked()).await;
    assert!(ended.is_ok() && admission.has_ended());
    world.apply(&[("a", "allow = [\"spiffe://acme/svc/cart\"]")]);
    assert!(!withdrawn.continues_in(&world.workload("a")));
}

#[tokio::test]
async fn what_is_gone_drains_for_the_work_under_way_and_is_withdrawn() {
    let world = World::new().await;
    world.apply(&[("a", ""), ("b", "")]);
    world.hears_health("b", Health::Healthy).await;
    let b = world.workload("b");
    let work = b.gate.enter();
    world.apply(&[("a", "")]);
    world.hears_health("b", Health::Draining).await;
    assert!(world.local.workloads().find("b").is_some(), "callers that have not heard are served");
    drop(work);
    world.hears("b", |said| said.is_none()).await;
    tokio::time::timeout(PATIENCE, async {
        while world.local.workloads().find("b").is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("forgotten");
    assert_eq!(world.said("a").expect("still said").health, Health::Healthy);
    // The id may be used again.
    world.apply(&[("a", ""), ("b", "")]);
    world.hears_health("b", Health::Healthy).await;
}

#[tokio::test]
async fn work_that_does_not_end_holds_a_withdrawal_no_longer_than_the_drain_timeout() {
    let world = World::new().await;
    world.apply(&[("a", "")]);
    world.hears_health("a", Health::Healthy).await;
    let _work = world.workload("a").gate.enter();
    let began = Clock::System.now();
    // As a reload does that takes another one over.
    world.local.set_drain_timeout(DRAIN_TIMEOUT * 2);
    world.apply(&[]);
    world.hears("a", |said| said.is_none()).await;
    assert!(Clock::System.now() - began >= DRAIN_TIMEOUT * 2);
}

#[tokio::test]
async fn one_that_is_wanted_again_while_it_drains_is_served_again() {
    let world = World::new().await;
    world.apply(&[("a", "")]);
    world.hears_health("a", Health::Healthy).await;
    let _work = world.workload("a").gate.enter();
    world.apply(&[]);
    world.hears_health("a", Health::Draining).await;
    world.apply(&[("a", "")]);
    world.hears_health("a", Health::Healthy).await;
    assert!(!world.workload("a").gate.is_draining());
}

#[tokio::test]
async fn more_ids_than_others_remember_change_nothing() {
    let world = World::new().await;
    let ids: Vec<String> = (0..INSTANCES_PER_OWNER_MAX).map(|number| format!("i{number}")).collect();
    let entries: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "weight = 0")).collect();
    world.apply(&entries[1..]);
    world.apply(&[("first", "")]);
    let refused = world.local.apply(&world.services(&[("second", "")]));
    assert_eq!(refused, Err(ApplyError::TooManyIds(INSTANCES_PER_OWNER_MAX + 1)));
    assert!(world.local.workloads().find("second").is_none());
    world.apply(&[("first", "weight = 5")]);
}

#[tokio::test]
async fn a_node_that_leaves_announces_draining_and_takes_no_changes() {
    let world = World::new().await;
    world.apply(&[("a", "")]);
    world.hears_health("a", Health::Healthy).await;
    world.local.drain();
    world.hears_health("a", Health::Draining).await;
    assert_eq!(world.local.apply(&[]), Err(ApplyError::Leaving));
    world.local.withdraw().await;
    world.hears("a", |said| said.is_none()).await;
}

/// The workload accepts and says nothing; whoever registered it stands by it all the while.
#[tokio::test]
async fn heartbeats_hide_no_workload_that_hangs() {
    let world = World::new().await;
    let probe = "[service.probe]\nhttp = \"/\"\ninterval = \"500ms\"\ntimeout = \"400ms\"";
    let hung = world.services(&[("a", probe)]).remove(0);
    world.local.register(&hung, Some(Duration::from_secs(60))).expect("registered");
    let beats = async {
        loop {
            world.local.heartbeat(&hung.id, true).expect("registered");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = beats => {}
        () = world.hears_health("a", Health::Unhealthy) => {}
    }
    let reason = || world.local.states().into_iter().find_map(|(_, state)| state.reason);
    assert!(reason().is_some_and(|reason| reason.contains("no answer within 400ms")), "{:?}", reason());
    // The health stays as it is; why is another matter.
    world.local.heartbeat(&hung.id, false).expect("registered");
    tokio::time::timeout(PATIENCE, async {
        while !reason().is_some_and(|reason| reason.contains("heartbeat")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the present reason");
}

#[tokio::test]
async fn what_was_registered_stands_beside_the_configuration() {
    let world = World::new().await;
    let registered = world.services(&[("mine", "")]).remove(0);
    world.apply(&[("a", "")]);
    assert_eq!(world.local.register(&registered, None), Ok(true));
    assert_eq!(world.local.register(&registered, None), Ok(false));
    world.hears_health("mine", Health::Healthy).await;
    let mine = world.workload("mine");
    world.apply(&[("b", "")]);
    world.hears_health("b", Health::Healthy).await;
    assert!(Arc::ptr_eq(&world.workload("mine"), &mine), "a reload leaves it alone");
    let id = || "mine".parse::<Label>().expect("a label");
    let clash = world.local.apply(&world.services(&[("b", ""), ("mine", "")]));
    assert_eq!(clash, Err(ApplyError::Registered(id())));
    let configured = world.services(&[("b", "")]).remove(0);
    assert_eq!(
        world.local.register(&configured, None),
        Err(RegisterError::Configured(configured.id.clone()))
    );
    // Once it is withdrawn, the configuration may have its id.
    assert_eq!(world.local.deregister(&id()), Ok(()));
    assert_eq!(world.local.deregister(&id()), Err(RegisterError::Unknown(id())));
    world.apply(&[("b", ""), ("mine", "weight = 3")]);
    assert_eq!(world.local.deregister(&id()), Err(RegisterError::Configured(id())));
    world.hears("mine", |said| said.is_some_and(|it| (it.weight, it.health) == (3, Health::Healthy))).await;
}
