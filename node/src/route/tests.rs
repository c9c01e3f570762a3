use std::collections::BTreeMap;

use starling_gossip::clock::Clock;
use starling_gossip::record::{Lease, NodeRecord, Version};

use super::*;

/// An instance of `web` at `node`, healthy, near and sure unless `change` says otherwise.
pub(crate) fn offered(
    node: &str,
    change: impl FnOnce(&mut ServiceInstance, &mut Instance, &mut NodeRecord),
) -> ServiceInstance {
    let owner = owner(node);
    let mut instance = Instance {
        service: "web".parse().expect("a name"),
        protocol: Protocol::Http,
        version: None,
        tags: BTreeMap::new(),
        weight: 100,
        health: Health::Healthy,
        since_unix_millis: 0,
    };
    let mut record = NodeRecord {
        owner: owner.clone(),
        version: Version { incarnation: 1, version: 1 },
        addresses: vec![SocketAddr::from(([10, 0, 0, 1], 7400))],
        locality: Locality::default(),
        capabilities: Vec::new(),
        program: "starling/test".parse().expect("a label"),
        chain: Vec::new(),
        lease: Lease { length_millis: 1000, renew_millis: 100, anchor: [0; 32] },
        continues: None,
        left: false,
    };
    let mut offered = ServiceInstance {
        owner,
        id: "web".parse().expect("a label"),
        instance: Arc::new(instance.clone()),
        node: Arc::new(record.clone()),
        presence: Presence::Alive,
        learned_at: Clock::System.now(),
    };
    change(&mut offered, &mut instance, &mut record);
    ServiceInstance { instance: Arc::new(instance), node: Arc::new(record), ..offered }
}

/// One of the service's.
pub(crate) fn owner(node: &str) -> Owner {
    Owner {
        identity: "spiffe://acme/svc/web".parse().expect("an identity"),
        node: node.parse().expect("a name"),
    }
}

fn plain(node: &str) -> ServiceInstance {
    offered(node, |_, _, _| {})
}

fn route(instances: Vec<ServiceInstance>, here: &Locality) -> Route {
    let service: ServiceName = "web".parse().expect("a name");
    let services = BTreeMap::from([(service.clone(), instances)]);
    let snapshot = Snapshot { generation: 7, services, ..Snapshot::default() };
    let mut table = compute(&snapshot, here);
    assert_eq!(table.generation, 7);
    table.routes.remove(&service).expect("a route")
}

fn nodes(route: &Route) -> Vec<&str> {
    route.candidates.iter().map(|candidate| candidate.target.owner.node.as_str()).collect()
}

#[test]
fn healthy_instances_are_candidates_and_the_others_are_listed_with_their_reason() {
    let found = route(
        vec![
            plain("a"),
            offered("b", |_, instance, _| instance.health = Health::Unhealthy),
            offered("c", |_, instance, _| instance.health = Health::Draining),
            offered("d", |_, instance, _| instance.weight = 0),
            offered("e", |_, instance, _| instance.protocol = Protocol::Tcp),
        ],
        &Locality::default(),
    );
    assert_eq!(nodes(&found), ["a"]);
    let excluded: Vec<_> =
        found.excluded.iter().map(|out| (out.target.owner.node.as_str(), out.reason)).collect();
    let expected = [
        ("b", Exclusion::Unhealthy),
        ("c", Exclusion::Draining),
        ("d", Exclusion::NoWeight),
        ("e", Exclusion::OtherProtocol),
    ];
    assert_eq!(excluded, expected);
}

#[test]
fn the_sure_and_near_come_before_the_doubtful_and_far() {
    let at = |region: &str, zone: &str| Locality {
        region: Some(region.parse().expect("a label")),
        zone: Some(zone.parse().expect("a label")),
        site: None,
    };
    let found = route(
        vec![
            offered("far", |_, _, record| record.locality = at("us", "us-1")),
            offered("suspect", |offered, _, record| {
                record.locality = at("eu", "eu-1");
                offered.presence = Presence::Suspect;
            }),
            offered("region", |_, _, record| record.locality = at("eu", "eu-2")),
            offered("unprobed", |_, instance, record| {
                record.locality = at("eu", "eu-1");
                instance.health = Health::Unknown;
            }),
            offered("near", |_, _, record| record.locality = at("eu", "eu-1")),
        ],
        &at("eu", "eu-1"),
    );
    assert_eq!(nodes(&found), ["near", "region", "far", "suspect", "unprobed"]);
    let distances: Vec<_> = found.candidates.iter().map(|candidate| candidate.rank.distance).collect();
    assert_eq!(distances, [0, 2, 3, 0, 0]);
}

#[test]
fn the_order_of_instances_does_not_matter() {
    let forwards = route(vec![plain("a"), plain("b"), plain("c")], &Locality::default());
    let backwards = route(vec![plain("c"), plain("b"), plain("a")], &Locality::default());
    assert_eq!(nodes(&forwards), nodes(&backwards));
}

#[test]
fn a_service_speaks_what_most_of_its_instances_speak() {
    let tcp = |node: &str| offered(node, |_, instance, _| instance.protocol = Protocol::Tcp);
    let here = Locality::default();
    assert_eq!(route(vec![tcp("a"), tcp("b"), plain("c")], &here).protocol, Protocol::Tcp);
    assert_eq!(route(vec![tcp("a"), plain("c")], &here).protocol, Protocol::Http);
}
