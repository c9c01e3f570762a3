//! What is refused, with which word, and that a refusal changes nothing.

use starling_gossip::clock::WallTime;
use starling_gossip::limits::{RECORD_BYTES_MAX, TAGS_MAX};
use starling_gossip::record::{Instance, InstanceRecord, NodeRecord, Record, Version};
use starling_gossip::signature::SealedRecord;
use time::Duration;

use crate::authority::{Authority, KeyKind, VALIDITY, WALL, new_key};
use crate::watched::{Watched, instance, label, publisher, records};

const WEB: &str = "spiffe://acme/svc/web";
const PAY: &str = "spiffe://acme/svc/pay";

/// A catalogue that knows `web-1` with one instance, and what `web-1` would say next.
struct Bench {
    authority: Authority,
    watched: Watched,
    svid: std::sync::Arc<starling_gossip::svid::Svid>,
    /// All that was said so far, oldest first.
    said: Vec<Vec<u8>>,
    node: NodeRecord,
    instance: InstanceRecord,
}

fn bench(kind: KeyKind) -> Bench {
    let authority = Authority::new();
    let mut watched = Watched::new(authority.bundle());
    let svid = authority.svid(WEB, kind);
    let mut web = publisher(svid.clone(), "web-1", 1_000, watched.now);
    web.set_instance(label("a"), Some(instance("web", 1)));
    web.set_instance(label("a"), Some(instance("web", 2)));
    let said = records(&mut web);
    for record in &said {
        watched.apply(record).expect("an honest word");
    }
    let (Record::Node(node), Record::Instance(instance)) = (open(&said[0]), open(&said[2])) else {
        panic!("a node record first, then instances");
    };
    let next = Version { version: 1 << 40, ..node.version };
    let node = NodeRecord { version: next, ..node };
    let instance = InstanceRecord { version: next, ..instance };
    Bench { authority, watched, svid, said, node, instance }
}

fn open(bytes: &[u8]) -> Record {
    SealedRecord::from_bytes(bytes).and_then(|sealed| sealed.unverified()).expect("a record")
}

impl Bench {
    fn seal(&self, record: Record) -> Vec<u8> {
        SealedRecord::seal(&record, &self.svid).to_bytes()
    }

    fn seal_node(&self, change: impl FnOnce(&mut NodeRecord)) -> Vec<u8> {
        let mut node = self.node.clone();
        change(&mut node);
        self.seal(Record::Node(node))
    }

    fn seal_instance(&self, change: impl FnOnce(&mut Instance)) -> Vec<u8> {
        let mut record = self.instance.clone();
        change(record.instance.as_mut().expect("it is announced"));
        self.seal(Record::Instance(record))
    }

    #[track_caller]
    fn refuses(&mut self, what: &str, record: &[u8], reason: &str) {
        let before = self.watched.view();
        let refused = self.watched.apply(record);
        let word = refused.as_ref().map_err(|rejected| rejected.reason());
        assert_eq!(word, Err(reason), "{what}: {refused:?}");
        assert_eq!(self.watched.view(), before, "{what}");
        assert!(self.watched.catalogue.poll_snapshot().is_none(), "{what} made news");
    }
}

#[test]
fn an_honest_next_record_is_taken() {
    for kind in [KeyKind::P256, KeyKind::Ed25519] {
        let mut bench = bench(kind);
        let node = bench.seal_node(|_| ());
        let instance = bench.seal_instance(|it| it.weight = 3);
        bench.watched.apply(&node).expect("the node's next");
        bench.watched.apply(&instance).expect("the instance's next");
    }
}

#[test]
fn an_instance_record_is_refused_for() {
    let mut bench = bench(KeyKind::P256);
    for record in bench.said.clone() {
        bench.refuses("a replay", &record, "stale");
    }
    let other_service = bench.seal_instance(|it| it.service = "pay".parse().expect("a name"));
    bench.refuses("a service of somebody else's", &other_service, "may_not_announce");
    let too_many_tags = bench.seal_instance(|it| {
        it.tags = (0..=TAGS_MAX).map(|n| (label(&format!("t{n}")), label("x"))).collect()
    });
    bench.refuses("too many tags", &too_many_tags, "bound");
    let earlier_life =
        InstanceRecord { version: Version { incarnation: 999, version: 50 }, ..bench.instance.clone() };
    let earlier_life = bench.seal(Record::Instance(earlier_life));
    bench.refuses("an earlier life", &earlier_life, "stale");

    let thief = bench.authority.svid(WEB, KeyKind::P256);
    let forged = SealedRecord::seal(&Record::Instance(bench.instance.clone()), &thief).to_bytes();
    bench.refuses("a replica's key", &forged, "bad_signature");
    let stranger = bench.authority.svid(PAY, KeyKind::Ed25519);
    let forged = SealedRecord::seal(&Record::Instance(bench.instance.clone()), &stranger).to_bytes();
    bench.refuses("another member's key of another kind", &forged, "bad_signature");

    let mut oversized = bench.seal_instance(|_| ());
    oversized.resize(RECORD_BYTES_MAX + 1, 0);
    bench.refuses("more bytes than a record may have", &oversized, "unreadable");
    let mut trailing = bench.seal_instance(|_| ());
    trailing.push(0);
    bench.refuses("a byte too many", &trailing, "unreadable");
    let mut other_format = bench.seal_instance(|_| ());
    other_format[0] = 2;
    bench.refuses("another format", &other_format, "unreadable");
    bench.refuses("nothing", &[], "unreadable");
}

