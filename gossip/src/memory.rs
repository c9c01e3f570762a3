//! What a node remembers over its own end: the port to a disk, and what is written there.
//!
//! Entries are plain bytes under short text keys; whoever implements [`Memory`] neither reads nor
//! judges them. What comes back after a restart is hearsay like anything else: the catalogue
//! verifies it anew, as if a peer had said it.
//!
//! ```text
//! life            the highest incarnation this node may have spoken with
//! peers           addresses and identities of members that were alive
//! OWNER/n         the sealed node record of another owner, as it travelled
//! OWNER/i/ID      its sealed instance records, withdrawals included
//! OWNER/l         the newest renewal seen, when, and whether its lease has run out
//! ```
//!
//! `OWNER` is the owner's short name. This node's own records are not kept: a new life begins
//! without the old one's instances.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codec;
use crate::identity::SpiffeId;
use crate::limits::{ACQUAINTANCES_BYTES_MAX, ACQUAINTANCES_MAX};
use crate::record::{Label, Owner, Renewal};

/// A value to remember under a key, or with `None` to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key; letters, digits, `/` and what a [`Label`] may hold.
    pub key: String,
    /// The value, at most [`crate::limits::MEMORY_VALUE_BYTES_MAX`] bytes.
    pub value: Option<Vec<u8>>,
    /// How soon it should be safe.
    pub urgency: Urgency,
}

/// How soon an entry should be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// With the next writing, whenever that is: renewals come every few seconds from everybody.
    Whenever,
    /// Soon: without it a restart would bring back what is no longer so.
    Soon,
}

/// Where entries go. It never makes gossip wait for a disk, [`Memory::begin_life`] excepted.
#[async_trait]
pub trait Memory: Send + Sync + 'static {
    /// Remembers that this node speaks with `incarnation` from now on. Returns when that survives
    /// a crash, or when it is clear that it will not for now: then the implementation tells the
    /// operator, and keeps trying. Bounded in time.
    async fn begin_life(&self, incarnation: u64);

    /// Takes `entry` in to be written; replaces what waits under the same key.
    fn keep(&self, entry: Entry);
}

/// What an earlier life left, and where the next one's memories go.
pub struct Remembered {
    /// Where entries go.
    pub memory: Arc<dyn Memory>,
    /// All entries that were there at the start.
    pub entries: BTreeMap<String, Vec<u8>>,
}

/// The key of the highest incarnation: eight bytes, the most significant first.
pub const LIFE_KEY: &str = "life";

pub(crate) const PEERS_KEY: &str = "peers";

/// Where an owner's node record is filed, in its map and on disk.
pub const NODE_KEY: &str = "n";

/// Where its newest renewal is filed.
pub const LEASE_KEY: &str = "l";

/// Before an instance's id: where its record is filed.
pub const INSTANCE_PREFIX: &str = "i/";

/// What is remembered of one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RememberedOwner {
    /// Its short name.
    pub name: String,
    /// Its sealed node record.
    pub node: Vec<u8>,
    /// Its lease, if a renewal was ever written.
    pub lease: Option<RememberedLease>,
    /// Its sealed instance records, by id.
    pub instances: BTreeMap<String, Vec<u8>>,
}

/// What is remembered of an owner's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedLease {
    /// The newest renewal seen; counter 0 is none.
    pub renewal: Renewal,
    /// When the owner was heard, by this node's calendar of then.
    pub(crate) heard: WallTime,
    /// Whether its lease had run out.
    pub(crate) expired: bool,
}

/// A member that was alive: where it listened, and who must answer there.
pub(crate) type Acquaintances = BTreeMap<SocketAddr, SpiffeId>;

/// The largest encoding of a [`RememberedLease`].
const LEASE_BYTES_MAX: usize = 96;

impl Entry {
    pub(crate) fn put(owner: &str, key: &str, value: Vec<u8>, urgency: Urgency) -> Self {
        Self { key: format!("{owner}/{key}"), value: Some(value), urgency }
    }

    pub(crate) fn forget(owner: &str, key: &str) -> Self {
        Self { key: format!("{owner}/{key}"), value: None, urgency: Urgency::Soon }
    }

    pub(crate) fn lease(owner: &str, lease: &RememberedLease, urgency: Urgency) -> Self {
        Self::put(owner, LEASE_KEY, codec::encode(lease), urgency)
    }

    pub(crate) fn peers(peers: &Acquaintances) -> Self {
        let value = codec::encode(&peers.iter().collect::<Vec<_>>());
        Self { key: PEERS_KEY.to_owned(), value: Some(value), urgency: Urgency::Soon }
    }
}

pub(crate) fn instance_key(id: &Label) -> String {
    format!("{INSTANCE_PREFIX}{id}")
}

