//! Presence: suspicion, the end of a lease, revival, and what stays final.

use std::time::Duration;

use starling_gossip::catalogue::Rejected;
use starling_gossip::clock::WallTime;
use starling_gossip::limits::{DEPARTED_SHOWN, RENEWAL_LEAP_PERIOD};
use starling_gossip::publisher::{Publisher, Said};
use starling_gossip::record::{Owner, Renewal};
use starling_gossip::snapshot::Presence;

use crate::authority::{Authority, KeyKind, VALIDITY, WALL};
use crate::watched::{LEASE, RENEW, SUSPECT_AFTER, Watched, instance, label, publisher, records};

const MOMENT: Duration = Duration::from_millis(1);

struct Stage {
    authority: Authority,
    watched: Watched,
    web: Publisher,
    owner: Owner,
}

/// A node with one instance, known to a catalogue.
fn stage() -> Stage {
    let authority = Authority::new();
    let mut watched = Watched::new(authority.bundle());
    let svid = authority.svid("spiffe://acme/svc/web", KeyKind::P256);
    let mut web = publisher(svid, "web-1", 1_000, watched.now);
    web.set_instance(label("a"), Some(instance("web", 1)));
    watched.hear_all(&mut web);
    let owner = web.owner().clone();
    assert_eq!((watched.presence(&owner), watched.offered()), (Some(Presence::Alive), 1));
    Stage { authority, watched, web, owner }
}

impl Stage {
    /// The owner's next renewal; the catalogue's clock goes on to when it is due.
    fn renewal(&mut self) -> Renewal {
        self.watched.wait(RENEW);
        let now = self.watched.now;
        self.web.handle_timeout(now, || [8; 32]);
        match self.web.poll_said() {
            Some(Said::Renewal(renewal)) => renewal,
            other => panic!("a renewal was due, not {other:?}"),
        }
    }

    fn presence(&mut self) -> Option<Presence> {
        self.watched.presence(&self.owner)
    }
}

#[test]
fn silence_makes_a_member_suspect_then_expired_and_never_earlier() {
    let mut stage = stage();
    assert_eq!(stage.watched.catalogue.poll_timeout(), Some(stage.watched.now + SUSPECT_AFTER));
    stage.watched.wait(SUSPECT_AFTER - MOMENT);
    assert_eq!(stage.presence(), Some(Presence::Alive));
    stage.watched.wait(MOMENT);
    assert_eq!(stage.presence(), Some(Presence::Suspect));
    assert_eq!(stage.watched.offered(), 1, "suspicion removes nothing");

    stage.watched.wait(LEASE - SUSPECT_AFTER - MOMENT);
    assert_eq!(stage.presence(), Some(Presence::Suspect));
    stage.watched.wait(MOMENT);
    assert_eq!(stage.presence(), Some(Presence::Expired));
    assert_eq!(stage.watched.offered(), 0);
    assert!(stage.watched.snapshot().addresses.is_empty());
}

#[test]
fn renewals_that_are_late_do_not_make_the_next_ones_later() {
    let mut web = stage().web;
    let begin = web.poll_timeout();
    let renews = |web: &mut Publisher, now| {
        web.handle_timeout(now, || [8; 32]);
        std::iter::from_fn(|| web.poll_said()).count()
    };
    for renewal in 1..=5 {
        assert_eq!(renews(&mut web, begin + RENEW * (renewal - 1) + MOMENT), 1);
        assert_eq!(web.poll_timeout(), begin + RENEW * renewal);
    }
    let late = begin + RENEW * 9;
    assert_eq!(renews(&mut web, late), 1, "one makes up for all that were missed");
    assert_eq!(web.poll_timeout(), late + RENEW);
}

#[test]
fn renewals_keep_a_member_alive_for_as_long_as_they_come() {
    let mut stage = stage();
    for _ in 0..30 {
        let renewal = stage.renewal();
        stage.watched.renew(&stage.owner, &renewal).expect("the next link");
        assert_eq!(stage.presence(), Some(Presence::Alive));
    }
    let heard = stage.watched.catalogue.heard(&stage.owner, stage.watched.now).expect("known");
    assert_eq!((heard.renewals, heard.lease_age), (30, Duration::ZERO));
}