#[test]
fn a_node_record_is_refused_for_its_bounds() {
    let mut bench = bench(KeyKind::Ed25519);
    let leaf = bench.node.chain[0].clone();
    let address = bench.node.addresses[0];
    let cases: [(&str, Vec<u8>); 8] = [
        ("no address", bench.seal_node(|node| node.addresses.clear())),
        ("addresses", bench.seal_node(|node| node.addresses = vec![address; 9])),
        ("capabilities", bench.seal_node(|node| node.capabilities = vec![label("x"); 17])),
        ("no chain", bench.seal_node(|node| node.chain.clear())),
        ("a long chain", bench.seal_node(|node| node.chain = vec![leaf; 5])),
        ("a long lease", bench.seal_node(|node| node.lease.length_millis = u32::MAX)),
        ("a short lease", bench.seal_node(|node| node.lease.length_millis = 1)),
        ("a lease never renewed", bench.seal_node(|node| node.lease.renew_millis = 0)),
    ];
    for (what, record) in cases {
        bench.refuses(what, &record, "bound");
    }
}

#[test]
fn a_node_record_is_refused_for_its_chain() {
    let mut bench = bench(KeyKind::P256);
    let key = new_key(KeyKind::P256);
    let chain = |bench: &Bench, uris: &[&str], end: Duration| {
        let leaf = bench.authority.certificate(uris, &key, end);
        bench.seal_node(|node| node.chain = vec![leaf.to_vec()])
    };
    let expired = chain(&bench, &[WEB], Duration::hours(-1));
    bench.refuses("a certificate that has ended", &expired, "expired");
    let two = chain(&bench, &[WEB, PAY], VALIDITY);
    bench.refuses("two URIs", &two, "chain");
    let none = chain(&bench, &[], VALIDITY);
    bench.refuses("no URI", &none, "chain");
    let not_spiffe = chain(&bench, &["https://acme/svc/web"], VALIDITY);
    bench.refuses("a URI that is no SPIFFE ID", &not_spiffe, "chain");
    let foreign = chain(&bench, &["spiffe://elsewhere/svc/web"], VALIDITY);
    bench.refuses("another trust domain", &foreign, "chain");
    let of_another = chain(&bench, &[PAY], VALIDITY);
    bench.refuses("the chain of another identity", &of_another, "wrong_name");
    let of_a_replica = chain(&bench, &[WEB], VALIDITY);
    bench.refuses("the chain of another key", &of_a_replica, "bad_signature");

    let stranger = Authority::new().certificate(&[WEB], &key, VALIDITY);
    let untrusted = bench.seal_node(|node| node.chain = vec![stranger.to_vec()]);
    bench.refuses("a root nobody believes", &untrusted, "chain");
    let rubbish = bench.seal_node(|node| node.chain = vec![vec![0x30; 64]]);
    bench.refuses("a chain of rubbish", &rubbish, "chain");
}

#[test]
fn a_record_judged_by_another_calendar_is_refused_as_expired() {
    for seconds in [WALL.unix_seconds() - 2 * 86_400, WALL.unix_seconds() + 31 * 86_400] {
        let mut bench = bench(KeyKind::Ed25519);
        bench.watched.wall = WallTime { unix_millis: seconds * 1000 };
        let node = bench.seal_node(|_| ());
        bench.refuses("outside the validity", &node, "expired");
    }
}

#[test]
fn a_record_filed_under_another_name_is_refused() {
    let mut bench = bench(KeyKind::Ed25519);
    let (now, wall) = (bench.watched.now, bench.watched.wall);
    let own_name = bench.node.owner.short_name();
    for record in [bench.seal_node(|_| ()), bench.seal_instance(|it| it.weight = 9)] {
        let before = bench.watched.view();
        let refused = bench.watched.catalogue.apply_filed("0123456789abcdef", &record, now, wall);
        assert_eq!(refused.expect_err("another's map").reason(), "wrong_name");
        assert_eq!(bench.watched.view(), before);
        bench.watched.catalogue.apply_filed(&own_name, &record, now, wall).expect("its own map");
    }
}

#[test]
fn a_renewal_of_nobody_known_is_refused() {
    let mut bench = bench(KeyKind::Ed25519);
    let renewal = starling_gossip::record::Renewal { incarnation: 1, counter: 1, link: [0; 32] };
    let refused =
        bench.watched.catalogue.apply_renewal("0123456789abcdef", &renewal, bench.watched.now, WALL);
    assert_eq!(refused.expect_err("nobody").reason(), "unknown_owner");
}

#[test]
fn no_altered_byte_of_a_record_is_ever_believed() {
    for kind in [KeyKind::P256, KeyKind::Ed25519] {
        let mut bench = bench(kind);
        let before = bench.watched.view();
        for record in [bench.seal_node(|_| ()), bench.seal_instance(|it| it.weight = 9)] {
            for at in 0..record.len() {
                let mut altered = record.clone();
                altered[at] ^= 1 << (at % 8);
                // An altered owner or life may wait for a node record, unseen; nothing more.
                let applied = bench.watched.apply(&altered);
                assert_ne!(applied, Ok(starling_gossip::catalogue::Applied::Accepted), "byte {at}");
                assert_eq!(bench.watched.view(), before, "byte {at}");
            }
        }
    }
}
