//! The only file that names chitchat: the repair path, run over a [`Link`].
//!
//! chitchat reconciles one key-value map per node (Scuttlebutt), slowly and surely. Each owner's
//! map holds its sealed records as text, under the owner's short name. Everything chitchat says is
//! hearsay: any member's message can alter any map, so what comes out of here is only ever a
//! *candidate* for the catalogue, and an address it names is dialled only if a verified node record,
//! now or when this node was last not alone, or the configuration names it too.

mod own_map;

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable as _,
    FailureDetectorConfig, Heartbeat, ListenerHandle, NodeState, Serializable as _,
};
use tokio::sync::{Notify, watch};
use tracing::debug;

use crate::limits::CHANGES_QUEUED_MAX;
use crate::link::{Destination, Link};
use crate::memory::Acquaintances;
use crate::snapshot::Snapshot;
use crate::wire::{self, MapId, Unpacker, WireError};
use own_map::{MapExhausted, OwnMap};

/// chitchat's own failure detector chooses whom to gossip with, and whose map is dropped when nothing
/// was heard of it for long. Below 6 it errs often, and it adds a second per unit at the default
/// interval.
const PHI_THRESHOLD: f64 = 8.0;

/// Heartbeats its failure detector remembers per node; the mean settles long before.
const SAMPLING_WINDOW: usize = 200;

/// What a replica needs to start.
#[derive(Clone)]
pub(crate) struct ReplicaSettings {
    /// The owner's short name: this node's map.
    pub(crate) name: String,
    /// Which life of the map; later ones are greater.
    pub(crate) generation: u64,
    /// Where peers reach this node.
    pub(crate) address: SocketAddr,
    /// Keeps meshes apart.
    pub(crate) trust_domain: String,
    /// How often to reconcile with three peers.
    pub(crate) interval: Duration,
    /// How long a silent node's map is kept.
    pub(crate) dead_after: Duration,
}

/// Whom the replica may talk to.
#[derive(Clone)]
pub(crate) struct AddressBook {
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) seeds: watch::Receiver<Vec<SocketAddr>>,
    /// Members that were alive once, by where they listened.
    pub(crate) acquaintances: watch::Receiver<Arc<Acquaintances>>,
}

/// One value that changed in somebody's map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Whose map: an owner's short name, unverified.
    pub(crate) name: String,
    /// Which life of the map.
    pub(crate) generation: u64,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// Changes that nobody has looked at yet, the newest for each key: one message can set a key many
/// times, and each value may cost a signature to judge.
#[derive(Default)]
struct Changes {
    /// By map, its life, and key.
    newest: Mutex<BTreeMap<(String, u64, String), String>>,
    /// There may be some; one waiter.
    some: Notify,
    /// Some were lost, because there were too many.
    overflowed: AtomicBool,
}

/// A running chitchat.
pub(crate) struct Replica {
    handle: ChitchatHandle,
    own: OwnMap,
    changes: Arc<Changes>,
    terminated: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    _listener: ListenerHandle,
}

