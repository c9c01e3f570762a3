//! The loop's side of remembering: what is taken from an earlier life, what is handed to the disk,
//! and whom a node asks that finds itself alone.
//!
//! It judges nothing: the catalogue does, and a record that it refuses because of the calendar
//! alone waits here until the calendar is another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use rand::Rng;
use rand::seq::IteratorRandom as _;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::catalogue::{Catalogue, Rejected};
use crate::clock::{Instant, WallTime};
use crate::limits::{
    ACQUAINTANCES_MAX, ACQUAINTANCES_PERIOD, OWNERS_MAX, REFUSED_BY_CALENDAR_KEPT, REJOIN_ASKED,
    REJOIN_PERIOD,
};
use crate::memory::{self, Acquaintances, Entry, LIFE_KEY, Memory, Remembered, RememberedOwner, Urgency};
use crate::record::Owner;
use crate::snapshot::{Presence, Snapshot};
use crate::svid::ChainError;

/// See the module.
pub(crate) struct Remembering {
    memory: Option<Arc<dyn Memory>>,
    own: Owner,
    /// The highest incarnation that this node has handed to the disk, or found there.
    life: u64,
    /// Remembered owners whose certificates are not valid by the present calendar.
    refused_by_calendar: Vec<RememberedOwner>,
    acquaintances: watch::Sender<Arc<Acquaintances>>,
    next_choice: Instant,
    next_rejoin: Instant,
}

impl Remembering {
    /// Takes over what an earlier life left: its highest incarnation and its acquaintances at
    /// once, and its records by filling `catalogue`, which has met nobody yet.
    pub(crate) fn begin(
        remembered: Option<Remembered>,
        own: Owner,
        catalogue: &mut Catalogue,
        now: Instant,
        wall: WallTime,
    ) -> Self {
        let (memory, entries) = match remembered {
            Some(Remembered { memory, entries }) => (Some(memory), entries),
            None => (None, BTreeMap::new()),
        };
        let mut this = Self {
            life: entries.get(LIFE_KEY).and_then(|value| memory::life(value)).unwrap_or_default(),
            acquaintances: watch::Sender::new(Arc::new(memory::peers(&entries))),
            refused_by_calendar: Vec::new(),
            next_choice: now,
            next_rejoin: now,
            memory,
            own,
        };
        if this.memory.is_some() {
            catalogue.remember_others_than(this.own.clone());
            this.restore(&entries, catalogue, now, wall);
        }
        this
    }

    /// Addresses that may be dialled although no present member claims them.
    pub(crate) fn acquaintances(&self) -> watch::Receiver<Arc<Acquaintances>> {
        self.acquaintances.subscribe()
    }

    /// An incarnation above every earlier one, whatever the calendar says; it is safe on disk, as
    /// far as the disk will have it, before anybody hears it.
    pub(crate) async fn first_life(&mut self, wall: WallTime) -> u64 {
        let above_all = self.life.saturating_add(1);
        if above_all > wall.unix_millis {
            warn!(
                calendar = wall.unix_millis,
                remembered = self.life,
                "the calendar stands before this node's earlier life; speaking above that one. Check this \
                 machine's clock"
            );
        }
        let incarnation = above_all.max(wall.unix_millis);
        self.begin_life(incarnation).await;
        incarnation
    }

    /// To be called before anything is said with `incarnation`.
    pub(crate) async fn begin_life(&mut self, incarnation: u64) {
        if incarnation <= self.life {
            return;
        }
        self.life = incarnation;
        if let Some(memory) = &self.memory {
            memory.begin_life(incarnation).await;
        }
    }

    fn restore(
        &mut self,
        entries: &BTreeMap<String, Vec<u8>>,
        catalogue: &mut Catalogue,
        now: Instant,
        wall: WallTime,
    ) {
        let (owners, misfits) = memory::owners(entries);
        for key in misfits {
            self.keep(Entry { key, value: None, urgency: Urgency::Whenever });
        }
        let remembered = owners.len();
        self.refused_by_calendar = owners;
        self.retry(catalogue, now, wall);
        let present = catalogue.present();
        let not_valid_now = self.refused_by_calendar.len();
        info!(remembered, present, not_valid_now, "took over what an earlier life left");
        if not_valid_now > 0 {
            warn!(
                not_valid_now,
                "remembered members' certificates are not valid now; they wait for another calendar. If these \
                 members still run, check this machine's clock"
            );
        }
    }

