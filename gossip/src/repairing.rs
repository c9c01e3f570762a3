//! The repair path at work: messages in, exchanges out, and chitchat kept as the catalogue is.
//!
//! Before chitchat hears or says anything it is given what the catalogue has learned since; so what news
//! has brought is not exchanged once more. Maps of the departed stay in it until there are many; then it is
//! begun anew, with those of the present.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tracing::{error, warn};

use crate::catalogue::{Applied, Catalogue};
use crate::clock::{Clock, Instant};
use crate::codec;
use crate::guard::{Judge, MapOwner, Maps, admit};
use crate::memory::{LEASE_KEY, NODE_KEY, instance_key};
use crate::post::Post;
use crate::record::Renewal;
use crate::replica::{Replica, ReplicaError, ReplicaSettings, from_text, to_text};
use crate::signature::SealedRecord;
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
    is_full: bool,
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
            is_full: false,
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
        self.replica.put_own_renewal(LEASE_KEY, &to_text(&codec::encode(renewal))).await;
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

    /// Begins an exchange with `address`.
    pub(crate) async fn gossip_with(&mut self, address: SocketAddr, catalogue: &Catalogue, now: Instant) {
        self.follow(catalogue, now).await;
        self.replica.gossip_with(address);
    }

    /// A message came from `from`. What it says that is new is in the catalogue then, and in the answer.
    pub(crate) async fn handle_message(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        catalogue: &mut Catalogue,
        clock: &Clock,
        is_talker: impl Fn(u64) -> bool,
    ) -> Result<Vec<Learned>, WireError> {
        let exchange = Exchange::read(message, &mut self.unpacker)?;
        let own = self.settings.own;
        let mut offers = Offers { catalogue, clock, is_talker, learned: Vec::new(), own: own.owner };
        let admitted = admit(exchange, &own, &mut offers, &mut self.maps);
        let learned = offers.learned;
        for (reason, count) in admitted.refused {
            counter!("starling_gossip_hearsay_refused_total", "reason" => reason).increment(count);
        }
        self.follow(catalogue, clock.now()).await;
        let nothing_left = admitted.exchange.step == Step::Ack && admitted.exchange.delta.is_empty();
        if !nothing_left && !self.replica.hear(from, &admitted.exchange.write()) {
            return Err(WireError::Unknown("a message"));
        }
        Ok(learned)
    }

    /// Gives chitchat what the catalogue has learned.
    async fn follow(&mut self, catalogue: &Catalogue, now: Instant) {
        let present = catalogue.present();
        let (maps, bytes) = self.replica.size().await;
        if maps > present + DEPARTED_MAX.max(present / 4) {
            self.maps.retain(|owner| {
                catalogue.node_of(owner).is_some_and(|(_, _, presence)| presence.is_present())
            });
            self.restart().await;
        }
        let mut room = DIGEST_BYTES_MAX.saturating_sub(bytes);
        self.is_full = false;
        for (owner, generation, through) in self.maps.take_changed() {
            let Some(shared) = catalogue.shared(owner) else { continue };
            let is_current = shared.node.version.incarnation == generation && shared.presence.is_present();
            if !is_current {
                continue;
            }
            let map = MapId { owner, generation, address: shared.node.addresses[0] };
            let known = shared.records.iter();
            let known = known
                .filter(|(_, version, _)| version.incarnation == generation && version.version <= through);
            let values: Vec<_> = known
                .map(|(key, version, sealed)| (map_key(key), to_text(sealed), version.version))
                .collect();
            if map.digest_bytes() > room {
                self.is_full = true;
                continue;
            }
            room -= map.digest_bytes();
            self.replica.put(&map, &values).await;
        }
        if self.is_full && now >= self.next_warning {
            self.next_warning = now + OVERFULL_WARNED_PERIOD;
            warn!(
                members = present,
                carried = maps,
                "the mesh has more members than the repair path carries: news and joining still reach everybody, but \
                 what news misses is repaired for some of them only; divide the mesh into several"
            );
        }
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

    /// Begins chitchat anew. The catalogue stands.
    pub(crate) async fn restart(&mut self) {
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
        if value.key == LEASE_KEY {
            let Ok(renewal) = codec::decode::<Renewal, 64>(&bytes) else { return false };
            let applied = self.catalogue.apply_renewal(&name, &renewal, now, wall);
            if applied.is_ok() {
                self.learned.push(Learned::Renewal(map.owner, renewal));
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
