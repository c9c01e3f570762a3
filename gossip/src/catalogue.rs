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
use rustls_pki_types::CertificateDer;

use crate::clock::{Instant, WallTime};
use crate::lease::SeenLink;
use crate::limits::{
    DEPARTED_SHOWN, INSTANCES_PER_OWNER_MAX, OWNERS_MAX, OWNERS_PER_IDENTITY_MAX, RENEWAL_LEAP_PERIOD,
    RENEWALS_AHEAD_MAX, RENEWALS_MISSED_MAX,
};
use crate::record::{Instance, InstanceRecord, Label, NodeRecord, Owner, Record, Renewal, Version};
use crate::signature::SealedRecord;
use crate::snapshot::{Member, Presence, ServiceInstance, Snapshot};
use crate::svid::{PublicKey, TrustBundle, Usage};
use crate::waiting::Waiting;

pub use crate::rejection::Rejected;

/// The verified records of all owners.
pub struct Catalogue {
    bundle: Arc<TrustBundle>,
    owners: BTreeMap<Owner, Known>,
    by_short_name: BTreeMap<String, Owner>,
    waiting: Waiting,
    generation: u64,
    changed: bool,
    next_timeout: Option<Instant>,
}

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
    /// Since its last renewal, on this node's clock.
    pub lease_age: Duration,
    /// How many renewals of its present chain were seen.
    pub renewals: u32,
}

struct Known {
    node: Arc<NodeRecord>,
    key: PublicKey,
    certificate_ends: WallTime,
    seen: SeenLink,
    renewed_at: Instant,
    /// When a renewal that time does not explain may be checked next.
    next_leap: Instant,
    presence: Presence,
    /// When the presence last changed.
    since: Instant,
    /// Departed owners stay visible to people for a while; then only their versions are kept.
    is_shown: bool,
    instances: BTreeMap<Label, KnownInstance>,
}

