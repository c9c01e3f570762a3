//! STATE MACHINE: the verified records of all owners.
//!
//! Sealed records go in by [`Catalogue::apply`], renewals by [`Catalogue::apply_renewal`], time by
//! [`Catalogue::handle_timeout`]; a [`Snapshot`] comes out. It reads no clock, draws no random
//! number and does no IO.
//!
//! Applying is idempotent and free of order: any order of what an honest owner says, with any
//! repeats, ends in equal catalogues. Nothing enters but what its owner signed, with a chain that leads to
//! the trust bundle. Nothing leaves but by the owner's withdrawal or the end of its lease;
//! nobody's word about somebody else is even expressible.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;

use crate::clock::{Instant, WallTime};
use crate::doubts::{Doubts, Reported};
use crate::known::{Known, KnownInstance, ProofEnds, is_believed, verify_chain};
use crate::lease::SeenLink;
use crate::limits::{INSTANCES_PER_OWNER_MAX, OWNERS_MAX, OWNERS_PER_IDENTITY_MAX, RENEWAL_LEAP_PERIOD};
use crate::memory::{Entry, LEASE_KEY, NODE_KEY, Notes, RememberedOwner, Urgency, instance_key};
use crate::record::{InstanceRecord, NodeRecord, Owner, Record, Renewal, Version};
use crate::signature::SealedRecord;
use crate::snapshot::{Member, Presence, ServiceInstance, Snapshot};
use crate::svid::TrustBundle;
use crate::talk::number;
use crate::waiting::Waiting;

pub use crate::rejection::Rejected;

mod hearsay;
mod shared;

/// The verified records of all owners.
pub struct Catalogue {
    bundle: Arc<TrustBundle>,
    owners: BTreeMap<Owner, Known>,
    by_short_name: BTreeMap<u64, Owner>,
    waiting: Waiting,
    generation: u64,
    changed: bool,
    next_timeout: Option<Instant>,
    /// When those are looked for again that nobody could replay any more.
    next_sweep: Option<Instant>,
    notes: Notes,
    /// The digest of what present owners say, until something changes.
    knows: Option<u64>,
}

/// How often owners whose certificates have ended are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// What applying a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is in the catalogue now.
    Accepted,
    /// It is kept, unverified and unseen, until its owner's node record arrives.
    Waiting,
}

/// How long ago an owner was heard, for people: not part of a snapshot because it never rests.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Since its last renewal, on this node's clock; what passed before this node's own start is
    /// what the calendar says of it.
    pub lease_age: Duration,
    /// How many renewals of its present chain were seen.
    pub renewals: u32,
    /// It was not heard in this node's present life: it is known from an earlier one.
    pub is_remembered: bool,
}

impl Catalogue {
    /// An empty catalogue that believes `bundle`.
    pub fn new(bundle: Arc<TrustBundle>) -> Self {
        Self {
            bundle,
            owners: BTreeMap::new(),
            by_short_name: BTreeMap::new(),
            waiting: Waiting::default(),
            generation: 0,
            changed: false,
            next_timeout: None,
            next_sweep: None,
            notes: Notes::default(),
            knows: None,
        }
    }

    /// Notes from now on what is to be remembered of others than `own`; whoever calls this must
    /// carry the notes off ([`Self::take_notes`]) after every step.
    pub fn remember_others_than(&mut self, own: Owner) {
        self.notes = Notes::about_others_than(own);
    }

    /// What is to be remembered since the last call, in this order.
    pub fn take_notes(&mut self) -> Vec<Entry> {
        self.notes.take()
    }

    /// Believes another bundle from now on. Owners whose chain it does not trust, whatever the
    /// calendar says, are removed: one that leaps for a moment must not make anybody forgotten.
    /// Returns whether there were any.
    pub fn set_bundle(&mut self, bundle: Arc<TrustBundle>, wall: WallTime) -> bool {
        let has_forgotten = self.forget_unless(|known| {
            known.presence == Presence::Left || is_believed(&bundle, &known.node, wall)
        });
        self.bundle = bundle;
        self.mark_changed(true);
        has_forgotten
    }

    /// Takes in one sealed record as it travelled.
    pub fn apply(&mut self, bytes: &[u8], now: Instant, wall: WallTime) -> Result<Applied, Rejected> {
        let sealed = SealedRecord::from_bytes(bytes)?;
        let record = sealed.unverified()?;
        self.apply_record(&sealed, record, now, wall)
    }

    /// Like [`Self::apply`], for a record found under somebody's short name: it must be that
    /// owner's, so nobody's map can carry other owners' records.
    pub fn apply_filed(
        &mut self,
        short_name: &str,
        bytes: &[u8],
        now: Instant,
        wall: WallTime,
    ) -> Result<Applied, Rejected> {
        let sealed = SealedRecord::from_bytes(bytes)?;
        let record = sealed.unverified()?;
        if record.owner().short_name() != short_name {
            return Err(Rejected::WrongName);
        }
        self.apply_record(&sealed, record, now, wall)
    }

