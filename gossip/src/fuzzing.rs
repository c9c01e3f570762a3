//! Doors for `tests/fuzz`: what a node does with messages, without the gossip loop that would start chitchat again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};

use crate::allowance::Allowance;
use crate::catalogue::Catalogue;
use crate::clock::{Clock, WallTime};
use crate::identity::SpiffeId;
use crate::link::{Delivery, Destination, Link, Received};
use crate::post::Post;
use crate::record::{Renewal, Version};
use crate::repairing::Repairing;
use crate::replica::{AddressBook, ReplicaSettings};
use crate::snapshot::Snapshot;
use crate::svid::TrustBundle;
use crate::talk::{Filed, Item, Join, Key, Message, ReportedLease, Talk, Welcome};
use crate::wire::{Exchange, MapId, Unpacker};

/// Whether a message is one that a node reads.
pub fn passes(message: &[u8]) -> bool {
    match Message::decode(message) {
        Ok(Message::Repair(message)) => Exchange::read(&message, &mut Unpacker::default()).is_ok(),
        decoded => decoded.is_ok(),
    }
}

/// Messages of every kind, by name, that carry these records: a fuzzer begins with them.
pub fn everything_said(records: &[Vec<u8>]) -> Vec<(&'static str, Vec<u8>)> {
    let items = records.iter().cloned().map(Item::Record).collect();
    let filed = Filed { owner: 1, key: Key::Node, version: Version { incarnation: 7, version: 9 } };
    let renewal = Renewal { incarnation: 7, counter: 9, link: [1; 32] };
    let small = vec![
        Item::Offer(filed.clone()),
        Item::Want(Filed { key: Key::Instance("main".parse().expect("a label")), ..filed }),
        Item::Renewal(1, renewal),
        Item::Ask(1, 7, 8),
        Item::Refutation(1, renewal),
    ];
    let leases = vec![ReportedLease { owner: 1, renewal, age_millis: 1 }];
    [
        ("talk-records", Message::Talk(Talk { knows: 1, is_chosen: true, items })),
        ("talk-small", Message::Talk(Talk { knows: 1, is_chosen: false, items: small })),
        ("ping", Message::Ping(9, true)),
        ("pong", Message::Pong(9)),
        ("join", Message::Join(Join { records: records.to_vec(), only_leases: false })),
        (
            "welcome",
            Message::Welcome(Welcome {
                records: records.to_vec(),
                leases,
                is_last: true,
                is_referral: false,
            }),
        ),
    ]
    .map(|(name, message)| (name, message.encode()))
    .to_vec()
}

/// One node's repair path, which hears whatever a fuzzer says.
pub struct Listener {
    runtime: Runtime,
    repairing: Repairing,
    catalogue: Catalogue,
    clock: Clock,
    answers: mpsc::UnboundedReceiver<Vec<u8>>,
}

struct Wire(mpsc::UnboundedSender<Vec<u8>>);

#[async_trait]
impl Link for Wire {
    fn send(&self, _to: Destination, message: Vec<u8>, _delivery: Delivery) {
        let _ = self.0.send(message);
    }

    fn is_behind(&self) -> bool {
        false
    }

    fn shun(&self, _peer: &SpiffeId, _address: SocketAddr, _span: Duration) {}

    async fn recv(&self) -> Option<Received> {
        std::future::pending().await
    }
}

impl Listener {
    /// The generation of its own map.
    pub const GENERATION: u64 = 7;

    /// A fresh one, whose own map is called `owner`, at `address`, that believes `bundle` at `wall` and knows
    /// whom `known` introduces.
    ///
    /// # Panics
    /// When the machine has no memory for it.
    pub fn new(
        owner: u64,
        address: SocketAddr,
        bundle: TrustBundle,
        wall: WallTime,
        known: &[Vec<u8>],
    ) -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (outbox, answers) = mpsc::unbounded_channel();
        let own = MapId { owner, generation: Self::GENERATION, address };
        let settings = ReplicaSettings {
            own,
            trust_domain: bundle.domain().to_string(),
            interval: Duration::from_secs(3600),
        };
        let (_, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (_, seeds) = watch::channel(Vec::new());
        let book = AddressBook { snapshots, seeds, acquaintances: watch::Sender::default().subscribe() };
        let (repairing, clock) = runtime.block_on(async {
            let clock = Clock::starting_at(wall);
            let post = Post::new(Arc::new(Wire(outbox)), book, address);
            let repairing = Repairing::start(settings, post, clock.now()).await;
            (repairing.expect("it starts"), clock)
        });
        let mut catalogue = Catalogue::new(Arc::new(bundle));
        for record in known {
            let _ = catalogue.apply(record, clock.now(), wall);
        }
        Self { runtime, repairing, catalogue, clock, answers }
    }

    /// What it says to somebody it wants to reconcile with.
    pub fn speak(&mut self) -> Option<Vec<u8>> {
        let (repairing, catalogue, now) = (&mut self.repairing, &self.catalogue, self.clock.now());
        self.runtime.block_on(async {
            repairing.gossip_with(SocketAddr::from(([192, 0, 2, 1], 7400)), catalogue, now).await;
        });
        self.turn();
        self.answers.try_recv().ok()
    }

    /// Hears one message; what it answered, if it did.
    ///
    /// # Panics
    /// When chitchat has ended: the message made it panic.
    pub fn hear(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let from = SocketAddr::from(([192, 0, 2, 1], 7400));
        let (now, wall) = (self.clock.now(), self.clock.wall());
        match Message::decode(message) {
            Ok(Message::Repair(message)) => {
                let (repairing, catalogue, clock) = (&mut self.repairing, &mut self.catalogue, &self.clock);
                let mut vain_hashes = Allowance::new(f64::MAX, f64::MAX, now);
                self.runtime.block_on(async {
                    let _ = repairing
                        .handle_message(from, &message, catalogue, clock, &mut vain_hashes, |_| false)
                        .await;
                });
                self.turn();
            }
            Ok(Message::Talk(talk)) => {
                for item in talk.items {
                    match item {
                        Item::Record(bytes) => drop(self.catalogue.apply(&bytes, now, wall)),
                        Item::Renewal(owner, renewal) | Item::Refutation(owner, renewal) => {
                            let name = crate::talk::short_name(owner);
                            let _ = self.catalogue.apply_renewal(&name, &renewal, now, wall);
                        }
                        Item::Sighting(sealed) => drop(self.catalogue.apply_sighting(&sealed, now)),
                        Item::Offer(filed) | Item::Want(filed) => drop(self.catalogue.record(&filed)),
                        Item::Ask(owner, ..) => drop(self.catalogue.renewal_of(owner)),
                    }
                }
            }
            Ok(Message::Join(join)) => {
                join.records.iter().for_each(|bytes| drop(self.catalogue.apply(bytes, now, wall)));
            }
            Ok(Message::Welcome(welcome)) => {
                let reporter = "spiffe://acme/svc/fuzzer".parse().expect("an identity");
                welcome.records.iter().for_each(|bytes| drop(self.catalogue.apply(bytes, now, wall)));
                for lease in &welcome.leases {
                    let _ = self.catalogue.apply_report(&reporter, lease, 1, now, wall);
                }
            }
            // Numbers: nothing of them is read further.
            Ok(Message::Ping(..) | Message::Pong(_)) | Err(_) => {}
        }
        self.answers.try_recv().ok()
    }

    fn turn(&mut self) {
        let repairing = &mut self.repairing;
        self.runtime.block_on(async {
            // Enough turns for the message to be taken, looked at, handled and answered.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            assert!(!repairing.has_ended(), "chitchat has ended");
        });
    }
}
