//! The repair path at work: messages in, exchanges out, and chitchat kept as the catalogue is.
//!
//! Before chitchat hears or says anything it is given what the catalogue has learned since; so what news
//! has brought is not exchanged once more. Maps of the departed stay in it until there are many; then it is
//! begun anew, with those of the present.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tracing::{error, warn};

use crate::allowance::Allowance;
use crate::catalogue::{Applied, Catalogue};
use crate::clock::{Clock, Instant};
use crate::codec;
use crate::guard::{Judge, MapOwner, Maps, admit};
use crate::lease::hashes_of;
use crate::limits::VAIN_SIGNATURE_HASHES;
use crate::memory::{LEASE_KEY, NODE_KEY, instance_key};
use crate::post::Post;
use crate::record::Renewal;
use crate::rejection::Rejected;
use crate::replica::{Replica, ReplicaError, ReplicaSettings, from_text, to_text};
use crate::signature::SealedRecord;
use crate::snapshot::Presence;
use crate::talk::{Filed, Key, short_name};
use crate::wire::{DIGEST_BYTES_MAX, Exchange, MapId, Step, Unpacker, Value, WireError};

/// chitchat is begun anew when it holds so many maps more than there are members, and a quarter more.
const DEPARTED_MAX: usize = 64;

/// How often it is said that the mesh has grown past what the repair path carries.
const OVERFULL_WARNED_PERIOD: Duration = Duration::from_secs(60);

/// How long until a chitchat that does not start is tried again.
const RESTART_PERIOD: Duration = Duration::from_millis(250);

/// A record or renewal that came over the repair path and was new.
pub(crate) enum Learned {
    Record(Filed, Arc<[u8]>),
    Renewal(u64, Renewal),
    /// A later life of this node may have said this.
    OwnWord(Vec<u8>),
}

/// See the module.
pub(crate) struct Repairing {
    replica: Replica,
    settings: ReplicaSettings,
    post: Arc<Post>,
    maps: Maps,
    unpacker: Unpacker,
    /// This node's own map: what each key says, under which version.
    spoken: BTreeMap<String, (u64, String)>,
    next_warning: Instant,
    is_classic: bool,
}

impl Repairing {
    pub(crate) async fn start(
        settings: ReplicaSettings,
        post: Arc<Post>,
        now: Instant,
    ) -> Result<Self, ReplicaError> {
        Ok(Self {
            replica: Replica::start(settings.clone(), post.clone()).await?,
            settings,
            post,
            maps: Maps::default(),
            unpacker: Unpacker::default(),
            spoken: BTreeMap::new(),
            next_warning: now,
            is_classic: false,
        })
    }

    /// This node says this record.
    pub(crate) async fn say(&mut self, key: String, version: u64, sealed: &[u8]) {
        let text = to_text(sealed);
        self.replica.put_own(&key, &text, version).await;
        self.spoken.insert(key, (version, text));
    }

    /// This node renews its lease: members of an earlier version read it in its map.
    pub(crate) async fn say_renewal(&mut self, renewal: &Renewal) {
        let newest = self.spoken.values().map(|(version, _)| *version).max().unwrap_or_default();
        let (version, text) = renewal_value(newest, renewal);
        self.replica.put_own(LEASE_KEY, &text, version).await;
    }

    /// Members of an earlier version are present, or no longer.
    pub(crate) fn set_classic(&mut self, is_classic: bool) {
        if is_classic && !self.is_classic {
            // Renewals go with records from now on.
            self.maps.mark_all();
        }
        self.is_classic = is_classic;
    }

    /// `owner` renewed its lease, which members of an earlier version are to hear.
    pub(crate) fn handle_renewal(&mut self, owner: u64) {
        if self.is_classic {
            self.maps.mark(owner);
        }
    }

    /// Shows members of an earlier version that this node's chitchat lives.
    pub(crate) fn beat(&self) {
        self.replica.beat(self.settings.own.address);
    }

    /// This node lives on as another incarnation, and so does its map.
    pub(crate) async fn begin_life(&mut self, incarnation: u64) {
        if self.settings.own.generation != incarnation {
            self.settings.own.generation = incarnation;
            self.spoken.clear();
            self.restart().await;
        }
    }

    /// A record is in the catalogue.
    pub(crate) fn handle_record(&mut self, filed: &Filed) {
        let version = filed.version;
        if filed.owner != self.settings.own.owner {
            self.maps.handle_record(filed.owner, version.incarnation, version.version);
        }
    }

    /// Somebody who knows all of an owner's records has told them, up to this one.
    pub(crate) fn handle_all(&mut self, newest: &Filed) {
        let version = newest.version;
        if newest.owner != self.settings.own.owner {
            self.maps.handle_run(newest.owner, version.incarnation, 0, version.version);
        }
    }