    /// Takes in a renewal of the owner called `short_name`.
    pub fn apply_renewal(
        &mut self,
        short_name: &str,
        renewal: &Renewal,
        now: Instant,
        wall: WallTime,
    ) -> Result<(), Rejected> {
        let name = number(short_name).ok_or(Rejected::UnknownOwner)?;
        let owner = self.by_short_name.get(&name).ok_or(Rejected::UnknownOwner)?;
        let known = self.owners.get_mut(owner).ok_or(Rejected::UnknownOwner)?;
        if renewal.incarnation != known.node.version.incarnation || known.presence == Presence::Left {
            return Err(Rejected::Stale);
        }
        if known.is_stale(renewal.counter) {
            return Err(Rejected::Stale);
        }
        if renewal.counter > known.renewals_explained(now) {
            if now < known.next_leap {
                return Err(Rejected::Implausible);
            }
            known.next_leap = now + RENEWAL_LEAP_PERIOD;
        }
        known.seen = known.seen.advance(renewal).ok_or(Rejected::BadRenewal)?;
        known.renewed_at = now;
        known.remembered = None;
        known.is_first_hand = true;
        known.reported = Reported::default();
        known.doubts.handle_renewal(renewal.counter, now);
        let urgency = if known.presence == Presence::Expired { Urgency::Soon } else { Urgency::Whenever };
        let mut changed = known.set_presence(Presence::Alive, now);
        changed |= known.handle_doubts(now);
        let lease = known.lease_to_remember(now, wall);
        self.notes.add(owner, |name| Entry::lease(name, &lease, urgency));
        let timeout = known.next_timeout();
        self.mark_changed(changed);
        self.wake_by(timeout);
        Ok(())
    }

    /// Takes in what this node remembers of one owner, judged as if it had just been said. The owner
    /// is suspect until it is heard, and its lease runs from now; one whose lease had run out stays
    /// expired, and only its versions count.
    pub fn restore(
        &mut self,
        remembered: &RememberedOwner,
        now: Instant,
        wall: WallTime,
    ) -> Result<(), Rejected> {
        let name = &remembered.name;
        let node = self.apply_filed(name, &remembered.node, now, wall);
        if !matches!(node, Ok(Applied::Accepted) | Err(Rejected::Stale)) {
            return Err(node.err().unwrap_or(Rejected::WrongName));
        }
        for record in remembered.instances.values() {
            // One that is stale by now, or never was whole, leaves the others standing.
            let _ = self.apply_filed(name, record, now, wall);
        }
        let known = number(name).and_then(|name| self.by_short_name.get(&name));
        let known = known.and_then(|owner| self.owners.get_mut(owner));
        if let (Ok(_), Some(known)) = (node, known) {
            known.recall(remembered.lease.as_ref(), now, wall);
            let (timeout, lease) = (known.next_timeout(), known.lease_to_remember(now, wall));
            let owner = known.node.owner.clone();
            self.notes.correct(&owner, |name| Entry::lease(name, &lease, Urgency::Whenever));
            self.wake_by(timeout);
        }
        Ok(())
    }

