//! What a catalogue notes down, and what another makes of it after a restart: verified anew,
//! suspect until heard, and never older than what was known before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use starling_gossip::catalogue::Rejected;
use starling_gossip::clock::WallTime;
use starling_gossip::limits::INSTANCES_PER_OWNER_MAX;
use starling_gossip::memory::{self, RememberedOwner};
use starling_gossip::publisher::{Publisher, Said};
use starling_gossip::record::{Owner, Renewal};
use starling_gossip::revocation::Revocations;
use starling_gossip::snapshot::Presence;
use starling_gossip::svid::{ChainError, TrustBundle};

use crate::authority::{Authority, KeyKind, VALIDITY, WALL};
use crate::watched::{LEASE, RENEW, SUSPECT_AFTER, Watched, instance, label, publisher, records};

const MONTH: Duration = Duration::from_secs(31 * 86_400);
const MOMENT: Duration = Duration::from_millis(1);

/// A catalogue that takes notes, and the disk they end on.
struct Stage {
    authority: Authority,
    watched: Watched,
    disk: BTreeMap<String, Vec<u8>>,
    web: Publisher,
    owner: Owner,
    own: Owner,
}

fn stage() -> Stage {
    let authority = Authority::new();
    let mut watched = Watched::new(authority.bundle());
    let own = publisher(authority.svid("spiffe://acme/svc/own", KeyKind::Ed25519), "own", 1, watched.now);
    watched.catalogue.remember_others_than(own.owner().clone());
    let svid = authority.svid("spiffe://acme/svc/web", KeyKind::P256);
    let mut web = publisher(svid, "web-1", 1_000, watched.now);
    web.set_instance(label("a"), Some(instance("web", 1)));
    web.set_instance(label("b"), Some(instance("web", 2)));
    watched.hear_all(&mut web);
    let owner = web.owner().clone();
    let own = own.owner().clone();
    let mut stage = Stage { authority, watched, disk: BTreeMap::new(), web, owner, own };
    stage.note();
    stage
}

impl Stage {
    fn note(&mut self) {
        for entry in self.watched.catalogue.take_notes() {
            match entry.value {
                Some(value) => self.disk.insert(entry.key, value),
                None => self.disk.remove(&entry.key),
            };
        }
    }

    fn renewal(&mut self) -> Renewal {
        self.watched.wait(RENEW);
        self.web.handle_timeout(self.watched.now, || [8; 32]);
        match self.web.poll_said() {
            Some(Said::Renewal(renewal)) => renewal,
            other => panic!("a renewal was due, not {other:?}"),
        }
    }

    fn hear(&mut self) {
        self.watched.hear_all(&mut self.web);
        self.note();
    }

    fn presence(&mut self) -> Option<Presence> {
        self.watched.presence(&self.owner)
    }

    fn other(&self, name: &str) -> Publisher {
        publisher(self.authority.svid("spiffe://acme/svc/web", KeyKind::Ed25519), name, 1, self.watched.now)
    }

    fn remembered(&self) -> RememberedOwner {
        let (owners, misfits) = memory::owners(&self.disk);
        assert_eq!((owners.len(), misfits.len()), (1, 0), "{:?}", self.disk.keys());
        owners.into_iter().next().expect("one")
    }

    /// A catalogue after `down` of nothing, filled from the disk.
    fn restarted(&self, down: Duration) -> Watched {
        let mut next = Watched::new(self.authority.bundle());
        next.catalogue.remember_others_than(self.own.clone());
        next.now = self.watched.now + down;
        next.wall.unix_millis = self.watched.wall.unix_millis + down.as_millis() as u64;
        next.catalogue.restore(&self.remembered(), next.now, next.wall).expect("an honest memory");
        next
    }
}

