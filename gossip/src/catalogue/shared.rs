//! What of the catalogue is passed on: records as they travelled, digests of them, leases and their ages.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};

use super::Catalogue;
use crate::clock::{Instant, WallTime};
use crate::known::{Known, verify_chain};
use crate::record::{NodeRecord, Owner, Record, Renewal, Version};
use crate::renewing::{SILENCE_TENTHS, Silent};
use crate::signature::SealedRecord;
use crate::snapshot::Presence;
use crate::talk::{Filed, Key, ReportedLease};

/// One owner's records, for its map on the repair path.
pub(crate) struct Shared {
    pub(crate) node: Arc<NodeRecord>,
    pub(crate) presence: Presence,
    /// Its records as they travelled: key and version.
    pub(crate) records: Vec<(Key, Version, Arc<[u8]>)>,
}

impl Catalogue {
    /// A digest of what present owners say, equal on nodes that know the same of the same.
    pub(crate) fn knows(&mut self) -> u64 {
        if let Some(knows) = self.knows {
            return knows;
        }
        let mut context = Context::new(&SHA256);
        for known in self.owners.values().filter(|known| known.presence.is_present()) {
            context.update(known.short_name.as_bytes());
            let mut add = |version: Version| {
                context.update(&version.incarnation.to_be_bytes());
                context.update(&version.version.to_be_bytes());
            };
            add(known.node.version);
            // Versions grow with each record, so they name the instances too.
            known.instances.values().for_each(|held| add(held.version));
        }
        let digest = context.finish();
        let (first, _) = digest.as_ref().split_first_chunk().expect("a SHA-256 has more than 8 bytes");
        let knows = u64::from_be_bytes(*first);
        self.knows = Some(knows);
        knows
    }

    /// The incarnation of a node record that proves itself, and is not taken in.
    pub(crate) fn life_proved_by(&self, bytes: &[u8], wall: WallTime) -> Option<u64> {
        let sealed = SealedRecord::from_bytes(bytes).ok()?;
        let Record::Node(node) = sealed.unverified().ok()? else { return None };
        let (key, _) = verify_chain(&self.bundle, &node, wall).ok()?;
        sealed.is_signed_by(&key, &self.bundle).then_some(node.version.incarnation)
    }

    /// Whether [`Catalogue::poll_snapshot`] would have something.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    /// The record that `filed` names, or a newer word of it, as it travelled.
    pub(crate) fn record(&self, filed: &Filed) -> Option<Arc<[u8]>> {
        let known = self.known(filed.owner)?;
        let (version, sealed) = match &filed.key {
            Key::Node => (known.node.version, &known.sealed),
            Key::Instance(id) => known.instances.get(id).map(|held| (held.version, &held.sealed))?,
        };
        (version >= filed.version).then(|| sealed.clone())
    }

    /// Whether these bytes, found under that name, are what is known already.
    pub(crate) fn holds(&self, filed: &Filed, bytes: &[u8]) -> bool {
        self.record(filed).is_some_and(|held| *held == *bytes)
    }

    /// One owner's node record and presence.
    pub(crate) fn node_of(&self, owner: u64) -> Option<(&Owner, &Arc<NodeRecord>, Presence)> {
        let name = self.by_short_name.get(&owner)?;
        let known = self.owners.get(name)?;
        Some((name, &known.node, known.presence))
    }

    /// The short name of an owner that is known.
    pub(crate) fn name_of(&self, owner: &Owner) -> Option<u64> {
        self.owners.get(owner).map(|known| known.name)
    }

    /// The newest word that is known of the record which `filed` names.
    pub(crate) fn version_filed(&self, filed: &Filed) -> Option<Version> {
        let known = self.known(filed.owner)?;
        match &filed.key {
            Key::Node => Some(known.node.version),
            Key::Instance(id) => known.instances.get(id).map(|held| held.version),
        }
    }

    /// How often `owner` has renewed its present chain.
    pub(crate) fn counter_of(&self, owner: u64) -> u32 {
        self.known(owner).map_or(0, |known| known.seen.counter())
    }

    /// All of one owner's records.
    pub(crate) fn shared(&self, owner: u64) -> Option<Shared> {
        Some(shared(self.known(owner)?))
    }

    /// The short names of all owners.
    pub(crate) fn names(&self) -> impl Iterator<Item = u64> {
        self.owners.values().map(|known| known.name)
    }

    /// All that people are still shown: for each owner its sealed records, the node record first.
    pub(crate) fn everything(&self) -> impl Iterator<Item = Vec<Arc<[u8]>>> {
        let shown = self.owners.values().filter(|known| known.is_shown);
        shown.map(|known| {
            let instances = known.instances.values().map(|held| held.sealed.clone());
            [known.sealed.clone()].into_iter().chain(instances).collect()
        })
    }

    /// How long ago each of them was heard. Who has left has no lease.
    pub(crate) fn leases(&self, now: Instant) -> Vec<ReportedLease> {
        let shown = self.owners.values().filter(|known| known.is_shown && known.presence != Presence::Left);
        let lease = |known: &Known| {
            let silent =
                now.saturating_duration_since(known.renewed_at) + known.remembered.unwrap_or_default();
            ReportedLease {
                owner: known.name,
                renewal: known.newest_link().renewal(known.node.version.incarnation),
                age_millis: u32::try_from(silent.as_millis()).unwrap_or(u32::MAX),
            }
        };
        shown.map(lease).collect()
    }

    /// The newest renewal of `owner`, if one is known.
    pub(crate) fn renewal_of(&self, owner: u64) -> Option<Renewal> {
        let known = self.known(owner)?;
        let renewal = known.seen.renewal(known.node.version.incarnation);
        (renewal.counter > 0 && known.presence.is_present()).then_some(renewal)
    }

    /// Present owners other than `own` that have been silent for longer than they mean to be.
    pub(crate) fn silent(&self, own: u64, now: Instant) -> Vec<Silent> {
        let present = self.owners.values().filter(|known| known.presence.is_present() && known.name != own);
        let silent = |known: &Known| {
            let silent = now.saturating_duration_since(known.renewed_at);
            let renew = Duration::from_millis(known.node.lease.renew_millis.into());
            (silent * 10 > renew * SILENCE_TENTHS).then_some(Silent {
                owner: known.name,
                incarnation: known.node.version.incarnation,
                counter: known.seen.counter(),
                renew,
                silent,
            })
        };
        present.filter_map(silent).collect()
    }

    pub(super) fn known(&self, owner: u64) -> Option<&Known> {
        self.owners.get(self.by_short_name.get(&owner)?)
    }
}

fn shared(known: &Known) -> Shared {
    let node = (Key::Node, known.node.version, known.sealed.clone());
    let instances = known.instances.iter();
    let instances =
        instances.map(|(id, held)| (Key::Instance(id.clone()), held.version, held.sealed.clone()));
    Shared {
        node: known.node.clone(),
        presence: known.presence,
        records: [node].into_iter().chain(instances).collect(),
    }
}