struct KnownInstance {
    version: Version,
    /// `None` is a withdrawal, kept so that nothing older comes back.
    instance: Option<Arc<Instance>>,
    learned_at: Instant,
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
        }
    }

    /// Believes another bundle from now on. Owners whose chain it does not trust are removed.
    pub fn set_bundle(&mut self, bundle: Arc<TrustBundle>, wall: WallTime) {
        self.owners.retain(|_, known| {
            known.presence == Presence::Left || verify_chain(&bundle, &known.node, wall).is_ok()
        });
        self.by_short_name.retain(|_, owner| self.owners.contains_key(owner));
        self.bundle = bundle;
        self.changed = true;
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
    ) -> Result<(), Rejected> {
        let owner = self.by_short_name.get(short_name).ok_or(Rejected::UnknownOwner)?;
        let known = self.owners.get_mut(owner).ok_or(Rejected::UnknownOwner)?;
        if renewal.incarnation != known.node.version.incarnation || known.presence == Presence::Left {
            return Err(Rejected::Stale);
        }
        if renewal.counter <= known.seen.counter() {
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
        self.changed |= known.set_presence(Presence::Alive, now);
        let timeout = known.next_timeout();
        self.wake_by(timeout);
        Ok(())
    }

    /// When [`Self::handle_timeout`] should be called next. It may be early, never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timeout
    }

    /// Lets leases run out, and forgets what nobody could replay any more.
    pub fn handle_timeout(&mut self, now: Instant, wall: WallTime) {
        let mut changed = false;
        for known in self.owners.values_mut() {
            changed |= known.handle_timeout(now);
        }
        let before = self.owners.len();
        self.owners.retain(|_, known| known.presence.is_present() || known.certificate_ends > wall);
        if self.owners.len() != before {
            self.by_short_name.retain(|_, owner| self.owners.contains_key(owner));
            changed = true;
        }
        self.changed |= changed;
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
            lease_age: now.saturating_duration_since(known.renewed_at),
            renewals: known.seen.counter(),
        })
    }

    /// The newest verified word of `owner`'s node record.
    pub fn version_of(&self, owner: &Owner) -> Option<Version> {
        self.owners.get(owner).map(|known| known.node.version)
    }

    /// A digest of all verified records. Two catalogues that hold the same records have the same,
    /// whatever the order and time of their arrival.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut add = |name: &str, version: Version| {
            context.update(name.as_bytes());
            context.update(&[0]);
            context.update(&version.incarnation.to_be_bytes());
            context.update(&version.version.to_be_bytes());
        };
        for (owner, known) in &self.owners {
            add(&owner.short_name(), known.node.version);
            for (id, instance) in &known.instances {
                add(id.as_str(), instance.version);
            }
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        bytes
    }

    fn apply_record(
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
        if !sealed.is_signed_by(&key) {
            return Err(Rejected::BadSignature);
        }
        self.check_room(&node.owner)?;

        let owner = node.owner.clone();
        let presence = if node.left { Presence::Left } else { Presence::Alive };
        let anchor = SeenLink::anchor(node.lease.anchor);
        let node = Arc::new(node);
        match self.owners.get_mut(&owner) {
            Some(known) => known.succeed(node, key, certificate_ends, now),
            None => {
                let known = Known {
                    node,
                    key,
                    certificate_ends,
                    seen: anchor,
                    renewed_at: now,
                    next_leap: now,
                    presence,
                    since: now,
                    is_shown: true,
                    instances: BTreeMap::new(),
                };
                self.by_short_name.insert(owner.short_name(), owner.clone());
                self.owners.insert(owner.clone(), known);
            }
        }
        self.changed = true;
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
        if !sealed.is_signed_by(&known.key) {
            return Err(Rejected::BadSignature);
        }
        if known.instances.len() >= INSTANCES_PER_OWNER_MAX && !known.instances.contains_key(&record.id) {
            return Err(Rejected::Full);
        }
        let held = KnownInstance {
            version: record.version,
            instance: record.instance.map(Arc::new),
            learned_at: now,
        };
        known.instances.insert(record.id, held);
        self.changed = true;
        Ok(Applied::Accepted)
    }

    /// Makes room for a new owner, or refuses it. The longest departed go first; where the identity
    /// has its share already, its own, for pods come and go under new names.
    fn check_room(&mut self, owner: &Owner) -> Result<(), Rejected> {
        if self.owners.contains_key(owner) {
            return Ok(());
        }
        // A name of 64 bits can be met by searching; whoever was there first keeps it.
        if self.by_short_name.contains_key(&owner.short_name()) {
            return Err(Rejected::WrongName);
        }
        let of_identity = self.owners.keys().filter(|held| held.identity == owner.identity).count();
        let has_its_share = of_identity >= OWNERS_PER_IDENTITY_MAX;
        if !has_its_share && self.owners.len() < OWNERS_MAX {
            return Ok(());
        }
        let departed = self.owners.iter().filter(|(held, known)| {
            !known.presence.is_present() && (!has_its_share || held.identity == owner.identity)
        });
        let longest = departed.min_by_key(|(_, known)| known.since).map(|(owner, _)| owner.clone());
        let evicted = longest.ok_or(Rejected::Full)?;
        self.by_short_name.remove(&evicted.short_name());
        self.owners.remove(&evicted);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot =
            Snapshot { generation: self.generation, digest: self.digest(), ..Snapshot::default() };
        for (owner, known) in self.owners.iter().filter(|(_, known)| known.is_shown) {
            let member = Member { record: known.node.clone(), presence: known.presence };
            snapshot.members.insert(owner.clone(), member);
            if !known.presence.is_present() {
                continue;
            }
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

    /// Makes sure that [`Self::poll_timeout`] is not later than `timeout`.
    fn wake_by(&mut self, timeout: Option<Instant>) {
        self.next_timeout = [self.next_timeout, timeout].into_iter().flatten().min();
    }
}

impl Known {
    /// The same owner's newer node record takes over.
    fn succeed(&mut self, node: Arc<NodeRecord>, key: PublicKey, ends: WallTime, now: Instant) {
        let incarnation = node.version.incarnation;
        if incarnation != self.node.version.incarnation {
            let continued = node.continues;
            self.instances.retain(|_, held| Some(held.version.incarnation) == continued);
        }
        if node.left {
            self.instances.clear();
        }
        if node.lease.anchor != self.node.lease.anchor {
            self.seen = SeenLink::anchor(node.lease.anchor);
        }
        let presence = if node.left { Presence::Left } else { Presence::Alive };
        self.node = node;
        self.key = key;
        self.certificate_ends = ends;
        self.renewed_at = now;
        self.set_presence(presence, now);
    }

    /// The highest counter that the time since the last renewal explains, with room for an owner
    /// whose clock is fast. It bounds what a forged renewal costs: one hash per link. Nothing is
    /// known before the first, so that may be anywhere in the chain; and this machine may have been
    /// suspended, which its monotonic clock does not see, so now and then a leap is checked too.
    fn renewals_explained(&self, now: Instant) -> u32 {
        if self.seen.counter() == 0 {
            return u32::MAX;
        }
        let silent = now.saturating_duration_since(self.renewed_at).as_millis();
        let missed = silent / u128::from(self.node.lease.renew_millis);
        let explained = u32::try_from(missed * 2).unwrap_or(u32::MAX).saturating_add(RENEWALS_AHEAD_MAX);
        self.seen.counter().saturating_add(explained)
    }

    /// Returns whether anything visible changed.
    fn handle_timeout(&mut self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.renewed_at);
        if !self.presence.is_present() {
            let hide = self.is_shown && now >= self.since + DEPARTED_SHOWN;
            self.is_shown &= !hide;
            hide
        } else if silent >= self.lease_length() {
            self.set_presence(Presence::Expired, now)
        } else if silent >= self.suspect_after() {
            self.set_presence(Presence::Suspect, now)
        } else {
            false
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        match self.presence {
            Presence::Alive => Some(self.renewed_at + self.suspect_after()),
            Presence::Suspect => Some(self.renewed_at + self.lease_length()),
            Presence::Left | Presence::Expired => self.is_shown.then(|| self.since + DEPARTED_SHOWN),
        }
    }

    fn set_presence(&mut self, presence: Presence, now: Instant) -> bool {
        let changed = self.presence != presence;
        if changed {
            self.presence = presence;
            self.since = now;
            self.is_shown = true;
        }
        changed
    }

    fn lease_length(&self) -> Duration {
        Duration::from_millis(self.node.lease.length_millis.into())
    }

    fn suspect_after(&self) -> Duration {
        let renew = Duration::from_millis(self.node.lease.renew_millis.into());
        (renew * (RENEWALS_MISSED_MAX + 1)).min(self.lease_length())
    }
}

/// The key that a node record's chain proves, and when that proof ends.
fn verify_chain(
    bundle: &TrustBundle,
    node: &NodeRecord,
    wall: WallTime,
) -> Result<(PublicKey, WallTime), Rejected> {
    let chain: Vec<_> = node.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let proved = bundle.verify(&chain, Usage::Client, wall)?;
    if proved.id != node.owner.identity {
        return Err(Rejected::WrongName);
    }
    Ok((proved.public_key, proved.not_after))
}
