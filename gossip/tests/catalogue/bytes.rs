//! A stranger's bytes never panic, whatever they are, and never become visible.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use starling_gossip::codec;
use starling_gossip::record::{Record, Renewal};
use starling_gossip::signature::SealedRecord;

use crate::authority::{Authority, KeyKind};
use crate::watched::{Watched, instance, label, publisher, records};

struct Fixture {
    authority: Authority,
    /// A node record and an instance record, sealed.
    honest: Vec<Vec<u8>>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let authority = Authority::new();
    let svid = authority.svid("spiffe://acme/svc/web", KeyKind::Ed25519);
    let mut web = publisher(svid, "web-1", 1, starling_gossip::clock::Instant::now());
    web.set_instance(label("a"), Some(instance("web", 1)));
    Fixture { authority, honest: records(&mut web) }
});

fn offer(bytes: &[u8]) {
    let mut watched = Watched::new(FIXTURE.authority.bundle());
    let nothing = watched.view();
    let _ = watched.apply(bytes);
    let _ = watched.catalogue.apply_filed("0123456789abcdef", bytes, watched.now, watched.wall);
    assert_eq!(watched.view(), nothing);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..600), format in 0..3_u8) {
        let _ = codec::decode::<Record, 16384>(&bytes);
        let _ = codec::decode::<Renewal, 64>(&bytes);
        let sealed = [&[format], bytes.as_slice()].concat();
        if let Ok(sealed) = SealedRecord::from_bytes(&sealed) {
            let _ = sealed.unverified();
        }
        offer(&sealed);
        offer(&bytes);
    }

    #[test]
    fn damaged_records_never_panic_and_never_show(
        which in any::<Index>(), cut in any::<Index>(), splice in vec(any::<u8>(), 1..40),
    ) {
        let mut bytes = which.get(&FIXTURE.honest).clone();
        let at = cut.index(bytes.len());
        let honest = bytes.clone();
        let end = (at + splice.len()).min(bytes.len());
        bytes.splice(at..end, splice);
        prop_assume!(bytes != honest);
        offer(&bytes);
    }
}