#[test]
fn a_later_renewal_revives_and_brings_back_the_instances_but_a_replay_does_not() {
    let mut stage = stage();
    let first = stage.renewal();
    stage.watched.renew(&stage.owner, &first).expect("the first link");
    let digest = stage.watched.catalogue.digest();
    stage.watched.wait(LEASE);
    assert_eq!((stage.presence(), stage.watched.offered()), (Some(Presence::Expired), 0));

    let replay = stage.watched.renew(&stage.owner, &first).expect_err("a replay");
    assert_eq!(replay.reason(), "stale");
    let guess = Renewal { counter: first.counter + 1, ..first };
    let forged = stage.watched.renew(&stage.owner, &guess).expect_err("a guess");
    assert_eq!(forged.reason(), "bad_renewal");
    let earlier_life = Renewal { incarnation: 999, counter: 7, ..first };
    assert_eq!(stage.watched.renew(&stage.owner, &earlier_life).expect_err("").reason(), "stale");
    assert_eq!(stage.presence(), Some(Presence::Expired));

    let second = stage.renewal();
    stage.watched.renew(&stage.owner, &second).expect("the second link");
    assert_eq!((stage.presence(), stage.watched.offered()), (Some(Presence::Alive), 1));
    assert_eq!(stage.watched.catalogue.digest(), digest);
}

#[test]
fn an_owner_that_leapt_ahead_while_this_machine_slept_is_believed_and_forgers_pay_little() {
    let mut stage = stage();
    let short_name = stage.owner.short_name();
    let first = stage.renewal();
    let now = stage.watched.now;
    assert_eq!(stage.watched.catalogue.apply_renewal(&short_name, &first, now, WALL), Ok(()));
    // An hour of renewals, none of which this catalogue's clock has seen pass.
    let mut sleepless = (0..720).map(|_| stage.renewal()).collect::<Vec<_>>();
    let newest = sleepless.pop().expect("720 renewals");
    let forged = Renewal { link: [9; 32], ..newest };
    let apply = |stage: &mut Stage, renewal: &Renewal, at| {
        stage.watched.catalogue.apply_renewal(&short_name, renewal, at, WALL)
    };
    assert_eq!(apply(&mut stage, &forged, now), Err(Rejected::BadRenewal));
    assert_eq!(apply(&mut stage, &forged, now), Err(Rejected::Implausible), "not hashed again so soon");
    let later = now + RENEWAL_LEAP_PERIOD;
    assert_eq!(apply(&mut stage, &newest, later), Ok(()));
    assert_eq!(apply(&mut stage, &newest, later), Err(Rejected::Stale));
}

#[test]
fn a_used_up_chain_is_followed_by_the_next_one() {
    let mut stage = stage();
    let mut now = stage.watched.now;
    let mut last = None;
    let mut said = None;
    while !matches!(said, Some(Said::Node(_))) {
        last = said;
        now += RENEW;
        stage.web.handle_timeout(now, || [8; 32]);
        said = stage.web.poll_said();
    }
    let Some(Said::Renewal(last)) = last else { panic!("renewals before the next anchor") };
    stage.watched.renew(&stage.owner, &last).expect("one renewal may stand for all");
    stage.watched.hear(&stage.owner, &said.expect("the anchor")).expect("the next anchor");
    assert_eq!(stage.watched.offered(), 1, "the instances stand");
    assert_eq!(stage.watched.renew(&stage.owner, &last).expect_err("old").reason(), "bad_renewal");
    let next = stage.renewal_after(now);
    stage.watched.renew(&stage.owner, &next).expect("a link of the next chain");
}

