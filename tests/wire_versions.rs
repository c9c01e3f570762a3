//! What earlier versions wrote is read, and means what it meant.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use starling_gossip::catalogue::{Applied, Catalogue, Rejected};
use starling_gossip::clock::{Clock, WallTime};
use starling_gossip::codec;
use starling_gossip::record::{Health, Protocol, Record, Renewal};
use starling_gossip::signature::{SealedRecord, UnsealError};
use starling_gossip::svid::TrustBundle;
use starling_transport::header::{Answer, PREAMBLE_BYTES, Preamble, RefusalReason, StreamHeader, StreamKind};

/// Within the validity of the fixtures' certificates: 2026-01-01.
const WALL: WallTime = WallTime { unix_millis: 1_767_225_600_000 };

fn fixture(name: &str) -> Vec<u8> {
    fixture_of("wire-1", name)
}

fn fixture_of(directory: &str, name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(directory).join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn catalogue() -> Catalogue {
    let bundle = TrustBundle::from_pem("acme".parse().expect("a domain"), &fixture("ca.crt"));
    Catalogue::new(Arc::new(bundle.expect("a bundle")))
}

fn owner_name(bytes: &[u8]) -> String {
    let record = SealedRecord::from_bytes(bytes).expect("sealed").unverified().expect("a record");
    record.owner().short_name()
}

#[test]
fn the_life_of_an_owner_is_read_and_believed() {
    for (who, service) in [("web", "web"), ("cart", "cart.shop")] {
        let mut catalogue = catalogue();
        let now = Clock::System.now();
        let introduced = fixture(&format!("{who}-0-introduced"));
        let name = owner_name(&introduced);
        assert_eq!(catalogue.apply_filed(&name, &introduced, now, WALL), Ok(Applied::Accepted), "{who}");
        for (file, health) in [("1-unknown", Health::Unknown), ("2-healthy", Health::Healthy)] {
            let sealed = fixture(&format!("{who}-{file}"));
            assert_eq!(catalogue.apply_filed(&name, &sealed, now, WALL), Ok(Applied::Accepted), "{file}");
            let snapshot = catalogue.poll_snapshot().expect("a change");
            let instances = snapshot.services.get(service).expect("announced");
            let instance = &instances.first().expect("one").instance;
            assert_eq!((instance.health, instance.protocol), (health, Protocol::Http));
            assert_eq!((instance.weight, instance.tags.len()), (100, 1));
        }
        let renewal: Renewal =
            codec::decode::<_, 64>(&fixture(&format!("{who}-3-renewal"))).expect("a renewal");
        assert_eq!((renewal.incarnation, renewal.counter), (WALL.unix_millis, 1));
        assert_eq!(catalogue.apply_renewal(&name, &renewal, now, WALL), Ok(()));
        for file in ["4-withdrawn", "5-left"] {
            let sealed = fixture(&format!("{who}-{file}"));
            assert_eq!(catalogue.apply_filed(&name, &sealed, now, WALL), Ok(Applied::Accepted), "{file}");
            let snapshot = catalogue.poll_snapshot().expect("a change");
            assert!(snapshot.services.get(service).is_none_or(|instances| instances.is_empty()));
        }
    }
}

#[test]
fn a_record_of_a_later_version_is_refused_by_name() {
    let mut later = fixture("web-0-introduced");
    later[0] = 200;
    let refused = catalogue().apply(&later, Clock::System.now(), WALL);
    assert_eq!(refused, Err(Rejected::Unreadable(UnsealError::Format(200))));
    // The version is signed as well: nobody passes one off as another.
    let sealed = SealedRecord::from_bytes(&fixture("web-0-introduced")).expect("sealed");
    assert!(matches!(sealed.unverified(), Ok(Record::Node(_))));
}

#[test]
fn headers_and_answers_mean_what_they_meant() {
    let read_of = |directory: &str, name: &str| {
        let bytes = fixture_of(directory, name);
        let (first, body) = bytes.split_first_chunk::<PREAMBLE_BYTES>().expect("a preamble");
        let preamble = Preamble::decode(*first).expect("a version that is read");
        assert_eq!(preamble.body_bytes(), body.len(), "{name}");
        (preamble, body.to_vec())
    };
    let header_of = |directory: &str, name: &str| {
        let (preamble, body) = read_of(directory, name);
        StreamHeader::decode(preamble, &body).expect(name).kind
    };
    let header = |name: &str| header_of("wire-1", name);
    let (cart, web) = ("cart.shop".parse().expect("a name"), || "web".parse().expect("a name"));
    let instance = || "cart-1".to_owned();
    assert_eq!(header("header-gossip"), StreamKind::Gossip);
    assert_eq!(header("header-welcome"), StreamKind::Welcome);
    assert_eq!(header("header-goodbye"), StreamKind::Goodbye);
    assert_eq!(header("header-tcp"), StreamKind::Tcp { service: cart, instance: instance() });
    assert_eq!(header("header-http1"), StreamKind::Http1 { service: web(), instance: instance() });
    assert_eq!(header("header-http2"), StreamKind::Http2 { service: web(), instance: instance() });
    let header = |name: &str| header_of("messages-1", name);
    assert_eq!(
        header("header-http1-messages"),
        StreamKind::Http1Messages { service: web(), instance: instance() }
    );
    assert_eq!(
        header("header-http2-messages"),
        StreamKind::Http2Messages { service: web(), instance: instance() }
    );
    let answer = |name: &str| {
        let (preamble, body) = read_of("wire-1", name);
        Answer::decode(preamble, &body).expect(name)
    };
    assert_eq!(answer("answer-accepted"), Answer::Accepted);
    let Answer::Refused(refusal) = answer("answer-refused") else { panic!("a refusal") };
    assert_eq!(refusal.reason, RefusalReason::NoSuchInstance);
}
