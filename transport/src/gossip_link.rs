//! The gossip core's link over QUIC: one unidirectional stream per message.
//!
//! A stream, not a datagram, because a message of many packets would never arrive whole on a
//! lossy path. `send` never waits: each peer has a short queue and a task that empties it, and the
//! newest message is dropped when the queue is full. A message not yet acknowledged counts as work
//! on its connection, so that gossip notices dead peers for everybody.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use starling_gossip::limits::MESSAGE_BYTES_MAX;
use starling_gossip::link::{Destination, Link, Received};

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
    queues: Arc<Mutex<BTreeMap<Route, mpsc::Sender<Vec<u8>>>>>,
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
    fn send(&self, to: Destination, message: Vec<u8>) {
        if message.len() > MESSAGE_BYTES_MAX {
            return telemetry::gossip_dropped("oversized");
        }
        let route = Route::new(to);
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
        if queue.try_send(message).is_err() {
            telemetry::gossip_dropped("send_queue_full");
        }
    }

    async fn recv(&self) -> Option<Received> {
        self.received.lock().await.recv().await
    }
}

impl Sender {
    /// Empties one queue until it was empty for long.
    async fn run(self, route: Route, mut messages: mpsc::Receiver<Vec<u8>>) {
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

    async fn deliver(&self, route: &Route, message: Vec<u8>) {
        let bytes = message.len();
        let connection = match &route.dial {
            None => self.pool.connected(route.address).ok_or("not_connected"),
            Some(expected) => {
                let target = Target { address: route.address, expected: expected.clone() };
                self.pool.connect(&target).await.map_err(|error| error.as_str())
            }
        };
        let outcome = match connection {
            // Dropped half-written by the timeout, the stream is reset.
            Ok(connection) => tokio::time::timeout(MESSAGE_TIMEOUT, write(&connection, message))
                .await
                .unwrap_or(Err("timed_out")),
            Err(reason) => Err(reason),
        };
        match outcome {
            Ok(()) => telemetry::gossip_message(Direction::Outbound, bytes),
            Err(reason) => telemetry::gossip_dropped(reason),
        }
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<Route, mpsc::Sender<Vec<u8>>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(connection: &Connection, message: Vec<u8>) -> Result<(), &'static str> {
    let header = StreamHeader::new(StreamKind::Gossip);
    let mut stream = connection.open_message(&header).await.map_err(|_| "connection_lost")?;
    stream.write_chunk(Bytes::from(message)).await.map_err(|_| "connection_lost")?;
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