    /// Begins an exchange with `address`.
    pub(crate) async fn gossip_with(&mut self, address: SocketAddr, catalogue: &Catalogue, now: Instant) {
        self.follow(catalogue, now).await;
        self.replica.gossip_with(address);
    }

    /// A message came from `from`. What it says that is new is in the catalogue then, and in the answer. What proves
    /// nothing is taken from `vain_hashes`, and nothing is looked at once they are used up.
    pub(crate) async fn handle_message(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        catalogue: &mut Catalogue,
        clock: &Clock,
        vain_hashes: &mut Allowance,
        is_talker: impl Fn(u64) -> bool,
    ) -> Result<Vec<Learned>, WireError> {
        let exchange = Exchange::read(message, &mut self.unpacker)?;
        let own = self.settings.own;
        let mut offers =
            Offers { catalogue, clock, vain_hashes, is_talker, learned: Vec::new(), own: own.owner };
        let admitted = admit(exchange, &own, &mut offers, &mut self.maps);
        let learned = offers.learned;
        for (reason, count) in admitted.refused {
            counter!("starling_gossip_hearsay_refused_total", "reason" => reason).increment(count);
        }
        let mut room = self.follow(catalogue, clock.now()).await;
        let mut exchange = admitted.exchange;
        // Whatever is named in it has a map in chitchat from then on.
        exchange.digest.retain(|entry| room.admits(&entry.map));
        exchange.delta.retain(|map| room.admits(&map.map));
        let nothing_left = exchange.step == Step::Ack && exchange.delta.is_empty();
        if !nothing_left && !self.replica.hear(from, &exchange.write()) {
            return Err(WireError::Unknown("a message"));
        }
        Ok(learned)
    }

    /// Gives chitchat what the catalogue has learned. Returns what room there is for more.
    async fn follow(&mut self, catalogue: &Catalogue, now: Instant) -> Room {
        let present = catalogue.present();
        let mut held = self.replica.held().await;
        // Members of an earlier version would take the same life's heart for stopped.
        if !self.is_classic && held.len() > present + DEPARTED_MAX.max(present / 4) {
            let is_present = |presence: Presence| presence.is_present();
            self.maps.retain(|owner| catalogue.node_of(owner).is_some_and(|(.., it)| is_present(it)));
            self.restart().await;
            held = self.replica.held().await;
        }
        let mut room = Room::beside(held);
        for (owner, generation, through) in self.maps.take_changed() {
            let Some(shared) = catalogue.shared(owner).filter(|shared| is_talker(&shared.node)) else {
                continue;
            };
            let is_current = shared.node.version.incarnation == generation;
            if !is_current || shared.presence == Presence::Expired {
                continue;
            }
            let map = MapId { owner, generation, address: shared.node.addresses[0] };
            if !room.admits(&map) {
                self.maps.mark(owner);
                continue;
            }
            let known = shared.records.iter();
            let known = known
                .filter(|(_, version, _)| version.incarnation == generation && version.version <= through);
            let mut values: Vec<_> = known
                .map(|(key, version, sealed)| (map_key(key), to_text(sealed), version.version))
                .collect();
            if let Some(renewal) = catalogue.renewal_of(owner).filter(|_| self.is_classic) {
                let newest = values.iter().map(|(_, _, version)| *version).max().unwrap_or_default();
                let (version, text) = renewal_value(newest, &renewal);
                values.push((LEASE_KEY.to_owned(), text, version));
            }
            self.replica.put(&map, &values).await;
        }
        if room.is_full && now >= self.next_warning {
            self.next_warning = now + OVERFULL_WARNED_PERIOD;
            warn!(
                members = present,
                carried = room.held.len(),
                "the mesh has more members than the repair path carries: news and joining still reach everybody, but \
                 what news misses is repaired for some of them only; divide the mesh into several"
            );
        }
        room
    }

    /// Resolves when chitchat has ended by a fault of its own.
    pub(crate) async fn ended(&mut self) {
        self.replica.ended().await;
    }

    /// Whether chitchat has ended.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn has_ended(&mut self) -> bool {
        self.replica.has_ended()
    }

    /// Begins chitchat anew, for it ended, or the catalogue has forgotten some.
    pub(crate) async fn begin_anew(&mut self, catalogue: &Catalogue) {
        self.maps.retain(|owner| catalogue.node_of(owner).is_some());
        self.restart().await;
    }

    async fn restart(&mut self) {
        self.replica.stop();
        self.replica = loop {
            match Replica::start(self.settings.clone(), self.post.clone()).await {
                Ok(replica) => break replica,
                Err(reason) => error!(%reason, "the repair path does not start; trying again"),
            }
            tokio::time::sleep(RESTART_PERIOD).await;
        };
        self.maps.mark_all();
        let mut spoken: Vec<_> = self.spoken.iter().collect();
        spoken.sort_by_key(|(_, (version, _))| *version);
        for (key, (version, text)) in spoken {
            self.replica.put_own(key, text, *version).await;
        }
    }

    pub(crate) fn stop(&self) {
        self.replica.stop();
    }
}