impl Stage {
    fn renewal_after(&mut self, now: starling_gossip::clock::Instant) -> Renewal {
        self.web.handle_timeout(now + RENEW, || [8; 32]);
        match self.web.poll_said() {
            Some(Said::Renewal(renewal)) => renewal,
            other => panic!("a renewal was due, not {other:?}"),
        }
    }
}

#[test]
fn a_withdrawal_and_a_leave_are_final_in_their_life() {
    let mut stage = stage();
    let mut said = Vec::new();
    let mut hear = |stage: &mut Stage| {
        let new = records(&mut stage.web);
        for record in &new {
            stage.watched.apply(record).expect("an honest word");
        }
        said.extend(new);
    };
    stage.web.set_instance(label("b"), Some(instance("web", 2)));
    hear(&mut stage);
    stage.web.set_instance(label("b"), None);
    hear(&mut stage);
    assert_eq!(stage.watched.offered(), 1);
    let renewal = stage.renewal();
    stage.web.leave();
    hear(&mut stage);
    assert_eq!((stage.presence(), stage.watched.offered()), (Some(Presence::Left), 0));

    let after = stage.watched.view();
    for record in &said {
        assert_eq!(stage.watched.apply(record).expect_err("a replay").reason(), "stale");
    }
    assert_eq!(stage.watched.renew(&stage.owner, &renewal).expect_err("left").reason(), "stale");
    assert_eq!(stage.watched.view(), after);

    let svid = stage.authority.svid("spiffe://acme/svc/web", KeyKind::Ed25519);
    let mut next_life = publisher(svid, "web-1", 2_000, stage.watched.now);
    stage.watched.hear_all(&mut next_life);
    assert_eq!((stage.presence(), stage.watched.offered()), (Some(Presence::Alive), 0));
}

#[test]
fn departed_members_are_shown_for_a_while_and_remembered_until_their_certificate_ends() {
    let mut stage = stage();
    let record = {
        let svid = stage.authority.svid("spiffe://acme/svc/web", KeyKind::Ed25519);
        let mut again = publisher(svid, "web-1", 2_000, stage.watched.now);
        records(&mut again).remove(0)
    };
    stage.watched.apply(&record).expect("a later life");
    stage.watched.wait(LEASE);
    stage.watched.wait(DEPARTED_SHOWN);
    assert_eq!(stage.presence(), None, "people need not see it any longer");
    assert_eq!(stage.watched.apply(&record).expect_err("a replay").reason(), "stale");

    stage.watched.wait(Duration::from_secs(VALIDITY.whole_seconds() as u64));
    assert_eq!(stage.watched.catalogue.version_of(&stage.owner), None, "forgotten");
    assert_eq!(stage.watched.apply(&record).expect_err("a replay").reason(), "expired");
}

#[test]
fn a_calendar_set_forward_or_back_touches_no_lease() {
    let mut stage = stage();
    for unix_millis in [0, u64::MAX / 2, WALL.unix_millis] {
        let wall = WallTime { unix_millis };
        stage.watched.catalogue.handle_timeout(stage.watched.now, wall);
        assert_eq!((stage.presence(), stage.watched.offered()), (Some(Presence::Alive), 1));
        let renewal = stage.renewal();
        stage.watched.renew(&stage.owner, &renewal).expect("renewals ask no calendar");
    }
}

#[test]
fn an_owner_whose_calendar_was_set_back_speaks_above_its_former_life() {
    let mut stage = stage();
    let svid = stage.authority.svid("spiffe://acme/svc/web", KeyKind::Ed25519);
    let mut restarted = publisher(svid, "web-1", 10, stage.watched.now);
    let early = records(&mut restarted).remove(0);
    assert_eq!(stage.watched.apply(&early).expect_err("an earlier life").reason(), "stale");

    let heard = stage.watched.catalogue.version_of(&stage.owner).expect("known");
    restarted.outlive(heard.incarnation, [3; 32]);
    stage.watched.hear_all(&mut restarted);
    let version = stage.watched.catalogue.version_of(&stage.owner).expect("known");
    assert_eq!(version.incarnation, heard.incarnation + 1);
}
