//! What others say of an owner: that it does not answer, and how long ago they heard it. It moves ranks and
//! clocks within bounds, and removes nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Catalogue, Rejected};
use crate::clock::{Instant, WallTime};
use crate::doubts::REPORTS_NEEDED;
use crate::handle::Doubt;
use crate::identity::SpiffeId;
use crate::record::Owner;
use crate::snapshot::Presence;
use crate::talk::{ReportedLease, short_name};
use crate::watchers::{watched_by, watchers};
use crate::watching::{SealedSighting, WATCHERS_BELIEVED};

/// A watcher may have heard so many renewals that this node has not.
const COUNTERS_AHEAD: u32 = 2;

impl Catalogue {
    /// Takes in a watcher's word, if it is one of the subject's watchers and signed it.
    pub(crate) fn apply_sighting(&mut self, sealed: &SealedSighting, now: Instant) -> Result<(), Rejected> {
        let mut sighting = sealed.sighting;
        let subject = self.known(sighting.subject).ok_or(Rejected::UnknownOwner)?;
        let watcher = self.known(sighting.watcher).ok_or(Rejected::UnknownOwner)?;
        let is_past = !subject.presence.is_present()
            || subject.node.version.incarnation != sighting.incarnation
            || !sighting.is_reachable && sighting.counter < subject.seen.counter();
        if is_past || !subject.doubts.is_news(&sighting) {
            return Err(Rejected::Stale);
        }
        let believed = watchers(sighting.subject, &self.undoubted(), WATCHERS_BELIEVED);
        if !believed.iter().any(|(name, _)| *name == sighting.watcher) {
            return Err(Rejected::NotAWatcher);
        }
        if !sealed.is_signed_by(&watcher.key, &self.bundle) {
            return Err(Rejected::BadSignature);
        }
        // A later renewal refutes it: nobody may claim to know renewals that are yet to come.
        sighting.counter = sighting.counter.min(subject.seen.counter().saturating_add(COUNTERS_AHEAD));
        let identity = watcher.node.owner.identity.clone();
        let identities = believed.into_iter().map(|(_, identity)| identity).collect::<BTreeSet<_>>().len();
        let changed = self.with_known(sighting.subject, |known| {
            known.doubts.handle_sighting(sighting, identity, identities, now);
            known.handle_doubts(now)
        });
        self.handle_shown(sighting.subject, changed);
        Ok(())
    }

    /// What this node has seen for itself of `subject`; `None`: it looks no longer.
    pub(crate) fn apply_own_sight(&mut self, subject: u64, is_reachable: Option<bool>, now: Instant) {
        let changed = self.with_known(subject, |known| {
            known.doubts.handle_own(is_reachable, now);
            known.handle_doubts(now)
        });
        self.handle_shown(subject, changed);
    }

    /// Who doubts `owner`, for people.
    pub(crate) fn doubt_of(&self, owner: &Owner) -> Option<Doubt> {
        let doubts = &self.owners.get(owner)?.doubts;
        let by_own_probe = doubts.own() == Some(false);
        let since = doubts.since()?;
        Some(Doubt { watchers: doubts.accusers(), by_own_probe, since })
    }

