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