/// The incarnation that `value` stands for.
pub fn life(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// The owners among `entries`. Entries that fit nowhere are named in the second list, to be
/// forgotten.
pub fn owners(entries: &BTreeMap<String, Vec<u8>>) -> (Vec<RememberedOwner>, Vec<String>) {
    let mut owners: BTreeMap<&str, RememberedOwner> = BTreeMap::new();
    let mut misfits = Vec::new();
    for (key, value) in entries {
        if key == LIFE_KEY || key == PEERS_KEY {
            continue;
        }
        let Some((name, rest)) = key.split_once('/') else {
            misfits.push(key.clone());
            continue;
        };
        let owner = owners.entry(name).or_default();
        match rest.strip_prefix(INSTANCE_PREFIX) {
            Some(id) => drop(owner.instances.insert(id.to_owned(), value.clone())),
            None if rest == NODE_KEY => owner.node.clone_from(value),
            None if rest == LEASE_KEY => owner.lease = codec::decode::<_, LEASE_BYTES_MAX>(value).ok(),
            None => misfits.push(key.clone()),
        }
    }
    let named = owners.into_iter().map(|(name, owner)| RememberedOwner { name: name.to_owned(), ..owner });
    (named.collect(), misfits)
}

impl RememberedOwner {
    /// How long ago it was heard, by the calendar; `None` if that is not known.
    pub(crate) fn age(&self, wall: WallTime) -> Option<Duration> {
        Some(wall.since(self.lease?.heard))
    }

    /// The keys that together forget this owner.
    pub(crate) fn forgotten(&self) -> impl Iterator<Item = Entry> {
        let instances = self.instances.keys().map(|id| format!("{INSTANCE_PREFIX}{id}"));
        let keys = [NODE_KEY, LEASE_KEY].map(str::to_owned).into_iter().chain(instances);
        keys.map(|key| Entry::forget(&self.name, &key))
    }
}

/// The acquaintances among `entries`.
pub(crate) fn peers(entries: &BTreeMap<String, Vec<u8>>) -> Acquaintances {
    let value = entries.get(PEERS_KEY).map(Vec::as_slice).unwrap_or_default();
    let peers = codec::decode::<Vec<(SocketAddr, SpiffeId)>, ACQUAINTANCES_BYTES_MAX>(value);
    peers.unwrap_or_default().into_iter().take(ACQUAINTANCES_MAX).collect()
}

/// What the catalogue wants remembered, in the order it happened; bounded by being carried off
/// after every step. An owner's own records and a node without a disk note nothing.
#[derive(Default)]
pub(crate) struct Notes {
    own: Option<Owner>,
    entries: Vec<Entry>,
}

impl Notes {
    /// Notes about everybody but `own`.
    pub(crate) fn about_others_than(own: Owner) -> Self {
        Self { own: Some(own), entries: Vec::new() }
    }

    /// Notes what `entry` makes, if `owner` is somebody to remember.
    pub(crate) fn add(&mut self, owner: &Owner, entry: impl FnOnce(&str) -> Entry) {
        if self.own.as_ref().is_some_and(|own| own != owner) {
            self.entries.push(entry(&owner.short_name()));
        }
    }

    /// Notes what `entry` makes in place of the newest note under the same key.
    pub(crate) fn correct(&mut self, owner: &Owner, entry: impl FnOnce(&str) -> Entry) {
        if self.own.as_ref().is_none_or(|own| own == owner) {
            return;
        }
        let entry = entry(&owner.short_name());
        match self.entries.iter_mut().rev().find(|held| held.key == entry.key) {
            Some(held) => *held = entry,
            None => self.entries.push(entry),
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_find_their_owners_and_misfits_are_named() {
        let entries: BTreeMap<String, Vec<u8>> =
            ["life", "peers", "ab/n", "ab/i/x/y", "ab/z", "junk", "cd/l"]
                .map(|key| (key.to_owned(), key.as_bytes().to_vec()))
                .into();
        let (owners, misfits) = owners(&entries);
        assert_eq!(misfits, ["ab/z", "junk"]);
        let names: Vec<&str> = owners.iter().map(|owner| owner.name.as_str()).collect();
        assert_eq!(names, ["ab", "cd"]);
        assert_eq!(owners[0].node, b"ab/n");
        assert_eq!(owners[0].instances.keys().collect::<Vec<_>>(), ["x/y"], "an id may hold a slash");
        assert_eq!(owners[1].lease, None, "no encoding of a lease");
        let forgotten: Vec<String> = owners[0].forgotten().map(|entry| entry.key).collect();
        assert_eq!(forgotten, ["ab/n", "ab/l", "ab/i/x/y"]);
        assert!(peers(&entries).is_empty(), "no encoding of peers");
    }

    #[test]
    fn what_is_kept_reads_back() {
        let peers_before: Acquaintances =
            [("10.0.0.1:7400".parse().expect("ok"), "spiffe://acme/svc/web".parse().expect("ok"))].into();
        let entry = Entry::peers(&peers_before);
        assert_eq!(peers(&[(entry.key, entry.value.expect("a value"))].into()), peers_before);

        let lease = RememberedLease {
            renewal: Renewal { incarnation: u64::MAX, counter: u32::MAX, link: [0xff; 32] },
            heard: WallTime { unix_millis: u64::MAX },
            expired: true,
        };
        let entry = Entry::lease("ab", &lease, Urgency::Soon);
        let (owners, _) = owners(&[(entry.key, entry.value.expect("a value"))].into());
        assert_eq!(owners[0].lease, Some(lease), "the largest one fits");
        assert_eq!(life(&7_u64.to_be_bytes()), Some(7));
        assert_eq!(life(b"junk"), None);
    }
}