    /// Offers the catalogue again what it refused because of the calendar.
    pub(crate) fn retry(&mut self, catalogue: &mut Catalogue, now: Instant, wall: WallTime) {
        for owner in std::mem::take(&mut self.refused_by_calendar) {
            let refused = catalogue.restore(&owner, now, wall).err();
            let is_own = owner.name == self.own.short_name();
            if refused.is_none() && !is_own {
                continue;
            }
            let is_calendars = matches!(refused, Some(Rejected::Chain(ChainError::NotValidNow(_))));
            let is_recent = owner.age(wall).is_some_and(|age| age <= REFUSED_BY_CALENDAR_KEPT);
            if is_calendars && is_recent && !is_own && self.refused_by_calendar.len() < OWNERS_MAX {
                self.refused_by_calendar.push(owner);
            } else {
                owner.forgotten().for_each(|entry| self.keep(entry));
            }
        }
        self.carry_notes(catalogue);
    }

    /// Whether something waits for another calendar.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.refused_by_calendar.is_empty()
    }

    /// Hands the disk what the catalogue noted.
    pub(crate) fn carry_notes(&self, catalogue: &mut Catalogue) {
        catalogue.take_notes().into_iter().for_each(|entry| self.keep(entry));
    }

    /// Chooses now and then whom to remember among the members that are alive. While nobody is,
    /// the last choice stands.
    pub(crate) fn choose_acquaintances(&mut self, snapshot: &Snapshot, rng: &mut impl Rng, now: Instant) {
        let held = self.acquaintances.borrow().len();
        let count = self.alive(snapshot).count();
        let may_grow = held < ACQUAINTANCES_MAX && count > held;
        if count == 0 || (now < self.next_choice && !may_grow) {
            return;
        }
        let chosen = self.alive(snapshot).choose_multiple(rng, ACQUAINTANCES_MAX);
        let chosen: Acquaintances = chosen
            .into_iter()
            .map(|owner| (snapshot.members[owner].record.addresses[0], owner.identity.clone()))
            .collect();
        self.next_choice = now + ACQUAINTANCES_PERIOD;
        if **self.acquaintances.borrow() != chosen {
            self.keep(Entry::peers(&chosen));
            self.acquaintances.send_replace(Arc::new(chosen));
        }
    }

    /// Whom to ask, besides the seeds, now that nobody is alive: a few at random of those who were,
    /// every [`REJOIN_PERIOD`].
    pub(crate) fn ask_while_alone(
        &mut self,
        snapshot: &Snapshot,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Vec<SocketAddr> {
        if now < self.next_rejoin {
            return Vec::new();
        }
        self.next_rejoin = now + REJOIN_PERIOD;
        let present = self.others(snapshot).filter(|(_, presence)| presence.is_present());
        let mut known: BTreeSet<SocketAddr> =
            present.map(|(owner, _)| snapshot.members[owner].record.addresses[0]).collect();
        known.extend(self.acquaintances.borrow().keys());
        known.into_iter().choose_multiple(rng, REJOIN_ASKED)
    }

    fn alive<'s>(&'s self, snapshot: &'s Snapshot) -> impl Iterator<Item = &'s Owner> {
        self.others(snapshot).filter(|(_, presence)| *presence == Presence::Alive).map(|(owner, _)| owner)
    }

    fn others<'s>(&'s self, snapshot: &'s Snapshot) -> impl Iterator<Item = (&'s Owner, Presence)> {
        let others = snapshot.members.iter().filter(|(owner, _)| **owner != self.own);
        others.map(|(owner, member)| (owner, member.presence))
    }

    fn keep(&self, entry: Entry) {
        if let Some(memory) = &self.memory {
            memory.keep(entry);
        }
    }
}
