//! A bundle that remembers what it proved judges like one that does not.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::WallTime;
use starling_gossip::revocation::Revocations;
use starling_gossip::svid::{ChainError, Svid, TrustBundle, Usage, VerifiedIdentity};

use crate::authority::{Authority, KeyKind, WALL};
use crate::watched::{Watched, instance, label, publisher, records};

const DAY: Duration = Duration::from_secs(86_400);

fn remembering(authority: &Authority) -> TrustBundle {
    let domain = "acme".parse().expect("a domain");
    TrustBundle::from_pem(domain, authority.pem.as_bytes()).expect("a bundle").remembering(64)
}

fn judge(bundle: &TrustBundle, svid: &Svid, wall: WallTime) -> Result<VerifiedIdentity, ChainError> {
    bundle.verify(svid.chain(), Usage::Client, wall)
}

#[test]
fn the_calendar_and_revocation_are_judged_each_time() {
    let authority = Authority::new();
    let svid = authority.svid("spiffe://acme/svc/web", KeyKind::P256);
    let stranger = Authority::new().svid("spiffe://acme/svc/web", KeyKind::P256);
    let (plain, bundle) = (authority.bundle(), remembering(&authority));
    let at = |days: u64| WallTime { unix_millis: WALL.unix_millis + days * DAY.as_millis() as u64 };
    let early = WallTime { unix_millis: WALL.unix_millis - 2 * DAY.as_millis() as u64 };
    for wall in [at(0), at(29), at(31), early, at(0), WallTime { unix_millis: 0 }, at(1)] {
        assert_eq!(judge(&bundle, &svid, wall), judge(&plain, &svid, wall), "{wall:?}");
        assert_eq!(judge(&bundle, &stranger, wall), judge(&plain, &stranger, wall), "{wall:?}");
    }
    assert!(judge(&bundle, &svid, at(0)).is_ok());
    let list = Revocations::parse(b"spiffe://acme/svc/web").expect("a list");
    let refused = judge(&bundle.without(list), &svid, at(0));
    assert_eq!(refused, Err(ChainError::Revoked(svid.id().clone())), "whatever was proved before");
}

#[test]
fn catalogues_that_share_a_memory_refuse_forgeries_all_the_same() {
    let authority = Authority::new();
    let bundle = Arc::new(remembering(&authority));
    let mut first = Watched::new(bundle.clone());
    let svid = authority.svid("spiffe://acme/svc/web", KeyKind::Ed25519);
    let mut web = publisher(svid, "web-1", 1_000, first.now);
    web.set_instance(label("a"), Some(instance("web", 1)));
    let sealed = records(&mut web);
    for record in &sealed {
        first.apply(record).expect("its owner's word");
    }
    let mut second = Watched::new(bundle);
    for record in &sealed {
        let mut forged = record.clone();
        // A byte of the signature, after the format's.
        forged[1] ^= 1;
        assert!(second.apply(&forged).is_err());
        second.apply(record).expect("its owner's word");
    }
    assert_eq!(first.catalogue.digest(), second.catalogue.digest());
}