impl Replica {
    /// Starts reconciling over `link`.
    pub(crate) async fn start(
        settings: ReplicaSettings,
        link: Arc<dyn Link>,
        book: AddressBook,
    ) -> Result<Self, ReplicaError> {
        let guard = Guard::default();
        let transport = LinkTransport { link, book, guard: guard.clone() };
        let handle = chitchat::spawn_chitchat(configuration(settings), Vec::new(), &transport)
            .await
            .map_err(|error| ReplicaError(error.to_string()))?;
        let _ = guard.state.set(Arc::downgrade(&handle.chitchat()));
        let changes = Arc::new(Changes::default());
        let queue = changes.clone();
        // Called under chitchat's lock: hand the change over, and never wait.
        let on_change = move |event: chitchat::KeyChangeEvent<'_>| {
            queue.put(Change::new(event.node, event.key, event.value));
        };
        let listener = handle.with_chitchat(|state| state.subscribe_event("", on_change.clone())).await;
        let ended = handle.termination_watcher();
        let terminated = Box::pin(async move {
            let _ = ended.await;
        });
        Ok(Self { handle, own: OwnMap::default(), changes, terminated, _listener: listener })
    }

    /// Makes `spoken` all that this node's own map holds, whatever others made of it. Returns how
    /// many values that changed.
    pub(crate) async fn hold(&mut self, spoken: &BTreeMap<String, String>) -> Result<usize, MapExhausted> {
        let own = &mut self.own;
        self.handle.with_chitchat(|state| own.hold(state.self_node_state(), spoken)).await
    }

    /// Like [`Self::hold`]; and if others have altered the map since this was last asked, all of
    /// `spoken` is said anew.
    pub(crate) async fn hold_anew(
        &mut self,
        spoken: &BTreeMap<String, String>,
    ) -> Result<usize, MapExhausted> {
        let own = &mut self.own;
        self.handle.with_chitchat(|state| own.hold_anew(state.self_node_state(), spoken)).await
    }

    /// Reconciles with `address` now.
    pub(crate) fn gossip_with(&self, address: SocketAddr) {
        // Fails only when chitchat has ended, which `changed` reports.
        let _ = self.handle.gossip(address);
    }

    /// The next change, or `None` when chitchat has ended, which it does only by a fault: then
    /// the replica must not be asked again. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Option<Change> {
        tokio::select! {
            change = self.changes.next() => Some(change),
            () = self.terminated.as_mut() => None,
        }
    }

    /// A change that is there already.
    pub(crate) fn try_changed(&mut self) -> Option<Change> {
        self.changes.take()
    }

    /// Whether changes were lost since the last call, because their queue was full.
    pub(crate) fn take_overflowed(&self) -> bool {
        self.changes.overflowed.swap(false, atomic::Ordering::Relaxed)
    }

    /// Everything that everybody's maps hold.
    pub(crate) async fn all_values(&self) -> Vec<Change> {
        self.handle.with_chitchat(|state| all_values(state)).await
    }

    /// Whether chitchat has ended, which it does only by a fault.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.terminated.as_mut().poll(&mut context).is_ready()
    }

    /// Stops.
    pub(crate) fn stop(&self) {
        let _ = self.handle.initiate_shutdown();
    }
}

fn configuration(settings: ReplicaSettings) -> ChitchatConfig {
    ChitchatConfig {
        chitchat_id: ChitchatId::new(settings.name, settings.generation, settings.address),
        cluster_id: settings.trust_domain,
        gossip_interval: settings.interval,
        listen_addr: settings.address,
        // Our own loop resolves seeds and gossips with them.
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: PHI_THRESHOLD,
            sampling_window_size: SAMPLING_WINDOW,
            max_interval: settings.interval * 10,
            initial_interval: settings.interval * 2,
            dead_node_grace_period: settings.dead_after,
        },
        // Nothing is ever deleted: withdrawals are signed records.
        marked_for_deletion_grace_period: settings.dead_after,
        catchup_callback: None,
        // Asked only which maps to copy, each time one changes, for a watch that nobody reads here:
        // none. Whom chitchat gossips with is not its business.
        extra_liveness_predicate: Some(Box::new(|_| false)),
    }
}

fn all_values(state: &Chitchat) -> Vec<Change> {
    let of_node = |node: &chitchat::NodeState| {
        node.key_values().map(|(key, value)| Change::new(node.chitchat_id(), key, value)).collect::<Vec<_>>()
    };
    state.node_states().values().flat_map(of_node).collect()
}

impl Change {
    fn new(node: &ChitchatId, key: &str, value: &str) -> Self {
        Self {
            name: node.node_id.to_string(),
            generation: node.generation_id,
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }
}

impl Changes {
    fn put(&self, change: Change) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (change.name, change.generation, change.key);
        if newest.len() < CHANGES_QUEUED_MAX || newest.contains_key(&key) {
            newest.insert(key, change.value);
        } else {
            self.overflowed.store(true, atomic::Ordering::Relaxed);
        }
        self.some.notify_one();
    }

    fn take(&self) -> Option<Change> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let ((name, generation, key), value) = newest.pop_first()?;
        Some(Change { name, generation, key, value })
    }

    async fn next(&self) -> Change {
        loop {
            if let Some(change) = self.take() {
                return change;
            }
            self.some.notified().await;
        }
    }
}

