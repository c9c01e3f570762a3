//! A member with a good certificate and bad intentions: it may say anything to anybody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, DeletionStatus, Deserializable as _,
    FailureDetectorConfig, Serializable as _, VersionedValue, spawn_chitchat,
};
use starling_gossip::link::{Delivery, Destination, Link};
use tokio::time::{Instant, sleep};

use crate::authority::{KeyKind, WALL};
use crate::link::HostLink;
use crate::world::{INTERVAL, LEASE, SPREAD, World, address, alive, equal, weight};

const NODES: usize = 6;
const VICTIM: usize = 3;

/// A chitchat of its own, with no gossip loop to keep it honest.
struct Liar {
    chitchat: ChitchatHandle,
    victim: ChitchatId,
}

impl Liar {
    async fn join(world: &World) -> Self {
        Self::join_at(world, address(200)).await
    }

    async fn join_at(world: &World, own: SocketAddr) -> Self {
        let identity = "spiffe://acme/svc/liar".parse().expect("an identity");
        let link = world.network.host(own, identity);
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new("0000000000000bad", 1, own),
            cluster_id: "acme".into(),
            gossip_interval: INTERVAL,
            listen_addr: own,
            seed_nodes: vec![address(0).to_string()],
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: LEASE * 2,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let chitchat = spawn_chitchat(config, Vec::new(), &LiarTransport(link)).await.expect("it starts");
        let owner = world.nodes[VICTIM].gossip.owner();
        let victim = ChitchatId::new(owner.short_name(), WALL.unix_millis, address(VICTIM));
        let liar = Self { chitchat, victim };
        let start = Instant::now();
        while liar.victims_map().await.len() < 2 {
            assert!(start.elapsed() < SPREAD, "the liar learns a node record and an instance");
            sleep(INTERVAL).await;
        }
        liar
    }

    /// The victim's map as the liar has it.
    async fn victims_map(&self) -> Vec<(String, String)> {
        let victim = self.victim.clone();
        let map = move |state: &mut chitchat::Chitchat| {
            let node = state.node_state(&victim);
            let values = node.into_iter().flat_map(|node| node.key_values());
            values.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        self.chitchat.with_chitchat(map).await
    }

    /// Puts `value` into the victim's map, as its version `ahead` from now, and tells everybody.
    async fn overwrite(&self, key: &str, value: &str, ahead: u64, status: DeletionStatus) {
        let victim = self.victim.clone();
        let forge = |state: &mut chitchat::Chitchat| {
            let node = state.node_state(&victim).expect("the victim is known");
            let version = node.max_version().saturating_add(ahead);
            let kept: Vec<_> = node.key_values_including_deleted().collect();
            let forged = VersionedValue { value: value.to_owned(), version, status };
            let kept = kept.into_iter().filter(|(held, _)| *held != key);
            let values: Vec<_> = kept
                .map(|(key, value)| (key.to_owned(), value.clone()))
                .chain([(key.to_owned(), forged)])
                .collect();
            state.reset_node_state_if_update(&victim, values.into_iter(), version, 0);
        };
        self.chitchat.with_chitchat(forge).await;
        for index in 0..NODES {
            self.chitchat.gossip(address(index)).expect("it runs");
        }
    }
}

struct LiarTransport(Arc<HostLink>);
struct LiarSocket(Arc<HostLink>);

#[async_trait]
impl Transport for LiarTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(LiarSocket(self.0.clone())))
    }
}

#[async_trait]
impl Socket for LiarSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.0.send(Destination::Seed(to), message.serialize_to_vec(), Delivery::Reliable);
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        match self.0.recv().await {
            Some(received) => {
                let message = ChitchatMessage::deserialize(&mut received.message.as_slice())?;
                Ok((received.from, message))
            }
            None => std::future::pending().await,
        }
    }
}

/// All nodes stay alive in all eyes, the victim's news still spreads, and a latecomer learns it.
async fn unharmed(world: &mut World) {
    let deadline = LEASE + SPREAD;
    let start = Instant::now();
    while start.elapsed() < deadline {
        assert!(world.snapshots().iter().all(|it| alive(it) == NODES), "nobody loses anybody");
        sleep(Duration::from_millis(100)).await;
    }
    world.announce(VICTIM, 55).await;
    world
        .wait_for("the victim's news", SPREAD, |all| all.iter().all(|it| weight(it, VICTIM) == Some(55)))
        .await;
    world.add().await;
    world.wait_for("a latecomer", SPREAD, |all| all.iter().all(|it| alive(it) == NODES + 1)).await;
    world.wait_for("equal catalogues", SPREAD, equal).await;
}

/// What others tell a newcomer of the victim's map is what the victim said.
async fn nobody_believes(world: &World, honest: &[(String, String)], number: usize) {
    let witness = Liar::join_at(world, address(number)).await;
    assert_eq!(witness.victims_map().await, honest);
}

#[tokio::test(start_paused = true)]
async fn nobody_believes_what_others_write_into_a_map() {
    let deletions = [DeletionStatus::Deleted(Instant::now()), DeletionStatus::DeleteAfterTtl(Instant::now())];
    for key in ["n", "i/main", "l", "i/junk"] {
        for ahead in [1, 1_000, 1 << 40, u64::MAX / 2, u64::MAX] {
            let mut world = World::converged(NODES).await;
            let liar = Liar::join(&world).await;
            let honest = liar.victims_map().await;
            liar.overwrite(key, "AAAA", ahead, DeletionStatus::Set).await;
            sleep(SPREAD).await;
            nobody_believes(&world, &honest, 201).await;
            if ahead == 1_000 {
                unharmed(&mut world).await;
            }
        }
    }
    for status in deletions {
        let mut world = World::converged(NODES).await;
        let liar = Liar::join(&world).await;
        let honest = liar.victims_map().await;
        let node_record = honest.iter().find(|it| it.0 == "n").expect("it introduced itself");
        liar.overwrite("n", &node_record.1, 1_000, status).await;
        sleep(LEASE * 3).await;
        nobody_believes(&world, &honest, 201).await;
        unharmed(&mut world).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_claims_the_addresses_of_others_keeps_no_message_from_them() {
    let mut world = World::empty();
    for _ in 0..NODES - 1 {
        world.add().await;
    }
    let svid = world.authority.svid("spiffe://acme/svc/zzz", KeyKind::Ed25519);
    let bundle = world.authority.bundle();
    let claims = [vec![address(NODES - 1)], (0..NODES - 1).map(address).collect()].concat();
    world.add_as(svid, bundle, claims).await;
    world.wait_for("all know all", SPREAD, |all| all.iter().all(|it| alive(it) == NODES)).await;
    unharmed(&mut world).await;
}
