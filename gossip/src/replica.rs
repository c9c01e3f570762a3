//! The only file that names chitchat: the repair path.
//!
//! chitchat reconciles one key-value map per node (Scuttlebutt), slowly and surely. Each owner's map holds its
//! sealed records as text, under the owner's short name. chitchat never sees a message as it came: what
//! [`crate::guard`] leaves of one is handed in, and what the catalogue has verified is put into its maps; and it
//! sends through [`Post`]. It begins nothing by itself: the loop says with whom it is to exchange.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, DeletionStatus, Deserializable as _,
    FailureDetectorConfig, Serializable as _, VersionedValue,
};
use tokio::sync::{Mutex, mpsc, watch};

use crate::link::Destination;
use crate::memory::Acquaintances;
use crate::post::Post;
use crate::snapshot::Snapshot;
use crate::talk::{number, short_name};
use crate::wire::{Exchange, MapId, Step};

/// How often chitchat looks for somebody to exchange with by itself: never, as lives of processes go.
const OWN_ROUNDS: Duration = Duration::from_secs(365 * 86_400);

/// chitchat's own failure detector would decide whom it gossips with by itself.
const PHI_THRESHOLD: f64 = 8.0;

/// Heartbeats its failure detector remembers per node; the mean settles long before.
const SAMPLING_WINDOW: usize = 200;

/// Maps of the departed are let go of by beginning anew, not one by one: see [`crate::repairing`].
const KEPT: Duration = Duration::from_secs(365 * 86_400);

/// Messages that chitchat has not taken yet; more are dropped, for exchanges are begun again.
const HEARD_MAX: usize = 64;

/// What a replica needs to start.
#[derive(Clone)]
pub(crate) struct ReplicaSettings {
    /// This node's map.
    pub(crate) own: MapId,
    /// Keeps meshes apart.
    pub(crate) trust_domain: String,
    /// How often members of an earlier version expect a heartbeat.
    pub(crate) interval: Duration,
}

/// Whom gossip may talk to.
#[derive(Clone)]
pub(crate) struct AddressBook {
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) seeds: watch::Receiver<Vec<SocketAddr>>,
    /// Members that were alive once, by where they listened.
    pub(crate) acquaintances: watch::Receiver<Arc<Acquaintances>>,
}

/// A running chitchat.
pub(crate) struct Replica {
    handle: ChitchatHandle,
    post: Arc<Post>,
    heard: mpsc::Sender<(SocketAddr, ChitchatMessage)>,
    terminated: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

/// chitchat did not start.
#[derive(Debug, thiserror::Error)]
#[error("the repair path cannot start: {0}")]
pub struct ReplicaError(String);

impl Replica {
    /// Starts, with an empty map.
    pub(crate) async fn start(settings: ReplicaSettings, post: Arc<Post>) -> Result<Self, ReplicaError> {
        let (heard, inbox) = mpsc::channel(HEARD_MAX);
        let transport = PostTransport { post: post.clone(), inbox: Arc::new(Mutex::new(inbox)) };
        let handle = chitchat::spawn_chitchat(configuration(settings), Vec::new(), &transport)
            .await
            .map_err(|error| ReplicaError(error.to_string()))?;
        let ended = handle.termination_watcher();
        let terminated = Box::pin(async move {
            let _ = ended.await;
        });
        Ok(Self { handle, post, heard, terminated })
    }

    /// Puts one of this node's records into its own map, under the version that it signed.
    pub(crate) async fn put_own(&self, key: &str, text: &str, version: u64) {
        let put = |state: &mut chitchat::Chitchat| {
            let own = state.self_node_state();
            own.set_max_version(version.saturating_sub(1).max(own.max_version()));
            own.set(key, text);
        };
        self.handle.with_chitchat(put).await;
    }

    /// Its heart beats, for members of an earlier version. It does with each message that it takes in, also an empty
    /// one.
    pub(crate) fn beat(&self, own: SocketAddr) {
        let nothing =
            Exchange { step: Step::Ack, cluster: String::new(), digest: Vec::new(), delta: Vec::new() };
        self.hear(own, &nothing.write());
    }