#[test]
fn a_restart_brings_back_what_was_known_suspect_until_it_is_heard() {
    let mut stage = stage();
    let renewal = stage.renewal();
    stage.watched.renew(&stage.owner, &renewal).expect("the next link");
    stage.note();
    let mut next = stage.restarted(MOMENT);
    assert_eq!(next.catalogue.digest(), stage.watched.catalogue.digest());
    assert_eq!((next.presence(&stage.owner), next.offered()), (Some(Presence::Suspect), 2));
    assert_eq!(next.snapshot().addresses.len(), 1, "it may be dialled");
    assert!(next.catalogue.poll_timeout().is_some_and(|at| at <= next.now + LEASE), "its lease runs");
    let mut disk = stage.disk.clone();
    let notes = next.catalogue.take_notes();
    assert!(!notes.is_empty());
    disk.extend(notes.into_iter().map(|entry| (entry.key, entry.value.expect("kept"))));
    assert_eq!(disk, stage.disk, "a disk that ignores equal values has nothing to do");

    let heard = next.catalogue.heard(&stage.owner, next.now).expect("known");
    assert!(heard.is_remembered && heard.lease_age == MOMENT, "{heard:?}");
    assert_eq!(next.renew(&stage.owner, &renewal), Err(Rejected::Stale), "what was heard before is not news");
    let newer = stage.renewal();
    next.renew(&stage.owner, &newer).expect("the next link");
    assert_eq!(next.presence(&stage.owner), Some(Presence::Alive));
    assert!(!next.catalogue.heard(&stage.owner, next.now).expect("known").is_remembered);
}

/// Restoring somebody (again, by another calendar) must not swallow what others said just before.
#[test]
fn restoring_one_owner_drops_no_notes_about_another() {
    let stage = stage();
    let remembered = stage.remembered();
    let mut next = stage.restarted(MOMENT);
    let mut other = stage.other("web-2");
    other.set_instance(label("c"), Some(instance("web", 1)));
    next.hear_all(&mut other);
    next.catalogue.take_notes();
    other.set_instance(label("c"), None);
    next.hear_all(&mut other);
    let _ = next.catalogue.restore(&remembered, next.now, next.wall);
    let withdrawn = format!("{}/i/c", other.owner().short_name());
    assert!(next.catalogue.take_notes().iter().any(|entry| entry.key == withdrawn));
}

/// Nothing is known of the time before this start, so it explains any leap.
#[test]
fn a_remembered_owner_is_heard_again_however_far_it_went_on_and_whatever_others_forge() {
    let mut stage = stage();
    let first = stage.renewal();
    stage.watched.renew(&stage.owner, &first).expect("the first link");
    stage.note();
    let mut next = stage.restarted(MOMENT);
    let newest = (0..720).map(|_| stage.renewal()).last().expect("720 renewals");
    let forged = Renewal { link: [9; 32], ..newest };
    for _ in 0..3 {
        assert_eq!(next.renew(&stage.owner, &forged), Err(Rejected::BadRenewal));
    }
    next.renew(&stage.owner, &newest).expect("the true one");
    assert_eq!(next.presence(&stage.owner), Some(Presence::Alive));
    let leap = Renewal { counter: newest.counter + 700, ..forged };
    assert_eq!(next.renew(&stage.owner, &leap), Err(Rejected::BadRenewal));
    assert_eq!(next.renew(&stage.owner, &leap), Err(Rejected::Implausible), "heard once, time explains");
}

