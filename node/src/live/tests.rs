use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use starling_gossip::record::{Health, Instance, Locality, NodeRecord};
use starling_gossip::snapshot::{ServiceInstance, Snapshot};
use starling_gossip::svid::{Svid, TrustBundle};
use starling_transport::credentials::Credentials;
use starling_transport::endpoint::Endpoint as Transport;
use starling_transport::limits::Windows;
use starling_transport::pool::Pool;

use super::*;
use crate::balance::Chance;
use crate::ca::Authority;
use crate::circuit::Kind;
use crate::config::Config;
use crate::route::compute;
use crate::route::tests::offered;
use crate::upstream::{UpstreamLimits, http2};

/// What tables are made with in these tests, by a clock that they move.
struct Maker {
    pool: Pool,
    clock: Clock,
    upstreams: Upstreams,
    _transport: Transport,
}

impl Maker {
    /// A node with `toml` as its configuration.
    fn new(toml: &str) -> Self {
        let clock = Clock::System;
        let authority = Authority::new("acme".parse().expect("a domain"), clock.wall()).expect("a root");
        let id = "spiffe://acme/svc/me".parse().expect("an identity");
        let issued = authority.issue(&id, Duration::from_secs(3_600), clock.wall()).expect("a certificate");
        let svid = Svid::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("an SVID");
        let roots = authority.certificate_pem().as_bytes();
        let bundle = TrustBundle::from_pem(authority.domain().clone(), roots).expect("roots");
        let credentials = Credentials::new(svid, bundle, clock.clone()).expect("credentials");
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let bound = Transport::bind(listen, credentials, Windows::within(None), StdRng::seed_from_u64(1));
        let transport = bound.expect("a port").0;
        let config = Config::parse(toml, Path::new("/etc/starling.toml"), []);
        let upstreams = config.unwrap_or_else(|mistakes| panic!("{mistakes}")).upstreams;
        Self { pool: transport.pool().clone(), clock, upstreams, _transport: transport }
    }

    fn next(&self, table: &LiveTable, instances: Vec<ServiceInstance>) -> LiveTable {
        let services = BTreeMap::from([("web".parse().expect("a name"), instances)]);
        self.next_of(table, &Snapshot { services, ..Snapshot::default() })
    }

    fn next_of(&self, table: &LiveTable, snapshot: &Snapshot) -> LiveTable {
        let limits = UpstreamLimits { idle_max: 1, windows: http2::Windows::within(None) };
        let endpoint = |service: &ServiceName, target: &Target, usage: Arc<Usage>| {
            let (pool, clock) = (self.pool.clone(), self.clock.clone());
            Endpoint::new(target.clone(), service.clone(), usage, pool, limits, clock)
        };
        let own = "me".parse().expect("a name");
        let making =
            Making { upstreams: &self.upstreams, own: &own, endpoint: &endpoint, clock: &self.clock };
        table.next(compute(snapshot, &Locality::default()), &making)
    }
}

fn nodes(table: &LiveTable, name: &str) -> Vec<String> {
    let route = table.route(name).expect(name);
    route.endpoints.iter().map(|endpoint| endpoint.target().owner.node.to_string()).collect()
}

fn plain(node: &str) -> ServiceInstance {
    offered(node, |_, _, _| {})
}

fn of_version(node: &str, version: &str) -> ServiceInstance {
    offered(node, |_, instance: &mut Instance, _: &mut NodeRecord| {
        instance.version = Some(version.parse().expect("a label"));
    })
}

#[tokio::test]
async fn who_was_withdrawn_in_trouble_does_not_keep_others_in() {
    let maker = Maker::new("");
    let unreachable = offered("c", |_, _, node: &mut NodeRecord| {
        node.addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    });
    let first = maker.next(&LiveTable::default(), vec![plain("a"), plain("b"), unreachable]);
    let route = first.route("web").expect("a route").clone();
    let [a, _, withdrawn] = &route.endpoints[..] else { panic!("three") };
    assert!(withdrawn.open_tcp(|| route.enter(Kind::Pending).ok()).await.is_err());
    assert!(withdrawn.trouble().is_some());
    // A tunnel would hold it as this does.
    let _second = maker.next(&first, vec![plain("a"), plain("b")]);
    for _ in 0..5 {
        let flight = a.begin(Clock::System.now());
        tokio::time::sleep(Duration::from_millis(1)).await;
        a.handle_timeout(&flight);
    }
    assert!(a.ejection().is_some(), "one of two may be out");
}