    /// Makes `map` hold these values and no others, unless it holds newer ones.
    pub(crate) async fn put(&self, map: &MapId, values: &[(String, String, u64)]) {
        let id = chitchat_id(map);
        let Some(newest) = values.iter().map(|(_, _, version)| *version).max() else { return };
        let put = |state: &mut chitchat::Chitchat| {
            // It insists on growing.
            if state.node_state(&id).is_some_and(|held| held.max_version() >= newest) {
                return;
            }
            let values = values.iter().map(|(key, text, version)| {
                let status = DeletionStatus::Set;
                (key.clone(), VersionedValue { value: text.clone(), version: *version, status })
            });
            state.reset_node_state_if_update(&id, values, newest, 0);
        };
        self.handle.with_chitchat(put).await;
    }

    /// The maps it holds.
    pub(crate) async fn held(&self) -> BTreeSet<MapId> {
        let held = |state: &mut chitchat::Chitchat| {
            let map = |id: &ChitchatId| {
                let owner = number(&id.node_id)?;
                Some(MapId { owner, generation: id.generation_id, address: id.gossip_advertise_addr })
            };
            // Nothing is in it that was not put in under such a name.
            state.node_states().keys().filter_map(map).collect()
        };
        self.handle.with_chitchat(held).await
    }

    /// Begins an exchange with `address`.
    pub(crate) fn gossip_with(&self, address: SocketAddr) {
        self.post.permit(address);
        // Fails only when chitchat has ended, which `ended` reports.
        let _ = self.handle.gossip(address);
    }

    /// Hands in a message, as far as it was admitted; whether it is one.
    pub(crate) fn hear(&self, from: SocketAddr, message: &[u8]) -> bool {
        let Ok(message) = ChitchatMessage::deserialize(&mut &*message) else { return false };
        let _ = self.heard.try_send((from, message));
        true
    }

    /// Resolves when chitchat has ended, which it does only by a fault: then the replica must not be asked again.
    pub(crate) async fn ended(&mut self) {
        self.terminated.as_mut().await;
    }

    /// Whether chitchat has ended.
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
        chitchat_id: chitchat_id(&settings.own),
        cluster_id: settings.trust_domain,
        gossip_interval: OWN_ROUNDS,
        listen_addr: settings.own.address,
        // The gossip loop resolves seeds and gossips with them.
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: PHI_THRESHOLD,
            sampling_window_size: SAMPLING_WINDOW,
            max_interval: settings.interval * 10,
            initial_interval: settings.interval * 2,
            dead_node_grace_period: KEPT,
        },
        // Nothing is ever deleted: withdrawals are signed records.
        marked_for_deletion_grace_period: KEPT,
        catchup_callback: None,
        // Asked only which maps to copy, each time one changes, for a watch that nobody reads here:
        // none. Whom chitchat gossips with is not its business.
        extra_liveness_predicate: Some(Box::new(|_| false)),
    }
}

fn chitchat_id(map: &MapId) -> ChitchatId {
    ChitchatId::new(short_name(map.owner), map.generation, map.address)
}

/// Bytes as maps hold them: chitchat's values are text.
pub fn to_text(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// A text value's bytes; `None` if it is no encoding of ours.
pub(crate) fn from_text(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

struct PostTransport {
    post: Arc<Post>,
    inbox: Arc<Mutex<mpsc::Receiver<(SocketAddr, ChitchatMessage)>>>,
}

#[async_trait]
impl Transport for PostTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(PostSocket { post: self.post.clone(), inbox: self.inbox.clone() }))
    }
}

struct PostSocket {
    post: Arc<Post>,
    inbox: Arc<Mutex<mpsc::Receiver<(SocketAddr, ChitchatMessage)>>>,
}

#[async_trait]
impl Socket for PostSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let message = message.serialize_to_vec();
        if let Some(step) = Step::of(&message) {
            self.post.send_repair(to, message, step);
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        match self.inbox.lock().await.recv().await {
            Some(heard) => Ok(heard),
            // The node is stopping. chitchat's loop ends when it is told to.
            None => std::future::pending().await,
        }
    }
}

impl AddressBook {
    /// Whom a message to `address` may be for. A member may claim another's address; that must not
    /// keep messages from the other, so a seed, and whatever several claim, is anybody's to answer.
    pub(crate) fn destination(&self, address: SocketAddr) -> Destination {
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