/// A rotation, or an edited list, while the calendar is a month ahead or behind.
#[test]
fn another_bundle_during_a_leap_of_the_calendar_makes_nobody_forgotten_but_strangers() {
    let mut stage = stage();
    let month = MONTH.as_millis() as u64;
    let right = stage.watched.wall;
    for leapt in [right.unix_millis + 2 * month, right.unix_millis - 2 * month] {
        let wall = WallTime { unix_millis: leapt };
        stage.watched.catalogue.set_bundle(stage.authority.bundle(), wall);
        stage.note();
        assert_eq!((stage.presence(), stage.disk.len()), (Some(Presence::Alive), 4));
    }
    let wall = WallTime { unix_millis: right.unix_millis + 2 * month };
    let list = Revocations::parse(b"spiffe://acme/svc/web").expect("a list");
    let bundle = TrustBundle::from_pem("acme".parse().expect("a domain"), stage.authority.pem.as_bytes());
    let mut revoking = stage.restarted(MOMENT);
    revoking.catalogue.set_bundle(Arc::new(bundle.expect("a bundle").without(list)), wall);
    assert_eq!(revoking.presence(&stage.owner), None, "who is revoked is forgotten by any calendar");
    stage.watched.catalogue.set_bundle(Authority::new().bundle(), wall);
    stage.note();
    assert_eq!((stage.presence(), stage.disk.len()), (None, 0), "and so are strangers");
}

#[test]
fn a_silent_member_expires_one_lease_after_the_restart() {
    let stage = stage();
    let mut next = stage.restarted(MONTH / 2);
    let heard = next.catalogue.heard(&stage.owner, next.now).expect("known");
    assert_eq!(heard.lease_age, MONTH / 2, "the time it was down counts, for people");
    next.wait(LEASE - MOMENT);
    assert_eq!(next.presence(&stage.owner), Some(Presence::Suspect));
    next.wait(MOMENT);
    assert_eq!((next.presence(&stage.owner), next.offered()), (Some(Presence::Expired), 0));
}

#[test]
fn who_had_expired_or_left_does_not_come_back_by_a_restart() {
    let mut expired = stage();
    expired.watched.wait(LEASE);
    expired.note();
    let mut next = expired.restarted(MOMENT);
    assert_eq!((next.presence(&expired.owner), next.offered()), (Some(Presence::Expired), 0));
    let renewal = expired.renewal();
    next.renew(&expired.owner, &renewal).expect("it was only cut off");
    assert_eq!((next.presence(&expired.owner), next.offered()), (Some(Presence::Alive), 2));

    let mut left = stage();
    left.web.leave();
    left.hear();
    assert!(!left.disk.keys().any(|key| key.contains("/i/")), "{:?}", left.disk.keys());
    assert_eq!(left.restarted(MOMENT).presence(&left.owner), Some(Presence::Left));
}

/// The point of remembering versions: old words, honestly signed, are refused after a restart.
#[test]
fn nothing_older_than_what_was_known_is_believed_after_a_restart() {
    let mut stage = stage();
    let mut old = Vec::new();
    stage.web.set_instance(label("a"), Some(instance("web", 50)));
    old.extend(records(&mut stage.web));
    let old_renewal = stage.renewal();
    stage.web.set_instance(label("a"), None);
    stage.web.set_instance(label("b"), Some(instance("web", 60)));
    stage.hear();
    let newer_renewal = stage.renewal();
    stage.watched.renew(&stage.owner, &newer_renewal).expect("a later link");
    stage.note();
    let mut next = stage.restarted(MOMENT);
    for record in &old {
        assert_eq!(next.apply(record), Err(Rejected::Stale));
    }
    assert_eq!(next.renew(&stage.owner, &old_renewal), Err(Rejected::Stale));
    assert_eq!((next.presence(&stage.owner), next.offered()), (Some(Presence::Suspect), 1));
}

#[test]
fn a_new_life_and_a_forgotten_owner_leave_nothing_behind_on_disk() {
    let mut stage = stage();
    assert_eq!(stage.disk.len(), 4, "{:?}", stage.disk.keys());
    let svid = stage.authority.svid("spiffe://acme/svc/web", KeyKind::P256);
    stage.web = publisher(svid, "web-1", 2_000, stage.watched.now);
    stage.hear();
    assert_eq!(stage.disk.len(), 2, "the instances of the earlier life are gone: {:?}", stage.disk.keys());
    stage.web.leave();
    stage.hear();
    stage.watched.wait(Duration::from_secs(VALIDITY.whole_seconds() as u64 + 1));
    stage.note();
    assert!(stage.disk.is_empty(), "{:?}", stage.disk.keys());
}