    /// Those of `owners` that somebody accuses: worth a look for who routes to them.
    pub(crate) fn accused<'a>(
        &'a self,
        owners: impl Iterator<Item = &'a Owner>,
    ) -> impl Iterator<Item = u64> {
        let known = owners.filter_map(|owner| self.owners.get(owner));
        let accused = known.filter(|known| {
            known.presence.is_present()
                && (known.doubts.accusers() > 0 || known.presence == Presence::Suspect)
        });
        accused.map(|known| known.name)
    }

    /// The short names of those that `watcher` watches.
    pub(crate) fn watched_by(&self, watcher: u64) -> Vec<u64> {
        let present = self.owners.values().filter(|known| known.presence.is_present());
        let subjects: Vec<u64> = present.map(|known| known.name).collect();
        watched_by(watcher, &subjects, &self.undoubted())
    }

    /// `reporter` says how long ago it heard the owners it knows. Of `needed` that are asked, the lowest age counts;
    /// a renewal that proves more than is known counts at once, and its owner is young until enough have said.
    pub(crate) fn apply_report(
        &mut self,
        reporter: &SpiffeId,
        lease: &ReportedLease,
        needed: usize,
        now: Instant,
        wall: WallTime,
    ) -> Result<(), Rejected> {
        let name = short_name(lease.owner);
        let held = self.known(lease.owner).ok_or(Rejected::UnknownOwner)?;
        let seen_before = held.seen.counter();
        if lease.renewal.incarnation != held.node.version.incarnation || lease.renewal.counter < seen_before {
            return Err(Rejected::Stale);
        }
        // What this node heard itself is not made older by others' words.
        if lease.renewal.counter == seen_before && held.is_first_hand {
            return Ok(());
        }
        let has_run_out = u64::from(lease.age_millis) >= u64::from(held.node.lease.length_millis);
        if lease.renewal.counter > seen_before {
            if has_run_out {
                // It brings nobody back, and after it no earlier one does.
                if lease.renewal.counter > held.run_out.counter() {
                    let run_out = held.newest_link().advance(&lease.renewal).ok_or(Rejected::BadRenewal)?;
                    self.with_known(lease.owner, |known| {
                        known.run_out = run_out;
                        false
                    });
                }
                if self.known(lease.owner).is_some_and(|held| held.is_first_hand) {
                    return Ok(());
                }
            } else {
                self.apply_renewal(&name, &lease.renewal, now, wall)?;
            }
        }
        let age = Duration::from_millis(lease.age_millis.into());
        let changed = self.with_known(lease.owner, |known| {
            known.handle_report(reporter, age, needed.min(REPORTS_NEEDED), now);
            known.handle_timeout(now)
        });
        let timeout = self.known(lease.owner).and_then(crate::known::Known::next_timeout);
        self.wake_by(timeout);
        self.mark_changed(changed);
        Ok(())
    }

    /// Who may watch others: of many that crash together, the living watch each other's dead.
    fn undoubted(&self) -> Vec<(u64, &SpiffeId)> {
        let alive = self.owners.values().filter(|known| known.presence == Presence::Alive);
        alive.map(|known| (known.name, &known.node.owner.identity)).collect()
    }

    fn with_known(&mut self, owner: u64, change: impl FnOnce(&mut crate::known::Known) -> bool) -> bool {
        let known = self.by_short_name.get(&owner).and_then(|name| self.owners.get_mut(name));
        known.is_some_and(change)
    }

    /// A rank changed and no record: what this node knows is the same.
    fn handle_shown(&mut self, subject: u64, has_changed: bool) {
        self.changed |= has_changed;
        let timeout = self.known(subject).and_then(crate::known::Known::next_timeout);
        self.wake_by(timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, KeyKind, WALL};
    use crate::publisher::{NodeDescription, Publisher, Said};
    use crate::record::{Locality, Renewal};

    const LEASE: Duration = Duration::from_secs(10);
    const RENEW: Duration = Duration::from_secs(1);

    struct Stage {
        catalogue: Catalogue,
        web: Publisher,
        now: Instant,
    }

    impl Stage {
        /// A node that is known, and has not renewed.
        fn new() -> Self {
            let (authority, now) = (Authority::new(), Instant::now());
            let description = NodeDescription {
                name: "web-1".parse().expect("a node name"),
                addresses: vec!["127.0.0.1:7400".parse().expect("an address")],
                locality: Locality::default(),
                program: "0.1.0".parse().expect("a label"),
                lease: LEASE,
                renew: RENEW,
            };
            let svid = authority.svid("spiffe://acme/svc/web", KeyKind::P256);
            let mut web = Publisher::new(svid, description, 7, [7; 32], now);
            let mut catalogue = Catalogue::new(authority.bundle());
            while let Some(said) = web.poll_said() {
                if let Said::Node(record) = said {
                    catalogue.apply(&record.to_bytes(), now, WALL).expect("an honest word");
                }
            }
            Self { catalogue, web, now }
        }

        /// Time goes on to the owner's next renewal.
        fn renewal(&mut self) -> Renewal {
            self.now += RENEW;
            self.catalogue.handle_timeout(self.now, WALL);
            self.web.handle_timeout(self.now, || [8; 32]);
            match self.web.poll_said() {
                Some(Said::Renewal(renewal)) => renewal,
                other => panic!("a renewal was due, not {other:?}"),
            }
        }

        fn renew(&mut self, renewal: &Renewal) -> Result<(), Rejected> {
            self.catalogue.apply_renewal(&self.web.owner().short_name(), renewal, self.now, WALL)
        }

        /// Somebody tells of `renewal` as run out.
        fn report_run_out(&mut self, renewal: Renewal) -> Result<(), Rejected> {
            let reporter = "spiffe://acme/svc/liar".parse().expect("an identity");
            let lease = ReportedLease { owner: self.web.owner().number(), renewal, age_millis: u32::MAX };
            self.catalogue.apply_report(&reporter, &lease, REPORTS_NEEDED, self.now, WALL)
        }

        fn presence(&self) -> Presence {
            self.catalogue.node_of(self.web.owner().number()).expect("it is known").2
        }
    }

    #[test]
    fn who_tells_first_that_a_renewal_has_run_out_keeps_it_from_counting_no_less() {
        let mut stage = Stage::new();
        let first = stage.renewal();
        stage.renew(&first).expect("its own word");
        for _ in 0..3 * LEASE.as_secs() {
            let renewal = stage.renewal();
            stage.report_run_out(renewal).expect("it proves itself");
            stage.renew(&renewal).expect("the owner's own word counts");
            assert_eq!(stage.presence(), Presence::Alive);
        }
    }

    #[test]
    fn old_renewals_bring_nobody_back_once_the_newest_was_told_of() {
        let mut stage = Stage::new();
        let all: Vec<Renewal> = (0..5).map(|_| stage.renewal()).collect();
        stage.renew(&all[0]).expect("its own word");
        stage.report_run_out(all[3]).expect("it proves itself");
        assert_eq!(stage.report_run_out(Renewal { link: [9; 32], ..all[4] }), Err(Rejected::BadRenewal));
        for old in &all[1..3] {
            assert_eq!(stage.renew(old), Err(Rejected::Stale));
        }
        stage.now += LEASE;
        stage.catalogue.handle_timeout(stage.now, WALL);
        assert_eq!(stage.presence(), Presence::Expired);
        assert_eq!(stage.renew(&all[3]), Err(Rejected::Stale), "who is gone needs a newer one");
        stage.renew(&all[4]).expect("a newer one");
        assert_eq!(stage.presence(), Presence::Alive);
    }
}
