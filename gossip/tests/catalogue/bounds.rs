//! Floods: the shelf of waiting records, owners of one identity, instances of one owner.

use starling_gossip::limits::{INSTANCES_PER_OWNER_MAX, OWNERS_PER_IDENTITY_MAX, WAITING_RECORDS_MAX};

use crate::authority::{Authority, KeyKind};
use crate::watched::{LEASE, Watched, instance, label, publisher, records};

const WEB: &str = "spiffe://acme/svc/web";

#[test]
fn an_owner_may_announce_so_many_instances_and_change_each_of_them() {
    let authority = Authority::new();
    let mut watched = Watched::new(authority.bundle());
    let mut web = publisher(authority.svid(WEB, KeyKind::Ed25519), "web-1", 1, watched.now);
    for id in 0..INSTANCES_PER_OWNER_MAX {
        web.set_instance(label(&format!("i{id}")), Some(instance("web", 1)));
    }
    watched.hear_all(&mut web);
    assert_eq!(watched.offered(), INSTANCES_PER_OWNER_MAX);

    web.set_instance(label("one-more"), Some(instance("web", 1)));
    let before = watched.view();
    let refused = watched.apply(&records(&mut web)[0]).expect_err("too many");
    assert_eq!(refused.reason(), "full");
    assert_eq!(watched.view(), before);

    web.set_instance(label("i0"), Some(instance("web", 2)));
    watched.hear_all(&mut web);
    assert_ne!(watched.view().instances, before.instances, "those there may change");
}

#[test]
fn the_shelf_of_waiting_records_pushes_out_its_oldest() {
    let authority = Authority::new();
    let mut watched = Watched::new(authority.bundle());
    let mut early = publisher(authority.svid(WEB, KeyKind::P256), "web-1", 1, watched.now);
    early.set_instance(label("a"), Some(instance("web", 1)));
    let early = records(&mut early);
    watched.apply(&early[1]).expect("it waits");

    let mut flood = publisher(authority.svid(WEB, KeyKind::Ed25519), "web-2", 1, watched.now);
    for weight in 0..WAITING_RECORDS_MAX as u16 {
        flood.set_instance(label("a"), Some(instance("web", weight)));
    }
    let flood = records(&mut flood);
    for record in &flood[1..] {
        watched.apply(record).expect("it waits");
    }
    assert_eq!(watched.offered(), 0, "what waits is unseen");

    watched.apply(&early[0]).expect("a node record");
    assert_eq!(watched.offered(), 0, "its instance was pushed out");
    watched.apply(&early[1]).expect("offered again");
    watched.apply(&flood[0]).expect("a node record");
    assert_eq!(watched.offered(), 2, "of the flood only the newest remains");
}

#[test]
fn one_identity_fills_only_its_share_and_its_departed_make_room() {
    let authority = Authority::new();
    let mut watched = Watched::new(authority.bundle());
    let svid = authority.svid(WEB, KeyKind::Ed25519);
    let introduce = |watched: &mut Watched, name: &str| {
        let mut one = publisher(svid.clone(), name, 1, watched.now);
        watched.apply(&records(&mut one)[0]).map(drop)
    };
    for index in 0..OWNERS_PER_IDENTITY_MAX {
        introduce(&mut watched, &format!("web-{index}")).expect("within the share");
    }
    let before = watched.view();
    let refused = introduce(&mut watched, "one-more").expect_err("over the share");
    assert_eq!(refused.reason(), "full");
    assert_eq!(watched.view(), before);

    let pay = authority.svid("spiffe://acme/svc/pay", KeyKind::P256);
    let mut other = publisher(pay, "pay-1", 1, watched.now);
    watched.hear_all(&mut other);

    watched.wait(LEASE);
    introduce(&mut watched, "one-more").expect("pods come and go under new names");
    assert_eq!(watched.snapshot().members.len(), OWNERS_PER_IDENTITY_MAX + 1);
}