/// chitchat did not start.
#[derive(Debug, thiserror::Error)]
#[error("the repair path cannot start: {0}")]
pub struct ReplicaError(String);

/// Bytes as maps hold them: chitchat's values are text.
pub fn to_text(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// A text value's bytes; `None` if it is no encoding of ours.
pub(crate) fn from_text(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// Looks at messages before chitchat does, with what chitchat holds already.
#[derive(Clone, Default)]
struct Guard {
    /// Set as soon as chitchat has started. Not locked while chitchat waits for a message.
    state: Arc<OnceLock<Weak<tokio::sync::Mutex<Chitchat>>>>,
}

impl Guard {
    /// The message as chitchat may have it.
    async fn admit(&self, message: &[u8], unpacker: &mut Unpacker) -> Result<ChitchatMessage, GuardError> {
        let state = self.state.get().and_then(Weak::upgrade).ok_or(GuardError::NotReady)?;
        let mut state = state.lock().await;
        let mut held = Held::of(&state);
        let own = state.self_chitchat_id();
        let mut own_heartbeat = 0;
        // Of what chitchat holds and what is let in; nearly every digest names nothing new.
        let mut digest_bytes = None;
        let mut left_out = 0;
        let admits = |map: &MapId<'_>, heartbeat: u64| {
            if order(own, map) == Ordering::Equal {
                own_heartbeat = heartbeat.max(own_heartbeat);
            }
            if held.has(map) {
                return true;
            }
            let digest_bytes = digest_bytes.get_or_insert_with(|| self::digest_bytes(&state));
            let has_room = *digest_bytes + map.digest_bytes() <= wire::DIGEST_BYTES_MAX;
            *digest_bytes += if has_room { map.digest_bytes() } else { 0 };
            left_out += u64::from(!has_room);
            has_room
        };
        let admitted = wire::inspect(message, unpacker, admits)?;
        outrun(&mut state, own_heartbeat);
        metrics::counter!("starling_gossip_maps_left_out_total").increment(left_out);
        ChitchatMessage::deserialize(&mut admitted.as_ref()).map_err(GuardError::Malformed)
    }
}

/// Any member may have raised this node's heartbeat in others' eyes, or made it begin anew here: lower
/// ones would count no more, so this node goes on from the highest that is told of it.
fn outrun(state: &mut Chitchat, heard: u64) {
    if heard > state.self_node_state().heartbeat().into()
        && let Ok(heartbeat) = Heartbeat::deserialize(&mut heard.to_le_bytes().as_slice())
    {
        state.self_node_state().try_set_heartbeat(heartbeat);
    }
}

/// The maps that chitchat holds. An honest digest is in their order, so that one is found beside the
/// last, and no key is made to look it up with.
struct Held<'a> {
    state: &'a Chitchat,
    /// Those before it have been passed.
    rest: Peekable<btree_map::Keys<'a, ChitchatId, NodeState>>,
    passed: Option<&'a ChitchatId>,
}

impl<'a> Held<'a> {
    fn of(state: &'a Chitchat) -> Self {
        Self { state, rest: state.node_states().keys().peekable(), passed: None }
    }

    fn has(&mut self, map: &MapId<'_>) -> bool {
        while let Some(id) = self.rest.next_if(|id| order(id, map) != Ordering::Greater) {
            self.passed = Some(id);
            if order(id, map) == Ordering::Equal {
                return true;
            }
        }
        // Between the last that was passed and the next, unless the digest went back.
        self.passed.is_some_and(|passed| order(passed, map) != Ordering::Less)
            && self.state.node_state(&ChitchatId::new(map.name, map.generation, map.address)).is_some()
    }
}

/// As chitchat orders maps.
fn order(id: &ChitchatId, map: &MapId<'_>) -> Ordering {
    let (name, address) = (id.node_id.as_ref(), &id.gossip_advertise_addr);
    name.cmp(map.name).then(id.generation_id.cmp(&map.generation)).then_with(|| address.cmp(&map.address))
}

