//! The gossip core's link over QUIC: per message one datagram, or one unidirectional stream.
//!
//! What is to be sent once goes as a datagram if it fits: at once, without a queue, when there is a
//! connection. All else goes on a stream, because a message of many packets would never arrive whole on a
//! lossy path. `send` never waits: each peer has a short queue and a task that empties it, and the
//! newest message is dropped when the queue is full. A message on a stream not yet acknowledged counts as
//! work on its connection, so that gossip notices dead peers for everybody; a datagram has it watched until
//! the peer is heard again. It keeps no connection open that nobody uses, and chooses no peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use starling_gossip::identity::SpiffeId;
use starling_gossip::limits::MESSAGE_BYTES_MAX;
use starling_gossip::link::{Delivery, Destination, Link, Received};

use crate::connection::Connection;
use crate::header::{StreamHeader, StreamKind};
use crate::limits::{GOSSIP_PEERS_MAX, GOSSIP_QUEUE_IDLE, GOSSIP_QUEUED_PER_PEER_MAX, MESSAGE_TIMEOUT};
use crate::pool::{Pool, Target};
use crate::telemetry::{self, Direction};
use crate::verify::Expected;

/// Gossip over the node's pooled connections.
pub struct GossipLink {
    sender: Sender,
    /// Only the gossip loop receives; the lock is there because `Link` is shared.
    received: tokio::sync::Mutex<mpsc::Receiver<Received>>,
    runtime: Handle,
}

#[derive(Clone)]
struct Sender {
    pool: Pool,
    queues: Arc<Mutex<Queues>>,
}

type Queues = BTreeMap<Route, mpsc::Sender<Message>>;

/// What waits for a connection, or for those before it.
struct Message {
    bytes: Vec<u8>,
    delivery: Delivery,
}

/// Where messages go, and whom to dial for it: nobody, if `dial` is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    address: SocketAddr,
    dial: Option<Expected>,
}

impl GossipLink {
    /// A link over `pool` that hands out what arrives in `received`. Must run in a runtime.
    pub fn new(pool: Pool, received: mpsc::Receiver<Received>) -> Self {
        let sender = Sender { pool, queues: Arc::default() };
        Self { sender, received: tokio::sync::Mutex::new(received), runtime: Handle::current() }
    }
}

#[async_trait]
impl Link for GossipLink {
    fn send(&self, to: Destination, message: Vec<u8>, delivery: Delivery) {
        if message.len() > MESSAGE_BYTES_MAX {
            return telemetry::gossip_dropped("oversized");
        }
        let route = Route::new(to);
        if delivery == Delivery::Once && self.sender.send_at_once(&route, &message) {
            return;
        }
        let mut queues = self.sender.queues();
        if !queues.contains_key(&route) {
            if queues.len() >= GOSSIP_PEERS_MAX {
                return telemetry::gossip_dropped("too_many_peers");
            }
            let (queue, messages) = mpsc::channel(GOSSIP_QUEUED_PER_PEER_MAX);
            self.runtime.spawn(self.sender.clone().run(route.clone(), messages));
            queues.insert(route.clone(), queue);
        }
        let queue = queues.get(&route).expect("present or just inserted");
        if queue.try_send(Message { bytes: message, delivery }).is_err() {
            telemetry::gossip_dropped("send_queue_full");
        }
    }

    async fn recv(&self) -> Option<Received> {
        let mut received = self.received.lock().await;
        loop {
            let message = received.recv().await?;
            if !self.sender.pool.is_shunned(&message.peer, message.from) {
                return Some(message);
            }
            telemetry::gossip_dropped("shunned");
        }
    }

    fn is_behind(&self) -> bool {
        // Who holds it waits for a message, so there is none.
        self.received.try_lock().is_ok_and(|received| !received.is_empty())
    }

    /// Bounded by [`crate::limits::SHUNNED_MAX`] peers and [`crate::limits::SHUN_MAX`] each. Calls to and
    /// from the peer use the same connections and end with them: a peer that floods is cut off. What it
    /// sent before and is not received yet is dropped.
    fn shun(&self, peer: &SpiffeId, address: SocketAddr, span: Duration) {
        self.sender.pool.shun(peer, address, span);
    }
}

impl Sender {
    /// Empties one queue until it was empty for long.
    async fn run(self, route: Route, mut messages: mpsc::Receiver<Message>) {
        loop {
            match tokio::time::timeout(GOSSIP_QUEUE_IDLE, messages.recv()).await {
                Ok(Some(message)) => self.deliver(&route, message).await,
                Ok(None) => return,
                Err(_) => {
                    // Messages are queued under this lock, so an empty queue stays empty here.
                    let mut queues = self.queues();
                    if messages.is_empty() {
                        queues.remove(&route);
                        return;
                    }
                }
            }
        }
    }

    /// Sends a datagram if there is a connection and it fits; says whether it did.
    fn send_at_once(&self, route: &Route, message: &[u8]) -> bool {
        let connection = match &route.dial {
            None => self.pool.connected(route.address),
            Some(expected) => {
                self.pool.established(&Target { address: route.address, expected: expected.clone() })
            }
        };
        connection.is_some_and(|connection| send_once(&connection, message))
    }

    async fn deliver(&self, route: &Route, message: Message) {
        let connection = match &route.dial {
            None => self.pool.connected(route.address).ok_or("not_connected"),
            Some(expected) => {
                let target = Target { address: route.address, expected: expected.clone() };
                self.pool.connect(&target).await.map_err(|error| error.as_str())
            }
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(reason) => return telemetry::gossip_dropped(reason),
        };
        if message.delivery == Delivery::Once && send_once(&connection, &message.bytes) {
            return;
        }
        let bytes = Bytes::from(message.bytes);
        // Dropped half-written by the timeout, the stream is reset.
        match tokio::time::timeout(MESSAGE_TIMEOUT, write(&connection, bytes.clone())).await {
            Ok(Ok(())) => telemetry::gossip_message(Direction::Outbound, Delivery::Reliable, &bytes),
            Ok(Err(reason)) => telemetry::gossip_dropped(reason),
            Err(_) => telemetry::gossip_dropped("timed_out"),
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send_once(connection: &Connection, message: &[u8]) -> bool {
    let sent = connection.send_once(message);
    if sent {
        telemetry::gossip_message(Direction::Outbound, Delivery::Once, message);
    }
    sent
}

async fn write(connection: &Connection, message: Bytes) -> Result<(), &'static str> {
    let header = StreamHeader::new(StreamKind::Gossip);
    let mut stream = connection.open_message(&header).await.map_err(|_| "connection_lost")?;
    stream.write_chunk(message).await.map_err(|_| "connection_lost")?;
    stream.shutdown().await.map_err(|_| "connection_lost")
}

impl Route {
    fn new(to: Destination) -> Self {
        match to {
            Destination::Member { address, identity } => {
                Self { address, dial: Some(Expected::Exactly(identity)) }
            }
            Destination::Seed(address) => Self { address, dial: Some(Expected::Anybody) },
            Destination::Connected(address) => Self { address, dial: None },
        }
    }
}