#[test]
fn what_lies_on_disk_is_verified_like_anything_else() {
    let stage = stage();
    let mut next = Watched::new(stage.authority.bundle());
    let whole = stage.remembered();
    let mut restore = |spoil: &dyn Fn(&mut RememberedOwner), wall: WallTime| {
        let mut spoilt = whole.clone();
        spoil(&mut spoilt);
        let refused = next.catalogue.restore(&spoilt, next.now, wall).expect_err("spoilt");
        assert_eq!(next.snapshot().members.len(), 0);
        refused
    };
    let flipped = |owner: &mut RememberedOwner| owner.node[10] ^= 1;
    assert_eq!(restore(&flipped, WALL), Rejected::BadSignature);
    assert!(matches!(restore(&|owner| owner.node.clear(), WALL), Rejected::Unreadable(_)));
    assert_eq!(restore(&|owner| owner.name = "0123456789abcdef".to_owned(), WALL), Rejected::WrongName);
    let instance = |owner: &mut RememberedOwner| owner.node = owner.instances["a"].clone();
    assert_eq!(restore(&instance, WALL), Rejected::WrongName);
    let month_back = restore(&|_| (), WALL.earlier(MONTH));
    assert!(matches!(month_back, Rejected::Chain(ChainError::NotValidNow(_))), "{month_back:?}");

    let mut one_spoilt = whole.clone();
    let mut next = Watched::new(stage.authority.bundle());
    one_spoilt.instances.get_mut("a").expect("there")[10] ^= 1;
    next.catalogue.restore(&one_spoilt, next.now, WALL).expect("the others stand");
    assert_eq!(next.offered(), 1);
}

/// A calendar that leaps forward by a month and back must not make anybody forget what has gone.
#[test]
fn a_leap_of_the_calendar_forgets_no_version() {
    let mut stage = stage();
    let mut old = stage.other("web-2");
    let old = records(&mut old);
    let mut second = stage.other("web-2");
    second.leave();
    let second_owner = second.owner().clone();
    stage.watched.hear_all(&mut second);
    assert_eq!(stage.watched.presence(&second_owner), Some(Presence::Left));

    let right = stage.watched.wall;
    stage.watched.wall.unix_millis += MONTH.as_millis() as u64;
    stage.watched.wait(SUSPECT_AFTER);
    assert_eq!(stage.presence(), Some(Presence::Suspect), "nor is a present member dropped");
    stage.watched.wall = right;
    stage.watched.wait(MOMENT);
    for record in &old {
        assert_eq!(stage.watched.apply(record), Err(Rejected::Stale));
    }
}

/// An owner that claims the end of time locks out its own lives, and nobody else.
#[test]
fn a_far_future_incarnation_concerns_its_owner_alone() {
    let mut stage = stage();
    let svid = stage.authority.svid("spiffe://acme/svc/web", KeyKind::Ed25519);
    let mut liar = publisher(svid, "web-2", u64::MAX, stage.watched.now);
    for id in 0..INSTANCES_PER_OWNER_MAX {
        liar.set_instance(label(&format!("{id}")), Some(instance("web", 1)));
    }
    stage.watched.hear_all(&mut liar);
    liar.outlive(u64::MAX, [1; 32]);
    stage.web.set_instance(label("a"), Some(instance("web", 99)));
    stage.hear();
    let renewal = stage.renewal();
    stage.watched.renew(&stage.owner, &renewal).expect("the other replica is heard");
    let svid = stage.authority.svid("spiffe://acme/svc/web", KeyKind::P256);
    stage.web = publisher(svid, "web-1", 2_000, stage.watched.now);
    stage.hear();
    let record = stage.watched.snapshot().members[&stage.owner].record.clone();
    assert_eq!(record.version.incarnation, 2_000, "an ordinary next life is believed");
}
