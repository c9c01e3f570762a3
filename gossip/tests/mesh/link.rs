//! A network in memory: every address has one owner of a proved identity, every queue a bound.
//!
//! It keeps what [`Link`] demands: a message for a member reaches nobody else, a message for a
//! connection needs one, and who receives learns who sent. Latency is fixed; cuts lose messages.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use starling_gossip::identity::SpiffeId;
use starling_gossip::link::{Delivery, Destination, Link, Received};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

const QUEUED_MAX: usize = 256;
const LATENCY: Duration = Duration::from_millis(2);

/// All addresses, and which of them hear each other.
#[derive(Default)]
pub(crate) struct Network {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    hosts: BTreeMap<SocketAddr, Host>,
    /// Who has met whom, so that a reply needs no dialling.
    connections: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Addresses on the far side of a partition.
    cut_off: BTreeSet<SocketAddr>,
    /// Who will have nothing to do with whom.
    shunned: BTreeSet<(SocketAddr, SocketAddr)>,
}

struct Host {
    identity: SpiffeId,
    queue: mpsc::Sender<(Instant, Received)>,
}

/// One host's end of the network.
pub(crate) struct HostLink {
    network: Arc<Network>,
    address: SocketAddr,
    identity: SpiffeId,
    queue: tokio::sync::Mutex<Queue>,
}

struct Queue {
    messages: mpsc::Receiver<(Instant, Received)>,
    /// On its way, and kept if nobody waits for it any more.
    next: Option<(Instant, Received)>,
}

impl Network {
    /// A host at `address` that proves `identity`.
    pub(crate) fn host(self: &Arc<Self>, address: SocketAddr, identity: SpiffeId) -> Arc<HostLink> {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        self.state().hosts.insert(address, Host { identity: identity.clone(), queue: sender });
        Arc::new(HostLink {
            network: self.clone(),
            address,
            identity,
            queue: Queue { messages: receiver, next: None }.into(),
        })
    }

    /// Nobody answers at `address` any more.
    pub(crate) fn unplug(&self, address: SocketAddr) {
        let mut state = self.state();
        state.hosts.remove(&address);
        state.connections.retain(|(from, to)| *from != address && *to != address);
    }

    /// Only hosts on the same side hear each other; with nobody `far`, all do.
    pub(crate) fn partition(&self, far: impl IntoIterator<Item = SocketAddr>) {
        self.state().cut_off = far.into_iter().collect();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked with it")
    }
}

impl State {
    fn deliver(&mut self, from: &HostLink, to: &Destination, message: Vec<u8>) {
        let address = to.address();
        let is_cut = self.cut_off.contains(&address) != self.cut_off.contains(&from.address);
        let Some(host) = self.hosts.get(&address).filter(|_| !is_cut) else { return };
        let may_go = match to {
            Destination::Member { identity, .. } => *identity == host.identity,
            Destination::Seed(_) => true,
            Destination::Connected(_) => self.connections.contains(&(from.address, address)),
        };
        let is_shunned = self.shunned.contains(&(address, from.address));
        if !may_go || is_shunned || !self.hosts.contains_key(&from.address) {
            return;
        }
        let received = Received { from: from.address, peer: from.identity.clone(), message };
        let _ = host.queue.try_send((Instant::now() + LATENCY, received));
        self.connections.extend([(from.address, address), (address, from.address)]);
    }
}

#[async_trait]
impl Link for HostLink {
    fn send(&self, to: Destination, message: Vec<u8>, _delivery: Delivery) {
        self.network.state().deliver(self, &to, message);
    }

    fn is_behind(&self) -> bool {
        let queue = self.queue.try_lock();
        queue.is_ok_and(|queue| queue.next.as_ref().is_some_and(|(at, _)| *at <= Instant::now()))
    }

    fn shun(&self, _peer: &SpiffeId, address: SocketAddr, _span: Duration) {
        self.network.state().shunned.insert((self.address, address));
    }

    async fn recv(&self) -> Option<Received> {
        let mut queue = self.queue.lock().await;
        if queue.next.is_none() {
            queue.next = Some(queue.messages.recv().await?);
        }
        if let Some((at, _)) = &queue.next {
            sleep_until(*at).await;
        }
        queue.next.take().map(|(_, received)| received)
    }
}