#[tokio::test]
async fn work_is_not_given_up_for_who_has_to_be_reached_first() {
    let maker = Maker::new("");
    let unreachable = offered("b", |_, _, node: &mut NodeRecord| {
        node.addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    });
    let table = maker.next(&LiveTable::default(), vec![plain("a"), unreachable, plain("c")]);
    let route = table.route("web").expect("a route");
    let [a, b, c] = &route.endpoints[..] else { panic!("three") };
    assert!(b.open_tcp(|| route.enter(Kind::Pending).ok()).await.is_err());
    eventually_due(b, &maker.clock).await;
    let (now, chance) = (maker.clock.now(), Chance::new(1));
    let has_other = |tried: &[Target]| route.has_other(Errand { tried, key: None, now, chance: &chance });
    assert!(has_other(&[a.target().clone()]));
    assert!(!has_other(&[a.target().clone(), c.target().clone()]));
}

/// The pause after its first failure is over.
async fn eventually_due(endpoint: &Endpoint, clock: &Clock) {
    for _ in 0..400 {
        if endpoint.may_be_tried(clock.now()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("left alone for four seconds");
}

/// Who gets so many pieces of work at `now`.
fn picks(table: &LiveTable, count: usize, now: Instant) -> BTreeMap<String, usize> {
    let (chance, mut picks) = (Chance::new(11), BTreeMap::new());
    for _ in 0..count {
        let errand = Errand { tried: &[], key: None, now, chance: &chance };
        let endpoint = table.route("web").expect("a route").pick(errand).expect("an endpoint");
        *picks.entry(endpoint.target().owner.node.to_string()).or_default() += 1;
    }
    picks
}

#[tokio::test]
async fn a_part_shares_its_endpoints_with_the_whole_and_keeps_them_over_tables() {
    let maker = Maker::new(
        "[[outbound]]\nlisten = \"127.0.0.1:9001\"\nservice = \"web\"\nversion = \"v2\"\n\
         [[upstream]]\nservice = \"web\"\nname = \"web-v1\"\nversion = \"v1\"\nrequests_max = 3\n",
    );
    let all = || vec![of_version("a", "v1"), of_version("b", "v2"), plain("c")];
    let first = maker.next(&LiveTable::default(), all());
    assert_eq!(nodes(&first, "web"), ["a", "b", "c"]);
    assert_eq!(
        (nodes(&first, "web-v1"), nodes(&first, "web@version=v2")),
        (vec!["a".into()], vec!["b".into()])
    );
    let one = |table: &LiveTable, name: &str| table.route(name).expect(name).endpoints[0].clone();
    assert!(Arc::ptr_eq(&one(&first, "web"), &one(&first, "web-v1")), "what is known of one holds for both");
    assert_eq!(first.route("web-v1").expect("a part").settings.limits.requests, 3);
    let second = maker.next(&first, all());
    assert!(Arc::ptr_eq(&one(&first, "web-v1"), &one(&second, "web")));
    let services = BTreeMap::from([("web".parse().expect("a name"), all())]);
    let snapshot = Snapshot { services, ..Snapshot::default() };
    let third = maker.next_of(&second, &snapshot);
    let unchanged = maker.next_of(&third, &snapshot);
    for name in ["web", "web-v1", "web@version=v2"] {
        let live = |table: &LiveTable| table.route(name).expect(name).clone();
        assert!(!Arc::ptr_eq(&live(&second), &live(&third)), "records are new");
        assert!(
            Arc::ptr_eq(&live(&third), &live(&unchanged)),
            "of what has not changed nothing is made anew"
        );
    }
    let gone = maker.next(&second, vec![plain("c")]);
    assert_eq!(nodes(&gone, "web-v1"), Vec::<String>::new(), "and nobody else takes its work");
}

#[tokio::test]
async fn a_part_may_be_called_like_a_service_and_hides_it() {
    let maker = Maker::new("[[upstream]]\nservice = \"web\"\nname = \"old\"\nversion = \"v1\"\n");
    let services = ["web", "old"].map(|name| (name.parse().expect("a name"), vec![of_version(name, "v1")]));
    let snapshot = Snapshot { services: services.into(), ..Snapshot::default() };
    let table = maker.next_of(&LiveTable::default(), &snapshot);
    assert_eq!((nodes(&table, "old"), nodes(&table, "web")), (vec!["web".into()], vec!["web".into()]));
}

#[tokio::test(start_paused = true)]
async fn who_comes_together_is_ready_together_and_a_newcomer_is_spared() {
    let maker =
        Maker::new("[[upstream]]\nservice = \"*\"\nslow_start = \"10s\"\npolicy = \"least_request\"\n");
    let first = maker.next(&LiveTable::default(), vec![plain("a"), plain("b")]);
    let now = maker.clock.now();
    assert!(picks(&first, 100, now).values().all(|count| *count > 30));
    tokio::time::advance(Duration::from_secs(5)).await;
    let second = maker.next(&first, vec![plain("a"), plain("b"), plain("c")]);
    let shares = picks(&second, 300, maker.clock.now());
    assert!(shares["c"] > 60, "nobody is warm yet: {shares:?}");
    tokio::time::advance(Duration::from_secs(10)).await;
    let third = maker.next(&second, vec![plain("a"), plain("b"), plain("c"), plain("d")]);
    let now = maker.clock.now();
    let shares = picks(&third, 400, now);
    assert!(shares.get("d").is_none_or(|count| *count < 40), "{shares:?}");
    let half = picks(&third, 400, now + Duration::from_secs(5));
    assert!((20..90).contains(&half["d"]), "{half:?}");
    let warm = picks(&third, 400, now + Duration::from_secs(10));
    assert!(warm["d"] > 60, "{warm:?}");
    let shown: Vec<f64> = third
        .route("web")
        .expect("a route")
        .shares(now)
        .into_iter()
        .map(|(share, _)| share.round())
        .collect();
    assert_eq!(shown, [32.0, 32.0, 32.0, 3.0]);
}

#[tokio::test(start_paused = true)]
async fn a_rotated_certificate_is_no_restart() {
    let maker =
        Maker::new("[[upstream]]\nservice = \"*\"\nslow_start = \"10s\"\npolicy = \"least_request\"\n");
    let in_life = |incarnation, continues| {
        offered("b", |_, _, node| (node.version.incarnation, node.continues) = (incarnation, continues))
    };
    let first = maker.next(&LiveTable::default(), vec![plain("a"), plain("b")]);
    tokio::time::advance(Duration::from_secs(20)).await;
    let rotated = maker.next(&first, vec![plain("a"), in_life(2, Some(1))]);
    let shares = picks(&rotated, 200, maker.clock.now());
    assert!(shares["b"] > 60, "it is warm: {shares:?}");
    let restarted = maker.next(&rotated, vec![plain("a"), in_life(3, None)]);
    let shares = picks(&restarted, 200, maker.clock.now());
    assert!(shares.get("b").is_none_or(|count| *count < 40), "it has begun anew: {shares:?}");
}

#[tokio::test]
async fn the_draining_and_the_unhealthy_get_nothing() {
    let maker = Maker::new("");
    let table = maker.next(
        &LiveTable::default(),
        vec![
            plain("a"),
            offered("b", |_, instance, _| instance.health = Health::Draining),
            offered("c", |_, instance, _| instance.health = Health::Unhealthy),
        ],
    );
    assert_eq!(picks(&table, 50, maker.clock.now()), BTreeMap::from([("a".to_owned(), 50)]));
}

/// cargo test --release -p starling --lib -- --ignored --nocapture measure_tables
#[tokio::test]
#[ignore = "a measurement, for people"]
async fn measure_tables_of_a_large_service_and_of_many_services() {
    const ROUNDS: u32 = 20;
    let large: Vec<_> = (0..5_000).map(|index| plain(&format!("node-{index}"))).collect();
    let many = (0..1_000).map(|service| {
        let instances = (0..5).map(|index| plain(&format!("node-{service}-{index}"))).collect();
        (format!("service-{service}").parse().expect("a name"), instances)
    });
    let large =
        Snapshot { services: [("web".parse().expect("a name"), large)].into(), ..Snapshot::default() };
    let many = Snapshot { services: many.collect(), ..Snapshot::default() };
    for (what, snapshot, toml) in [
        ("5,000 endpoints of one service, 100 of them used", &large, ""),
        ("the same, all of them used", &large, "[[upstream]]\nservice = \"*\"\nendpoints_max = 100000\n"),
        (
            "the same, by a hash",
            &large,
            "[[upstream]]\nservice = \"*\"\npolicy = \"consistent_hash\"\nhash_on = \"path\"\n",
        ),
        ("5 endpoints of each of 1,000 services", &many, ""),
    ] {
        let maker = Maker::new(toml);
        let start = maker.clock.now();
        let mut table = maker.next_of(&LiveTable::default(), snapshot);
        let first = maker.clock.now() - start;
        let start = maker.clock.now();
        for _ in 0..ROUNDS {
            table = maker.next_of(&table, snapshot);
        }
        println!(
            "{what}: the first table {first:?}, each later one {:?}",
            (maker.clock.now() - start) / ROUNDS
        );
    }
}