/// What this node's own digest takes, count and departed maps aside.
fn digest_bytes(state: &Chitchat) -> usize {
    let entry = |id: &ChitchatId| wire::entry_bytes(id.node_id.len(), id.gossip_advertise_addr);
    state.node_states().keys().map(entry).sum()
}

/// Why chitchat does not get a message.
#[derive(Debug, thiserror::Error)]
enum GuardError {
    /// It comes before chitchat runs.
    #[error("the repair path is only starting")]
    NotReady,
    /// It could do harm.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// chitchat cannot read it.
    #[error("{0}")]
    Malformed(anyhow::Error),
}

struct LinkTransport {
    link: Arc<dyn Link>,
    book: AddressBook,
    guard: Guard,
}

#[async_trait]
impl Transport for LinkTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (link, book, guard) = (self.link.clone(), self.book.clone(), self.guard.clone());
        Ok(Box::new(LinkSocket { link, book, guard, unpacker: Unpacker::default() }))
    }
}

struct LinkSocket {
    link: Arc<dyn Link>,
    book: AddressBook,
    guard: Guard,
    unpacker: Unpacker,
}

impl AddressBook {
    /// Whom a message to `address` may be for. A member may claim another's address; that must not
    /// keep messages from the other, so a seed, and whatever several claim, is anybody's to answer.
    fn destination(&self, address: SocketAddr) -> Destination {
        if self.seeds.borrow().contains(&address) {
            return Destination::Seed(address);
        }
        let snapshot = self.snapshots.borrow();
        let mut claims = snapshot.addresses.get(&address).into_iter().flatten();
        match (claims.next(), claims.next()) {
            (None, _) => match self.acquaintances.borrow().get(&address) {
                Some(identity) => Destination::Member { address, identity: identity.clone() },
                None => Destination::Connected(address),
            },
            (Some(identity), None) => Destination::Member { address, identity: identity.clone() },
            (Some(_), Some(_)) => Destination::Seed(address),
        }
    }
}

#[async_trait]
impl Socket for LinkSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.link.send(self.book.destination(to), message.serialize_to_vec());
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        while let Some(received) = self.link.recv().await {
            match self.guard.admit(&received.message, &mut self.unpacker).await {
                Ok(message) => return Ok((received.from, message)),
                Err(error) => {
                    metrics::counter!("starling_gossip_malformed_total").increment(1);
                    debug!(peer = %received.peer, %error, "gossip message dropped");
                }
            }
        }
        // The link is closed: the node is stopping. chitchat's loop ends when it is told to.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chitchat::{DeletionStatus, VersionedValue};

    fn id(number: u8) -> ChitchatId {
        let address = SocketAddr::from(([192, 0, 2, number % 3], 7400));
        ChitchatId::new(format!("{:016x}", number / 4), u64::from(number % 2), address)
    }

    #[test]
    fn a_digest_in_any_order_finds_what_is_held() {
        let settings = ReplicaSettings {
            name: "00000000000000ff".to_owned(),
            generation: 1,
            address: SocketAddr::from(([192, 0, 2, 9], 7400)),
            trust_domain: "acme".to_owned(),
            interval: Duration::from_secs(1),
            dead_after: Duration::from_secs(240),
        };
        let (_seeds, no_seeds) = watch::channel(Default::default());
        let mut state = Chitchat::with_chitchat_id_and_seeds(configuration(settings), no_seeds, Vec::new());
        for number in (0..48).step_by(3) {
            let value = VersionedValue { value: String::new(), version: 1, status: DeletionStatus::Set };
            state.reset_node_state_if_update(&id(number), [("n".to_owned(), value)].into_iter(), 1, 0);
        }
        let upwards: Vec<u8> = (0..48).collect();
        let downwards = upwards.iter().rev().copied().collect();
        let mixed = (0..96).map(|step: u8| step.wrapping_mul(29) % 48).collect();
        for order in [upwards, downwards, mixed] {
            let mut held = Held::of(&state);
            for number in order {
                let id = id(number);
                let (name, address) = (id.node_id.as_ref(), id.gossip_advertise_addr);
                let map = MapId { name, generation: id.generation_id, address };
                assert_eq!(held.has(&map), state.node_state(&id).is_some(), "{number}");
            }
        }
    }
}