    /// When [`Self::handle_timeout`] should be called next. It may be early, never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timeout
    }

    /// Lets leases run out, and forgets what nobody could replay any more.
    pub fn handle_timeout(&mut self, now: Instant, wall: WallTime) {
        let is_early = self.next_timeout.is_none_or(|at| now < at);
        if is_early && self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + SWEEP_PERIOD);
        let mut changed = false;
        for (owner, known) in &mut self.owners {
            let expired = known.presence == Presence::Expired;
            changed |= known.handle_timeout(now);
            if known.presence == Presence::Expired && !expired {
                let lease = known.lease_to_remember(now, wall);
                self.notes.add(owner, |name| Entry::lease(name, &lease, Urgency::Soon));
            }
        }
        changed |=
            self.forget_unless(|known| known.presence.is_present() || !known.proof_ends.passed(now, wall));
        self.mark_changed(changed);
        self.next_timeout = self.owners.values().filter_map(Known::next_timeout).min();
    }

    /// The next snapshot, if anything visible changed since the last.
    pub fn poll_snapshot(&mut self) -> Option<Snapshot> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.generation += 1;
        Some(self.snapshot())
    }

    /// When `owner` was last heard.
    pub fn heard(&self, owner: &Owner, now: Instant) -> Option<Heard> {
        let known = self.owners.get(owner)?;
        Some(Heard {
            lease_age: now.saturating_duration_since(known.renewed_at) + known.remembered.unwrap_or_default(),
            renewals: known.seen.counter(),
            is_remembered: known.remembered.is_some(),
        })
    }

    /// The newest verified word of `owner`'s node record.
    pub fn version_of(&self, owner: &Owner) -> Option<Version> {
        self.owners.get(owner).map(|known| known.node.version)
    }

    /// How many owners count as present, this node's own included.
    pub fn present(&self) -> usize {
        self.owners.values().filter(|known| known.presence.is_present()).count()
    }

    /// A digest of all verified records. Two catalogues that hold the same records have the same,
    /// whatever the order and time of their arrival.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut said = Vec::new();
        for known in self.owners.values() {
            let instances = known.instances.iter().map(|(id, held)| (id.as_str(), held.version));
            for (name, version) in
                [(known.short_name.as_str(), known.node.version)].into_iter().chain(instances)
            {
                said.extend_from_slice(name.as_bytes());
                said.push(0);
                said.extend_from_slice(&version.incarnation.to_be_bytes());
                said.extend_from_slice(&version.version.to_be_bytes());
            }
            context.update(&said);
            said.clear();
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        bytes
    }

    pub(crate) fn apply_record(
        &mut self,
        sealed: &SealedRecord,
        record: Record,
        now: Instant,
        wall: WallTime,
    ) -> Result<Applied, Rejected> {
        record.check_bounds()?;
        match record {
            Record::Node(node) => self.apply_node(sealed, node, now, wall),
            Record::Instance(instance) => self.apply_instance(sealed, instance, now),
        }
    }

    fn apply_node(
        &mut self,
        sealed: &SealedRecord,
        node: NodeRecord,
        now: Instant,
        wall: WallTime,
    ) -> Result<Applied, Rejected> {
        if self.owners.get(&node.owner).is_some_and(|known| known.node.version >= node.version) {
            return Err(Rejected::Stale);
        }
        let (key, certificate_ends) = verify_chain(&self.bundle, &node, wall)?;
        let proof_ends = ProofEnds::new(certificate_ends, now, wall);
        if !sealed.is_signed_by(&key, &self.bundle) {
            return Err(Rejected::BadSignature);
        }
        self.check_room(&node.owner)?;

        let owner = node.owner.clone();
        let presence = if node.left { Presence::Left } else { Presence::Alive };
        let anchor = SeenLink::anchor(node.lease.anchor);
        let node = Arc::new(node);
        match self.owners.get_mut(&owner) {
            Some(known) => {
                for id in known.succeed(node, sealed.to_bytes().into(), key, proof_ends, now) {
                    self.notes.add(&owner, |name| Entry::forget(name, &instance_key(&id)));
                }
            }
            None => {
                self.by_short_name.insert(owner.number(), owner.clone());
                let known = Known {
                    name: owner.number(),
                    short_name: owner.short_name(),
                    node,
                    sealed: sealed.to_bytes().into(),
                    key,
                    proof_ends,
                    seen: anchor,
                    run_out: anchor,
                    renewed_at: now,
                    remembered: None,
                    next_leap: now,
                    presence,
                    since: now,
                    is_shown: true,
                    doubts: Doubts::default(),
                    is_first_hand: false,
                    reported: Reported::default(),
                    instances: BTreeMap::new(),
                };
                self.owners.insert(owner.clone(), known);
            }
        }
        self.mark_changed(true);
        self.note_node(&owner, sealed, now, wall);
        let timeout = self.owners.get(&owner).and_then(Known::next_timeout);
        self.wake_by(timeout);
        for record in self.waiting.take(&owner) {
            // What waited may be stale or forged by now: it is judged as if it came just now.
            let _ = self.apply(&record, now, wall);
        }
        Ok(Applied::Accepted)
    }

    fn apply_instance(
        &mut self,
        sealed: &SealedRecord,
        record: InstanceRecord,
        now: Instant,
    ) -> Result<Applied, Rejected> {
        let incarnation = record.version.incarnation;
        let Some(known) = self.owners.get_mut(&record.owner) else {
            self.waiting.put(record.owner, sealed.to_bytes());
            return Ok(Applied::Waiting);
        };
        if incarnation > known.node.version.incarnation {
            self.waiting.put(record.owner, sealed.to_bytes());
            return Ok(Applied::Waiting);
        }
        if incarnation < known.node.version.incarnation || known.node.left {
            return Err(Rejected::Stale);
        }
        if known.instances.get(&record.id).is_some_and(|held| held.version >= record.version) {
            return Err(Rejected::Stale);
        }
        if record.instance.as_ref().is_some_and(|it| !record.owner.identity.may_announce(&it.service)) {
            return Err(Rejected::MayNotAnnounce);
        }
        if !sealed.is_signed_by(&known.key, &self.bundle) {
            return Err(Rejected::BadSignature);
        }
        if known.instances.len() >= INSTANCES_PER_OWNER_MAX && !known.instances.contains_key(&record.id) {
            return Err(Rejected::Full);
        }
        let held = KnownInstance {
            version: record.version,
            instance: record.instance.map(Arc::new),
            sealed: sealed.to_bytes().into(),
            learned_at: now,
        };
        let key = instance_key(&record.id);
        known.instances.insert(record.id, held);
        self.notes.add(&record.owner, |name| Entry::put(name, &key, sealed.to_bytes(), Urgency::Soon));
        self.mark_changed(true);
        Ok(Applied::Accepted)
    }

    /// Makes room for a new owner, or refuses it. The longest departed go first; where the identity
    /// has its share already, its own, for pods come and go under new names.
    fn check_room(&mut self, owner: &Owner) -> Result<(), Rejected> {
        if self.owners.contains_key(owner) {
            return Ok(());
        }
        // A name of 64 bits can be met by searching; whoever was there first keeps it.
        if self.by_short_name.contains_key(&owner.number()) {
            return Err(Rejected::WrongName);
        }
        // Owners are in the order of their identities.
        let is_its = |(held, _): &(&Owner, &Known)| held.identity == owner.identity;
        let before = self.owners.range(..owner).rev().take_while(is_its).count();
        let has_its_share =
            before + self.owners.range(owner..).take_while(is_its).count() >= OWNERS_PER_IDENTITY_MAX;
        if !has_its_share && self.owners.len() < OWNERS_MAX {
            return Ok(());
        }
        let departed = self.owners.iter().filter(|(held, known)| {
            !known.presence.is_present() && (!has_its_share || held.identity == owner.identity)
        });
        let longest = departed.min_by_key(|(_, known)| known.since).map(|(owner, _)| owner.clone());
        let evicted = longest.ok_or(Rejected::Full)?;
        self.forget(&evicted);
        Ok(())
    }

    /// Forgets owners that `keep` does not hold for; returns whether there were any.
    fn forget_unless(&mut self, keep: impl Fn(&Known) -> bool) -> bool {
        let gone: Vec<Owner> =
            self.owners.iter().filter(|(_, known)| !keep(known)).map(|(owner, _)| owner.clone()).collect();
        gone.iter().for_each(|owner| self.forget(owner));
        !gone.is_empty()
    }

    fn forget(&mut self, owner: &Owner) {
        let Some(known) = self.owners.remove(owner) else { return };
        self.by_short_name.remove(&known.name);
        let instances = known.instances.keys().map(instance_key);
        for key in [NODE_KEY, LEASE_KEY].map(str::to_owned).into_iter().chain(instances) {
            self.notes.add(owner, |name| Entry::forget(name, &key));
        }
    }

    fn note_node(&mut self, owner: &Owner, sealed: &SealedRecord, now: Instant, wall: WallTime) {
        let Some(known) = self.owners.get(owner) else { return };
        let lease = known.lease_to_remember(now, wall);
        self.notes.add(owner, |name| Entry::put(name, NODE_KEY, sealed.to_bytes(), Urgency::Soon));
        self.notes.add(owner, |name| Entry::lease(name, &lease, Urgency::Soon));
    }

    fn snapshot(&self) -> Snapshot {
        let shown = || self.owners.iter().filter(|(_, known)| known.is_shown);
        let member = |(owner, known): (&Owner, &Known)| {
            (owner.clone(), Member { record: known.node.clone(), presence: known.presence })
        };
        // Collected, not inserted: in order already, so that no owner is looked for.
        let members = shown().map(member).collect();
        let mut snapshot =
            Snapshot { generation: self.generation, digest: self.digest(), members, ..Snapshot::default() };
        for (owner, known) in shown().filter(|(_, known)| known.presence.is_present()) {
            for address in &known.node.addresses {
                snapshot.addresses.entry(*address).or_default().insert(owner.identity.clone());
            }
            for (id, held) in &known.instances {
                let Some(instance) = &held.instance else { continue };
                let offered = ServiceInstance {
                    owner: owner.clone(),
                    id: id.clone(),
                    instance: instance.clone(),
                    node: known.node.clone(),
                    presence: known.presence,
                    learned_at: held.learned_at,
                };
                snapshot.services.entry(instance.service.clone()).or_default().push(offered);
            }
        }
        snapshot
    }

    pub(super) fn mark_changed(&mut self, has: bool) {
        self.changed |= has;
        if has {
            self.knows = None;
        }
    }

    /// Makes sure that [`Self::poll_timeout`] is not later than `timeout`.
    pub(super) fn wake_by(&mut self, timeout: Option<Instant>) {
        self.next_timeout = [self.next_timeout, timeout].into_iter().flatten().min();
    }
}
