//! Doors for `tests/fuzz`: chitchat behind its guard, without the gossip loop that would start it again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, mpsc, watch};

use crate::identity::SpiffeId;
use crate::link::{Destination, Link, Received};
use crate::replica::{AddressBook, Replica, ReplicaSettings};
use crate::snapshot::Snapshot;
use crate::wire;

/// Whether a message passes the guard when there is room for all it names.
pub fn passes(message: &[u8]) -> bool {
    wire::inspect(message, &mut wire::Unpacker::default(), |_, _| true).is_ok()
}

/// One chitchat that hears whatever a fuzzer says.
pub struct Listener {
    runtime: Runtime,
    replica: Replica,
    peer: SpiffeId,
    heard: mpsc::UnboundedSender<Received>,
    answers: mpsc::UnboundedReceiver<Vec<u8>>,
}

struct Wire {
    heard: Mutex<mpsc::UnboundedReceiver<Received>>,
    answers: mpsc::UnboundedSender<Vec<u8>>,
}

#[async_trait]
impl Link for Wire {
    fn send(&self, _to: Destination, message: Vec<u8>) {
        let _ = self.answers.send(message);
    }

    async fn recv(&self) -> Option<Received> {
        self.heard.lock().await.recv().await
    }
}

impl Listener {
    /// The generation of its own map.
    pub const GENERATION: u64 = 7;

    /// A fresh one, whose own map is called `name`, at `address`, of the trust domain `acme`.
    pub fn new(name: &str, address: SocketAddr) -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (heard, inbox) = mpsc::unbounded_channel();
        let (outbox, answers) = mpsc::unbounded_channel();
        let link = Arc::new(Wire { heard: Mutex::new(inbox), answers: outbox });
        let settings = ReplicaSettings {
            name: name.to_owned(),
            generation: Self::GENERATION,
            address,
            trust_domain: "acme".to_owned(),
            interval: Duration::from_secs(3600),
            dead_after: Duration::from_secs(240),
        };
        let (_, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (_, seeds) = watch::channel(Vec::new());
        let book = AddressBook { snapshots, seeds, acquaintances: watch::Sender::default().subscribe() };
        let spoken = [("n".to_owned(), "AAAA".to_owned()), ("l".to_owned(), "BBBB".to_owned())].into();
        let replica = runtime.block_on(async {
            let mut replica = Replica::start(settings, link, book).await.expect("it starts");
            replica.hold(&spoken).await.expect("a fresh map");
            replica
        });
        let peer = "spiffe://acme/svc/fuzzer".parse().expect("an identity");
        Self { runtime, replica, peer, heard, answers }
    }

    /// What it says to somebody it wants to reconcile with.
    pub fn speak(&mut self) -> Option<Vec<u8>> {
        self.replica.gossip_with(SocketAddr::from(([192, 0, 2, 1], 7400)));
        self.turn();
        self.answers.try_recv().ok()
    }

    /// Hears one message; what it answered, if it did.
    ///
    /// # Panics
    /// When chitchat has ended: the message made it panic.
    pub fn hear(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let from = SocketAddr::from(([192, 0, 2, 1], 7400));
        let received = Received { from, peer: self.peer.clone(), message: message.to_vec() };
        let _ = self.heard.send(received);
        self.turn();
        self.answers.try_recv().ok()
    }

    fn turn(&mut self) {
        let spoken = [("n".to_owned(), "AAAA".to_owned()), ("l".to_owned(), "BBBB".to_owned())].into();
        let replica = &mut self.replica;
        self.runtime.block_on(async {
            // Enough turns for the message to be taken, looked at, handled and answered.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            while replica.try_changed().is_some() {}
            assert!(!replica.has_ended(), "chitchat has ended");
            // The owner defends its map, as the gossip loop does; used up, it begins anew there.
            let _ = replica.hold(&spoken).await;
        });
    }
}