/// What chitchat holds, and how much more it may.
struct Room {
    held: BTreeSet<MapId>,
    bytes: usize,
    is_full: bool,
}

impl Room {
    fn beside(held: BTreeSet<MapId>) -> Self {
        let taken = held.iter().map(MapId::digest_bytes).sum();
        Self { held, bytes: DIGEST_BYTES_MAX.saturating_sub(taken), is_full: false }
    }

    /// Whether `map` is held or may be, and then it is.
    fn admits(&mut self, map: &MapId) -> bool {
        if self.held.contains(map) {
            return true;
        }
        let Some(left) = self.bytes.checked_sub(map.digest_bytes()) else {
            self.is_full = true;
            return false;
        };
        self.bytes = left;
        self.held.insert(*map);
        true
    }
}

/// A renewal as members of an earlier version read it, in a map whose newest record has version `newest`: the same on
/// every node, and greater with each renewal.
fn renewal_value(newest: u64, renewal: &Renewal) -> (u64, String) {
    (newest + u64::from(renewal.counter), to_text(&codec::encode(renewal)))
}

/// Where a record is filed in its owner's map.
pub(crate) fn map_key(key: &Key) -> String {
    match key {
        Key::Node => NODE_KEY.to_owned(),
        Key::Instance(id) => instance_key(id),
    }
}

/// The catalogue as a judge of maps.
struct Offers<'a, T> {
    catalogue: &'a mut Catalogue,
    clock: &'a Clock,
    /// What the sender may still have looked at in vain.
    vain_hashes: &'a mut Allowance,
    is_talker: T,
    learned: Vec<Learned>,
    /// This node's own name; what others say in it is not believed, and told.
    own: u64,
}

impl<T: Fn(u64) -> bool> Judge for Offers<'_, T> {
    fn owner(&self, owner: u64) -> Option<MapOwner> {
        let (_, node, presence) = self.catalogue.node_of(owner)?;
        Some(MapOwner {
            is_talker: (self.is_talker)(owner) || is_talker(node),
            incarnation: node.version.incarnation,
            addresses: node.addresses.clone(),
            is_present: presence.is_present(),
        })
    }

    fn offer(&mut self, map: &MapId, value: &Value) -> bool {
        let name = short_name(map.owner);
        let bytes = from_text(&value.text).unwrap_or_default();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        if map.owner == self.own {
            self.learned.push(Learned::OwnWord(bytes));
            return false;
        }
        if !self.vain_hashes.has_some(now) {
            counter!("starling_gossip_over_budget_total").increment(1);
            return false;
        }
        if value.key == LEASE_KEY {
            let Ok(renewal) = codec::decode::<Renewal, 64>(&bytes) else { return false };
            let before = self.catalogue.counter_of(map.owner);
            let applied = self.catalogue.apply_renewal(&name, &renewal, now, wall);
            if applied.is_ok() {
                self.learned.push(Learned::Renewal(map.owner, renewal));
            }
            if applied == Err(Rejected::BadRenewal) {
                self.vain_hashes.spend(hashes_of(&renewal, before).into(), now);
            }
            return applied.is_ok()
                || self.catalogue.renewal_of(map.owner).is_some_and(|it| it.counter >= renewal.counter);
        }
        let Some((sealed, record)) = SealedRecord::from_bytes(&bytes)
            .ok()
            .and_then(|sealed| sealed.unverified().ok().map(|record| (sealed, record)))
            .filter(|(_, record)| record.owner().short_name() == name)
        else {
            return false;
        };
        let filed = Filed::of(&record);
        let is_versioned = filed.version.version == value.version && map_key(&filed.key) == value.key;
        match self.catalogue.apply_record(&sealed, record, now, wall) {
            Ok(Applied::Accepted) => {
                self.learned.push(Learned::Record(filed, bytes.into()));
                is_versioned
            }
            Ok(Applied::Waiting) => false,
            Err(rejected) => {
                let is_held = self.catalogue.holds(&filed, &bytes);
                if !is_held {
                    if !matches!(rejected, Rejected::Stale | Rejected::UnknownOwner) {
                        self.vain_hashes.spend(VAIN_SIGNATURE_HASHES, now);
                    }
                    counter!("starling_gossip_rejected_total", "reason" => rejected.reason()).increment(1);
                }
                is_held && is_versioned
            }
        }
    }
}

/// Whether who says this of itself speaks as this program does.
pub(crate) fn is_talker(node: &crate::record::NodeRecord) -> bool {
    node.capabilities.iter().any(|capability| capability.as_str() == crate::versions::TALK_CAPABILITY)
}
